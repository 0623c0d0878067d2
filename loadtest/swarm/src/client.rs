//! A WebSocket client that costs little: no buffer while nothing moves, no masking, text only.

use std::{
    cell::{Cell, RefCell},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::Notify,
};

/// The first byte of a text frame that is whole.
pub const TEXT: u8 = 0x81;
/// The first byte of a Close frame.
const CLOSE: u8 = 0x88;
/// The first byte of a ping.
const PING: u8 = 0x89;
/// The first byte of a pong.
const PONG: u8 = 0x8a;

/// What all sockets of a process share.
pub struct Swarm {
    /// The op of every request.
    pub op: String,
    /// While set, every answer is followed by another request.
    pub loading: Cell<bool>,
    /// Answers received by all sockets.
    pub answers: Cell<u64>,
    scratch: RefCell<Vec<u8>>,
}

impl Swarm {
    /// A swarm without sockets.
    pub fn new(op: String) -> Rc<Self> {
        Rc::new(Self {
            op,
            loading: Cell::default(),
            answers: Cell::default(),
            scratch: RefCell::new(vec![0; 64 * 1024]),
        })
    }
}

/// One open socket. Its task lives until the peer closes or the process ends.
pub struct Socket {
    /// Requests to send as soon as possible.
    wanted: Cell<u32>,
    /// Answers received so far.
    pub answers: Cell<u64>,
    /// Whether the connection has ended.
    pub ended: Cell<bool>,
    leaving: Cell<bool>,
    wake: Notify,
    /// Notified once something has come in, or the connection has ended.
    heard: Notify,
}

impl Socket {
    /// Has `n` more requests sent.
    pub fn request(&self, n: u32) {
        self.wanted.set(self.wanted.get() + n);
        self.wake.notify_one();
    }

    /// Has it say goodbye and end.
    pub fn leave(&self) {
        self.leaving.set(true);
        self.wake.notify_one();
    }
}

/// Where to and from where.
pub struct Route {
    /// The server.
    pub address: SocketAddr,
    /// Path and query of the socket.
    pub path: String,
    /// The number of this process: each has a source address of its own, and so its own ports.
    pub part: u8,
}

/// Opens a socket and starts the task that runs it, on the current `LocalSet`. With a token it is open once the server has
/// welcomed it.
pub async fn open(swarm: &Rc<Swarm>, route: &Route, token: Option<&str>) -> io::Result<Rc<Socket>> {
    let stream = upgraded(route, token).await?;
    let socket = Rc::new(Socket {
        wanted: Cell::default(),
        answers: Cell::default(),
        ended: Cell::default(),
        leaving: Cell::default(),
        wake: Notify::new(),
        heard: Notify::new(),
    });
    let run = Run { stream, swarm: Rc::clone(swarm), socket: Rc::clone(&socket), next_id: 1, partial: Vec::new() };
    tokio::task::spawn_local(run.until_closed());
    if token.is_some() {
        socket.heard.notified().await;
        if socket.ended.get() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
    }
    Ok(socket)
}

/// A connection past its handshake.
pub async fn upgraded(route: &Route, token: Option<&str>) -> io::Result<TcpStream> {
    handshake(connect(route).await?, route, token).await
}

async fn connect(route: &Route) -> io::Result<TcpStream> {
    let stream = match route.address.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => {
            let socket = TcpSocket::new_v4()?;
            socket.bind((Ipv4Addr::new(127, 0, 0, 10 + route.part), 0).into())?;
            socket.connect(route.address).await?
        }
        _ => TcpStream::connect(route.address).await?,
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn handshake(mut stream: TcpStream, route: &Route, token: Option<&str>) -> io::Result<TcpStream> {
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: sealwire.v1.json\r\n{authorization}\r\n",
        route.path, route.address
    );
    stream.write_all(request.as_bytes()).await?;
    // Byte by byte, so that nothing behind the head is taken; the kernel has it all already.
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let status = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    if status.starts_with(b"HTTP/1.1 101") {
        Ok(stream)
    } else {
        Err(io::Error::other(String::from_utf8_lossy(status).into_owned()))
    }
}

/// What the task of a socket works with.
struct Run {
    stream: TcpStream,
    swarm: Rc<Swarm>,
    socket: Rc<Socket>,
    next_id: u32,
    /// The beginning of a frame that has not come in whole.
    partial: Vec<u8>,
}

impl Run {
    async fn until_closed(mut self) {
        // The peer going away is the expected end; what it cost is seen in the answers counted.
        let _ = self.run().await;
        self.socket.ended.set(true);
        self.socket.heard.notify_one();
    }

    async fn run(&mut self) -> io::Result<()> {
        loop {
            self.send_wanted().await?;
            if self.socket.leaving.get() {
                let mut goodbye = Vec::new();
                put_frame(&mut goodbye, CLOSE, &[]);
                return self.stream.write_all(&goodbye).await;
            }
            tokio::select! {
                readable = self.stream.readable() => readable?,
                () = self.socket.wake.notified() => continue,
            }
            let pongs = match self.read() {
                Ok(pongs) => pongs,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            self.socket.heard.notify_one();
            self.stream.write_all(&pongs).await?;
        }
    }

    async fn send_wanted(&mut self) -> io::Result<()> {
        let wanted = self.socket.wanted.take();
        if wanted == 0 {
            return Ok(());
        }
        let mut bytes = Vec::new();
        for _ in 0..wanted {
            // By hand: the op may be one that no server knows.
            let text = format!(r#"{{"id":{},"op":"{}","params":{{}}}}"#, self.next_id, self.swarm.op);
            self.next_id += 1;
            put_frame(&mut bytes, TEXT, text.as_bytes());
        }
        self.stream.write_all(&bytes).await
    }

    /// Takes in what the socket has; returns the pongs to send.
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut scratch = self.swarm.scratch.borrow_mut();
        let n = self.stream.try_read(&mut scratch)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut pongs = Vec::new();
        let mut answers = 0;
        let count = |text: &[u8], _: &mut Vec<u8>| {
            answers += u32::from(is_answer(text));
            Ok(())
        };
        let rest = if self.partial.is_empty() {
            let used = take_texts(&scratch[..n], &mut pongs, count)?;
            scratch[used..n].to_vec()
        } else {
            self.partial.extend_from_slice(&scratch[..n]);
            let used = take_texts(&self.partial, &mut pongs, count)?;
            self.partial[used..].to_vec()
        };
        self.partial = rest;
        self.swarm.answers.set(self.swarm.answers.get() + u64::from(answers));
        self.socket.answers.set(self.socket.answers.get() + u64::from(answers));
        if self.swarm.loading.get() {
            self.socket.wanted.set(self.socket.wanted.get() + answers);
        }
        Ok(pongs)
    }
}

/// Goes through the whole frames in `bytes`: answers pings into `answers`, where `each` may put requests of its own when it
/// is shown a text. Returns how many bytes the frames take.
pub fn take_texts(
    bytes: &[u8],
    answers: &mut Vec<u8>,
    mut each: impl FnMut(&[u8], &mut Vec<u8>) -> io::Result<()>,
) -> io::Result<usize> {
    let mut used = 0;
    while let Some((head, payload)) = frame(&bytes[used..]) {
        let text = &bytes[used..][payload.clone()];
        match head {
            PING => put_frame(answers, PONG, text),
            CLOSE => return Err(io::ErrorKind::ConnectionAborted.into()),
            TEXT => each(text, answers)?,
            _ => {}
        }
        used += payload.end;
    }
    Ok(used)
}

/// The first byte of a server's frame and where its payload is, if it is there in whole.
pub fn frame(bytes: &[u8]) -> Option<(u8, std::ops::Range<usize>)> {
    let (header, length): (usize, usize) = match *bytes.get(1)? {
        126 => (4, u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?).into()),
        127 => {
            let length = u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?);
            (10, usize::try_from(length).ok()?)
        }
        short => (2, short.into()),
    };
    let payload = header..header.checked_add(length)?;
    (payload.end <= bytes.len()).then(|| (bytes[0], payload))
}

/// Whether a text of the server is an event: it writes the fields of its frames in one order.
pub fn is_event(text: &[u8]) -> bool {
    text.starts_with(br#"{"event""#)
}

/// Whether a text answers a request, or echoes one.
fn is_answer(text: &[u8]) -> bool {
    !is_event(text) && text.windows(5).take(64).any(|part| part == br#""id":"#)
}

/// Appends a client's frame. The mask is zero: the server's work is the same, and ours is less.
pub fn put_frame(bytes: &mut Vec<u8>, head: u8, payload: &[u8]) {
    /// Says that the length follows in two bytes.
    const LONG: u8 = 0x7e;
    if payload.len() < usize::from(LONG) {
        bytes.extend_from_slice(&[head, 0x80 | u8::try_from(payload.len()).unwrap_or(0)]);
    } else {
        // Requests are far shorter than 64 KiB, and pongs than 126 bytes.
        let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&[head, 0x80 | LONG]);
        bytes.extend_from_slice(&length.to_be_bytes());
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
}
