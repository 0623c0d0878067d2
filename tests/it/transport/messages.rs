//! Echoed messages, violations of the framing, and how connections end.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};
use tokio_tungstenite::{connect_async, tungstenite::Message};

use super::{
    client::close_code,
    eventually,
    server::{MAX_MESSAGE, Server},
};
use crate::support::{
    PATIENCE,
    raw::{BINARY, CLOSE, PING, PONG, TEXT, frame, header},
};

#[tokio::test]
async fn messages_of_every_kind_and_size_are_echoed() {
    let server = Server::start();
    let mut client = server.open("/echo").await;
    for size in [0, 1, 125, 126, 4096, 65_535, 65_536, 524_288] {
        let payload = vec![b'x'; size];
        client.send(&frame(BINARY, &payload)).await;
        assert_eq!(client.receive().await, (BINARY, payload));
    }
    client.send(&frame(TEXT, "grüß".as_bytes())).await;
    assert_eq!(client.receive().await, (TEXT, "grüß".as_bytes().to_vec()));
    client.send(&[frame(0x01, b"in "), frame(PING, b"!"), frame(0x80, b"parts")].concat()).await;
    assert_eq!(client.receive().await, (PONG, b"!".to_vec()));
    assert_eq!(client.receive().await, (TEXT, b"in parts".to_vec()));
    client.send(&frame(CLOSE, &1000u16.to_be_bytes())).await;
    assert_eq!(close_code(&client.receive().await), 1000);
    assert!(client.ends_orderly().await);
    drop(client);
    server.all_connections_gone().await;
}

#[tokio::test]
async fn a_standard_websocket_client_is_served() {
    let server = Server::start();
    let (mut socket, _) = connect_async(format!("ws://{}/echo", server.address)).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("hello"));
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
    server.all_connections_gone().await;
}

#[tokio::test]
async fn a_flood_of_small_frames_is_echoed_in_order() {
    let server = Server::start();
    let mut client = server.open("/echo").await;
    let (mut reader, mut writer) = client.stream.split();
    let flood: Vec<u8> = (0..20_000u32).flat_map(|n| frame(BINARY, &n.to_be_bytes())).collect();
    let expected: Vec<u8> = (0..20_000u32).flat_map(|n| [&[BINARY, 4][..], &n.to_be_bytes()].concat()).collect();
    let mut answer = vec![0; expected.len()];
    let (sent, received) = tokio::join!(writer.write_all(&flood), timeout(PATIENCE, reader.read_exact(&mut answer)));
    sent.unwrap();
    received.unwrap().unwrap();
    assert!(answer == expected);
}

#[tokio::test]
async fn an_oversized_frame_gets_a_close_code_before_its_payload_is_read() {
    let server = Server::start();
    for length in [MAX_MESSAGE + 1, 200_000_000, 1 << 62] {
        let mut client = server.open("/echo").await;
        client.send(&[frame(TEXT, b"fine"), header(BINARY, length)].concat()).await;
        let (mut reader, mut writer) = client.stream.split();
        let read = AtomicBool::new(false);
        // The client keeps sending until it has read the close frame and the end of the stream.
        let sending = async {
            let junk = vec![0; 64 * 1024];
            while writer.write_all(&junk).await.is_ok() {
                if read.load(Ordering::SeqCst) {
                    return;
                }
            }
        };
        let mut received = Vec::new();
        let reading = async {
            let end = timeout(PATIENCE, reader.read_to_end(&mut received)).await.unwrap();
            read.store(true, Ordering::SeqCst);
            end
        };
        let ((), end) = tokio::join!(sending, reading);
        let expected = [&[TEXT, 4][..], b"fine", &[CLOSE, 2], &4505u16.to_be_bytes()].concat();
        assert_eq!(received, expected);
        assert!(end.is_ok(), "an orderly end, not a reset");
    }
    server.all_connections_gone().await;
}

#[tokio::test]
async fn a_framing_violation_is_answered_after_the_frames_before_it() {
    let server = Server::start();
    let mut client = server.open("/echo").await;
    client.send(&[frame(TEXT, b"fine"), vec![TEXT, 5], b"plain".to_vec()].concat()).await;
    assert_eq!(client.receive().await, (TEXT, b"fine".to_vec()));
    assert_eq!(close_code(&client.receive().await), 4504);
    assert!(client.ends_orderly().await);
}

#[tokio::test]
async fn bytes_after_a_close_frame_are_ignored() {
    let server = Server::start();
    let mut client = server.open("/echo").await;
    client.send(&[frame(CLOSE, &1000u16.to_be_bytes()), vec![0xff; 100]].concat()).await;
    assert_eq!(close_code(&client.receive().await), 1000);
    assert!(client.ends_orderly().await);
}

#[tokio::test]
async fn a_client_that_has_closed_its_sending_side_still_gets_its_replies() {
    let server = Server::start();
    let mut client = server.open("/echo").await;
    client.send(&frame(TEXT, b"last words")).await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.receive().await, (TEXT, b"last words".to_vec()));
    assert!(client.ends_orderly().await);
    server.all_connections_gone().await;
}

#[tokio::test]
async fn a_client_that_never_closes_is_disconnected_soon_after_the_close_frame() {
    let server = Server::start();
    let mut client = server.open("/echo").await;
    client.send(&frame(CLOSE, b"")).await;
    assert_eq!(client.receive().await.0, CLOSE);
    // The client keeps sending and never closes, so neither the end of its stream nor silence ends the server's wait.
    let started = Instant::now();
    while client.stream.write_all(b"still here").await.is_ok() {
        assert!(started.elapsed() < PATIENCE);
        // Often enough that the client is never silent for long.
        sleep(Duration::from_millis(50)).await;
    }
    server.all_connections_gone().await;
}

#[tokio::test]
async fn a_connection_that_is_reset_releases_its_reservations() {
    let server = Server::start();
    for path in ["/echo", "/push"] {
        let mut client = server.open(path).await;
        client.send(&[header(BINARY, 300_000), vec![7; 299_000]].concat()).await;
        eventually(|| path == "/push" || server.tuning.inbound.in_use() == 300_000).await;
        client.stream.set_zero_linger().unwrap();
        drop(client);
        server.all_connections_gone().await;
    }
    eventually(|| server.probe.ended.load(Ordering::SeqCst) == 2).await;
}
