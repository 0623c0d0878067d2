//! Upgrades: which requests become sockets, and how the others are answered.

use sealwire::socket::transport::SharedBudget;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    client::{Client, request},
    server::Server,
};
use crate::support::{
    PATIENCE,
    raw::{TEXT, frame},
};

#[tokio::test]
async fn frames_sent_with_the_upgrade_request_are_not_lost() {
    let server = Server::start();
    let early = [frame(TEXT, b"first"), frame(TEXT, b"second")].concat();
    for cut in [early.len(), 8, 1] {
        let (mut client, head) = Client::upgrade(server.address, "/echo", &early[..cut]).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        client.send(&early[cut..]).await;
        assert_eq!(client.receive().await, (TEXT, b"first".to_vec()));
        assert_eq!(client.receive().await, (TEXT, b"second".to_vec()));
    }
}

#[tokio::test]
async fn a_refused_upgrade_gets_a_complete_response() {
    let server = Server::start();
    let (client, head) = Client::upgrade(server.address, "/refuse", &frame(TEXT, b"too soon")).await;
    assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
    assert!(head.contains("connection: close\r\n"), "{head}");
    assert_eq!(client.read_to_end().await, r#"{"error":{"code":"unauthorized"}}"#);
    server.all_connections_gone().await;
}

#[tokio::test]
async fn an_upgrade_request_to_an_ordinary_path_is_answered_and_the_connection_closed() {
    let server = Server::start();
    let (client, head) = Client::upgrade(server.address, "/page", b"").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("connection: close\r\n"), "{head}");
    assert!(head.contains("content-length: 15\r\n"), "{head}");
    assert_eq!(client.read_to_end().await, "hello 127.0.0.1");
    let (client, head) = Client::upgrade(server.address, "/stream", b"").await;
    assert!(!head.contains("transfer-encoding"), "{head}");
    assert_eq!(client.read_to_end().await, "one two three");
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(request("POST", "/page").as_bytes()).await.unwrap();
    let answer = Client { stream }.read_to_end().await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("0 bytes"), "{answer}");
    server.all_connections_gone().await;
}

#[tokio::test]
async fn ordinary_requests_may_precede_an_upgrade_on_the_same_connection() {
    let server = Server::start();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let get = "GET /page HTTP/1.1\r\nHost: test\r\n\r\n";
    stream.write_all(format!("{get}{get}{}", request("GET", "/echo")).as_bytes()).await.unwrap();
    let mut client = Client { stream };
    client.send(&frame(TEXT, b"after all")).await;
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"after all") {
        bytes.push(timeout(PATIENCE, client.stream.read_u8()).await.unwrap().unwrap());
    }
    let text = String::from_utf8_lossy(&bytes);
    assert_eq!(text.matches("hello 127.0.0.1").count(), 2, "{text}");
    assert_eq!(text.matches("HTTP/1.1 101 ").count(), 1, "{text}");
}

#[tokio::test]
async fn a_full_node_refuses_upgrades() {
    let server = Server::with_budgets(SharedBudget::new(1 << 20, 1 << 20), 1);
    let client = server.open("/echo").await;
    let (other, head) = Client::upgrade(server.address, "/echo", b"").await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(other.read_to_end().await, "full");
    drop(client);
    server.all_connections_gone().await;
    server.open("/echo").await;
}
