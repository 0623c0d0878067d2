//! A WebSocket client that uses little memory and CPU: no buffer while idle, no masking, text only.

use std::{
    cell::{Cell, RefCell},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::atomic::{AtomicU32, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::Notify,
};

/// The first byte of an unfragmented text frame.
pub const TEXT: u8 = 0x81;
/// The first byte of a Close frame.
const CLOSE: u8 = 0x88;
/// The first byte of a ping.
const PING: u8 = 0x89;
/// The first byte of a pong.
const PONG: u8 = 0x8a;

/// Number of connections after which a process changes its source address. Linux keeps the port of a closed connection for a
/// minute. Once half of an address's 28,000 ports are kept, finding a free one takes milliseconds: it tries the even
/// ports first, one after the other.
const CONNECTS_PER_ADDRESS: u32 = 8_000;
/// Connections that this process has begun.
static CONNECTS: AtomicU32 = AtomicU32::new(0);

/// The state that all sockets of a process share.
pub struct Swarm {
    /// The op of the requests.
    pub op: RefCell<String>,
    /// While set, every answer triggers another request.
    pub loading: Cell<bool>,
    /// Answers received by all sockets.
    pub answers: Cell<u64>,
    scratch: RefCell<Vec<u8>>,
}

impl Swarm {
    /// Creates a swarm without sockets.
    pub fn new(op: String) -> Rc<Self> {
        Rc::new(Self {
            op: RefCell::new(op),
            loading: Cell::default(),
            answers: Cell::default(),
            scratch: RefCell::new(vec![0; 64 * 1024]),
        })
    }
}

/// One open socket. Its task lives until the peer closes or the process ends.
pub struct Socket {
    /// Number of requests to send as soon as possible.
    wanted: Cell<u32>,
    /// Answers received so far.
    pub answers: Cell<u64>,
    /// Whether the connection has ended.
    pub ended: Cell<bool>,
    leaving: Cell<bool>,
    wake: Notify,
    /// Notified when something is received, or the connection ends.
    received: Notify,
}

impl Socket {
    /// Sends `n` more requests.
    pub fn request(&self, n: u32) {
        self.wanted.set(self.wanted.get() + n);
        self.wake.notify_one();
    }

    /// Sends a Close frame and ends the connection.
    pub fn leave(&self) {
        self.leaving.set(true);
        self.wake.notify_one();
    }
}

/// Destination and source of connections.
pub struct Route {
    /// Address of the server.
    pub address: SocketAddr,
    /// Path and query of the socket.
    pub path: String,
    /// The number of this process. Each process has its own source addresses, and so its own ports.
    pub part: u8,
}

/// Opens a socket and starts its task on the current `LocalSet`. With a token, returns after the server's welcome.
pub async fn open(swarm: &Rc<Swarm>, route: &Route, token: Option<&str>) -> io::Result<Rc<Socket>> {
    let stream = upgraded(route, token).await?;
    let socket = Rc::new(Socket {
        wanted: Cell::default(),
        answers: Cell::default(),
        ended: Cell::default(),
        leaving: Cell::default(),
        wake: Notify::new(),
        received: Notify::new(),
    });
    let run = Run { stream, swarm: Rc::clone(swarm), socket: Rc::clone(&socket), next_id: 1, partial: Vec::new() };
    tokio::task::spawn_local(run.until_closed());
    if token.is_some() {
        socket.received.notified().await;
        if socket.ended.get() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
    }
    Ok(socket)
}

/// Connects and upgrades to a WebSocket.
pub async fn upgraded(route: &Route, token: Option<&str>) -> io::Result<TcpStream> {
    handshake(connect(route).await?, route, token).await
}

async fn connect(route: &Route) -> io::Result<TcpStream> {
    let stream = match route.address.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => {
            let socket = TcpSocket::new_v4()?;
            // Beginning with the number of the process, because a script may start several one after the other.
            let turn = CONNECTS.fetch_add(1, Ordering::Relaxed) / CONNECTS_PER_ADDRESS;
            let turn = turn.wrapping_add(std::process::id());
            let source = Ipv4Addr::new(127, turn.to_le_bytes()[0], 0, 10 + route.part);
            socket.bind((source, 0).into())?;
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
    // Byte by byte, so that nothing after the head is read. The kernel has buffered it already.
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

/// The state of a socket's task.
struct Run {
    stream: TcpStream,
    swarm: Rc<Swarm>,
    socket: Rc<Socket>,
    next_id: u32,
    /// The beginning of an incomplete frame.
    partial: Vec<u8>,
}

impl Run {
    async fn until_closed(mut self) {
        // An error means that the peer has closed, which is expected. Missing answers show in the counts.
        let _ = self.run().await;
        self.socket.ended.set(true);
        self.socket.received.notify_one();
    }

    async fn run(&mut self) -> io::Result<()> {
        loop {
            self.send_wanted().await?;
            if self.socket.leaving.get() {
                let mut close = Vec::new();
                put_frame(&mut close, CLOSE, &[]);
                return self.stream.write_all(&close).await;
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
            self.socket.received.notify_one();
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
            // Without the protocol crate, because the op may not exist.
            let text = format!(r#"{{"id":{},"op":"{}","params":{{}}}}"#, self.next_id, self.swarm.op.borrow());
            self.next_id += 1;
            put_frame(&mut bytes, TEXT, text.as_bytes());
        }
        self.stream.write_all(&bytes).await
    }

    /// Reads what has arrived. Returns the pongs to send.
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

/// Handles the complete frames in `bytes`: calls `each` with every text, and appends pongs to `answers`, to which `each` may
/// append requests. Returns the number of bytes handled.
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

/// Returns the first byte of a server's frame and the range of its payload; `None` if it is incomplete.
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

/// Whether a text from the server is an event. The server always writes the fields of a frame in the same order.
pub fn is_event(text: &[u8]) -> bool {
    text.starts_with(br#"{"event""#)
}

/// Whether a text is a reply to a request, or the echo of one.
fn is_answer(text: &[u8]) -> bool {
    !is_event(text) && text.windows(5).take(64).any(|part| part == br#""id":"#)
}

/// Appends a client's frame, masked with zero: this saves work here and none on the server.
pub fn put_frame(bytes: &mut Vec<u8>, head: u8, payload: &[u8]) {
    /// Means that the length follows in two bytes.
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
