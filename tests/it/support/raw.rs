//! A WebSocket client that sends arbitrary bytes: frames are built by hand, and pings and closes are not answered
//! automatically.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Mutex,
    task::JoinHandle,
    time::timeout,
};

use super::{Codec, PATIENCE, Server};

// First header bytes of unfragmented messages and of control frames (RFC 6455, section 5.2).
pub const TEXT: u8 = 0x81;
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;

/// The answer to an upgrade request.
pub struct UpgradeResponse {
    pub status: u16,
    head: String,
    /// The JSON body, or `Null`.
    pub body: Value,
}

impl UpgradeResponse {
    /// Returns the value of a header. Names are compared without case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// Sends an upgrade request to `/v1/socket` with exactly these headers besides `Host`.
pub async fn request_upgrade(server: &impl Server, headers: &[(&str, &str)]) -> (UpgradeResponse, RawSocket) {
    request_upgrade_from([127, 0, 0, 1], server, headers).await
}

/// Opens a TCP connection from this local address.
pub async fn connect_from(source: [u8; 4], server: &impl Server) -> TcpStream {
    connect_socket_from(TcpSocket::new_v4().unwrap(), source, server).await
}

async fn connect_socket_from(socket: TcpSocket, source: [u8; 4], server: &impl Server) -> TcpStream {
    socket.bind((source, 0).into()).unwrap();
    let stream = socket.connect(server.address()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Like [`request_upgrade`], from this local address.
pub async fn request_upgrade_from(
    source: [u8; 4],
    server: &impl Server,
    headers: &[(&str, &str)],
) -> (UpgradeResponse, RawSocket) {
    request_upgrade_on(connect_from(source, server).await, server, headers).await
}

async fn request_upgrade_on(
    stream: TcpStream,
    server: &impl Server,
    headers: &[(&str, &str)],
) -> (UpgradeResponse, RawSocket) {
    let mut request = format!("GET /v1/socket HTTP/1.1\r\nHost: {}\r\n", server.address());
    for (name, value) in headers {
        write!(request, "{name}: {value}\r\n").unwrap();
    }
    request.push_str("\r\n");
    let (reader, writer) = stream.into_split();
    let mut socket = RawSocket { codec: Codec::Json, reader, writer: Arc::new(Mutex::new(writer)), inbox: Vec::new() };
    socket.send(request.as_bytes()).await;
    let end = loop {
        if let Some(at) = socket.inbox.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        assert!(socket.fill().await, "expected an answer to the upgrade request, got the end of the stream");
    };
    let head = String::from_utf8(socket.inbox.drain(..end).collect()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut answer = UpgradeResponse { status, head, body: Value::Null };
    if let Some(length) = answer.header("content-length") {
        let length: usize = length.parse().unwrap();
        while socket.inbox.len() < length {
            assert!(socket.fill().await, "expected a body of {length} bytes, got the end of the stream");
        }
        answer.body = serde_json::from_slice(&socket.inbox[..length]).unwrap_or(Value::Null);
    }
    (answer, socket)
}

/// The headers of a valid upgrade request, without token and subprotocol.
pub const HANDSHAKE: [(&str, &str); 4] = [
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// An upgraded connection.
pub struct RawSocket {
    codec: Codec,
    reader: OwnedReadHalf,
    writer: Arc<Mutex<OwnedWriteHalf>>,
    inbox: Vec<u8>,
}

impl RawSocket {
    /// Connects, reads up to `mailbox.drained`, and returns the `welcome` event too.
    pub async fn connect(server: &impl Server, token: &str, codec: Codec) -> (Self, Value) {
        Self::connect_from([127, 0, 0, 1], server, token, codec).await
    }

    /// Like [`connect`](Self::connect), from this local address.
    pub async fn connect_from(source: [u8; 4], server: &impl Server, token: &str, codec: Codec) -> (Self, Value) {
        Self::open_on(connect_from(source, server).await, server, token, codec).await
    }

    /// Like [`connect_from`](Self::connect_from). The kernel keeps only about 5 KB of what the test does not read.
    pub async fn connect_narrow(source: [u8; 4], server: &impl Server, token: &str, codec: Codec) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        Self::open_on(connect_socket_from(socket, source, server).await, server, token, codec).await.0
    }

    async fn open_on(stream: TcpStream, server: &impl Server, token: &str, codec: Codec) -> (Self, Value) {
        let bearer = format!("Bearer {token}");
        let more = [("authorization", bearer.as_str()), ("sec-websocket-protocol", codec.subprotocol())];
        let (answer, mut socket) = request_upgrade_on(stream, server, &[&HANDSHAKE[..], &more].concat()).await;
        assert_eq!(answer.status, 101, "{}", answer.body);
        socket.codec = codec;
        let welcome = socket.message().await.expect("expected a welcome, got a close");
        assert_eq!(welcome["event"], "welcome", "expected a welcome as the first frame");
        // `prekeys.low` events may come before it.
        while socket.message().await.expect("expected mailbox.drained, got a close")["event"] != "mailbox.drained" {}
        (socket, welcome)
    }

    /// Sends bytes unchanged. Errors are ignored: if the server has closed the connection, the next read shows it.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.writer.lock().await.write_all(bytes).await;
    }

    /// Sends bytes in a background task, so that the test can read (or not) at the same time.
    pub fn send_in_background(&self, bytes: Vec<u8>) {
        let writer = self.writer.clone();
        tokio::spawn(async move { writer.lock().await.write_all(&bytes).await });
    }

    /// Sends bytes, and then one more five times a second until the connection ends, in a background task. It keeps the
    /// connection open until it is aborted.
    pub fn drip_in_background(&self, bytes: Vec<u8>) -> JoinHandle<()> {
        let writer = self.writer.clone();
        tokio::spawn(async move {
            let mut sent = writer.lock().await.write_all(&bytes).await;
            while sent.is_ok() {
                tokio::time::sleep(Duration::from_millis(200)).await;
                sent = writer.lock().await.write_all(&[7]).await;
            }
        })
    }

    /// Sends bytes until the server reads none for a second, and returns how many were sent. Panics if it reads all.
    pub async fn send_until_stuck(&mut self, bytes: &[u8]) -> usize {
        let mut writer = self.writer.lock().await;
        let mut sent = 0;
        while sent < bytes.len() {
            match timeout(Duration::from_secs(1), writer.write(&bytes[sent..])).await {
                Ok(written) => sent += written.unwrap(),
                Err(_) => return sent,
            }
        }
        panic!("expected the server to stop reading, but it read all {sent} bytes");
    }

    /// Closes the sending side of TCP; reading stays possible.
    pub async fn shutdown(&mut self) {
        let _ = self.writer.lock().await.shutdown().await;
    }

    /// Sends a value as one data frame in the codec's encoding.
    pub async fn send_value(&mut self, value: &Value) {
        let bytes = data(self.codec, &encode(self.codec, value));
        self.send(&bytes).await;
    }

    /// Sends `keys.status` and returns the reply, skipping all other frames.
    pub async fn status(&mut self, id: u32) -> Value {
        self.send_value(&json!({ "id": id, "op": "keys.status" })).await;
        self.reply(id).await
    }

    /// Returns the reply to a request, skipping all other frames.
    pub async fn reply(&mut self, id: u32) -> Value {
        loop {
            let message =
                self.message().await.unwrap_or_else(|| panic!("expected a reply to request {id}, got a close"));
            if message["id"] == id {
                return message;
            }
        }
    }

    async fn fill(&mut self) -> bool {
        let mut chunk = vec![0; 16 * 1024];
        match timeout(PATIENCE * 2, self.reader.read(&mut chunk))
            .await
            .expect("timed out waiting for the server to send or close")
        {
            Ok(0) | Err(_) => false,
            Ok(n) => {
                self.inbox.extend_from_slice(&chunk[..n]);
                true
            }
        }
    }

    /// Returns the next frame's first header byte and payload, or `None` if the server has closed TCP.
    pub async fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((start, end)) = span(&self.inbox) {
                let payload = self.inbox[start..end].to_vec();
                let head = self.inbox[0];
                self.inbox.drain(..end);
                return Some((head, payload));
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// Returns the next data frame, decoded, or `None` if the server closes.
    pub async fn message(&mut self) -> Option<Value> {
        loop {
            match (self.frame().await?, self.codec) {
                ((TEXT, payload), Codec::Json) => return Some(serde_json::from_slice(&payload).unwrap()),
                ((BINARY, payload), Codec::MsgPack) => return Some(rmp_serde::from_slice(&payload).unwrap()),
                ((PING | PONG, _), _) => {}
                ((CLOSE, _), _) => return None,
                (frame, _) => panic!("unexpected frame {frame:?}"),
            }
        }
    }

    /// Skips to the Close frame and returns its code: 1005 if the frame has none, 1006 if TCP ends without a Close frame.
    /// Asserts that the server closes TCP after it.
    pub async fn close_code(&mut self) -> u16 {
        loop {
            match self.frame().await {
                None => return 1006,
                Some((CLOSE, payload)) => {
                    self.shutdown().await;
                    assert!(self.frame().await.is_none(), "expected the end of the stream after the Close frame");
                    return payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                }
                Some(_) => {}
            }
        }
    }

    /// Resets the TCP connection.
    pub fn reset(self) {
        self.reader.as_ref().set_zero_linger().unwrap();
        // Dropping the write half would send a FIN first.
        Arc::into_inner(self.writer).unwrap().into_inner().forget();
    }
}

/// Returns the start and end of the first frame's payload, if the frame is complete.
fn span(bytes: &[u8]) -> Option<(usize, usize)> {
    let second = *bytes.get(1)?;
    assert_eq!(second & 0x80, 0, "a server must not mask its frames");
    let (start, length) = match second {
        126 => (4, u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()).into()),
        127 => (10, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap())).unwrap()),
        short => (2, short.into()),
    };
    (bytes.len() >= start + length).then_some((start, start + length))
}

/// Encodes a value with the codec.
pub fn encode(codec: Codec, value: &Value) -> Vec<u8> {
    match codec {
        Codec::Json => value.to_string().into_bytes(),
        Codec::MsgPack => rmp_serde::to_vec_named(value).unwrap(),
    }
}

/// Builds a masked data frame of the codec's kind.
pub fn data(codec: Codec, payload: &[u8]) -> Vec<u8> {
    frame(if codec == Codec::Json { TEXT } else { BINARY }, payload)
}

/// Builds a masked frame.
pub fn frame(head: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(head, payload.len() as u64);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

const MASK: [u8; 4] = [0x5a, 0x1c, 0xe3, 0x77];

/// Builds the header of a masked frame, with the shortest encoding of the length.
pub fn header(head: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![head];
    match length {
        0..=125 => bytes.push(0x80 | u8::try_from(length).unwrap()),
        126..=0xffff => {
            bytes.push(0xfe);
            bytes.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        }
        _ => {
            bytes.push(0xff);
            bytes.extend_from_slice(&length.to_be_bytes());
        }
    }
    bytes.extend_from_slice(&MASK);
    bytes
}
