//! A raw client that can violate the WebSocket protocol.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{PATIENCE, raw::CLOSE};

pub struct Client {
    pub stream: TcpStream,
}

/// A frame from the server: first byte and payload.
pub type Frame = (u8, Vec<u8>);

/// Returns an upgrade request.
pub fn request(method: &str, path: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

impl Client {
    /// Sends an upgrade request, with `early` in the same segment, and reads the answer's head.
    pub async fn upgrade(address: SocketAddr, path: &str, early: &[u8]) -> (Self, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&[request("GET", path).as_bytes(), early].concat()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
        }
        (Self { stream }, String::from_utf8(head).unwrap())
    }

    /// Sends bytes unchanged.
    pub async fn send(&mut self, bytes: &[u8]) {
        timeout(PATIENCE, self.stream.write_all(bytes)).await.unwrap().unwrap();
    }

    /// Reads the next frame.
    pub async fn receive(&mut self) -> Frame {
        timeout(PATIENCE, async {
            let head = self.stream.read_u8().await.unwrap();
            let length = match self.stream.read_u8().await.unwrap() {
                126 => self.stream.read_u16().await.unwrap().into(),
                127 => self.stream.read_u64().await.unwrap(),
                short => short.into(),
            };
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            self.stream.read_exact(&mut payload).await.unwrap();
            (head, payload)
        })
        .await
        .expect("a frame in time")
    }

    /// Reads to the end of the connection. Returns false if it was reset.
    pub async fn ends_orderly(&mut self) -> bool {
        let mut rest = Vec::new();
        timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await.expect("an end in time").is_ok()
    }

    /// Reads to the end of the connection, and returns what was read as text.
    pub async fn read_to_end(mut self) -> String {
        let mut rest = String::new();
        timeout(PATIENCE, self.stream.read_to_string(&mut rest)).await.unwrap().unwrap();
        rest
    }
}

/// Returns the code of a Close frame.
pub fn close_code((head, payload): &Frame) -> u16 {
    assert_eq!(*head, CLOSE);
    u16::from_be_bytes([payload[0], payload[1]])
}
