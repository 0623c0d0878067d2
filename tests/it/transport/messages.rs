//! Messages there and back, breaches of framing, and the end of a connection.

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
async fn carries_every_kind_of_message() {
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
async fn speaks_with_a_stock_client() {
    let server = Server::start();
    let (mut socket, _) = connect_async(format!("ws://{}/echo", server.address)).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("hello"));
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
    server.all_connections_gone().await;
}

#[tokio::test]
async fn a_flood_of_small_frames_comes_back_in_order() {
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
async fn an_oversized_frame_is_refused_by_its_header_and_the_sender_learns_why() {
    let server = Server::start();
    for length in [MAX_MESSAGE + 1, 200_000_000, 1 << 62] {
        let mut client = server.open("/echo").await;
        client.send(&[frame(TEXT, b"fine"), header(BINARY, length)].concat()).await;
        let (mut reader, mut writer) = client.stream.split();
        let read = AtomicBool::new(false);
        // The sender goes on for as long as it has not read the close and the end behind it.
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
async fn a_breach_of_framing_is_answered_after_the_frames_before_it() {
    let server = Server::start();
    let mut client = server.open("/echo").await;
    client.send(&[frame(TEXT, b"fine"), vec![TEXT, 5], b"plain".to_vec()].concat()).await;
    assert_eq!(client.receive().await, (TEXT, b"fine".to_vec()));
    assert_eq!(close_code(&client.receive().await), 4504);
    assert!(client.ends_orderly().await);
}

#[tokio::test]
async fn what_follows_a_close_frame_is_ignored() {
    let server = Server::start();
    let mut client = server.open("/echo").await;
    client.send(&[frame(CLOSE, &1000u16.to_be_bytes()), vec![0xff; 100]].concat()).await;
    assert_eq!(close_code(&client.receive().await), 1000);
    assert!(client.ends_orderly().await);
}

#[tokio::test]
async fn a_half_closed_peer_gets_what_it_asked_for_and_an_end() {
    let server = Server::start();
    let mut client = server.open("/echo").await;
    client.send(&frame(TEXT, b"last words")).await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.receive().await, (TEXT, b"last words".to_vec()));
    assert!(client.ends_orderly().await);
    server.all_connections_gone().await;
}

#[tokio::test]
async fn a_peer_that_does_not_close_after_the_end_is_not_waited_for_long() {
    let server = Server::start();
    let mut client = server.open("/echo").await;
    client.send(&frame(CLOSE, b"")).await;
    assert_eq!(client.receive().await.0, CLOSE);
    // It sends for ever and never closes: neither end of the stream nor silence ends the linger.
    let started = Instant::now();
    while client.stream.write_all(b"still here").await.is_ok() {
        assert!(started.elapsed() < PATIENCE);
        // Often enough that it is never silent for long.
        sleep(Duration::from_millis(50)).await;
    }
    server.all_connections_gone().await;
}

#[tokio::test]
async fn a_peer_that_vanishes_leaves_nothing_behind() {
    let server = Server::start();
    for path in ["/echo", "/push"] {
        let mut client = server.open(path).await;
        client.send(&header(BINARY, 300_000)).await;
        eventually(|| path == "/push" || server.tuning.inbound.in_use() == 300_000).await;
        client.stream.set_zero_linger().unwrap();
        drop(client);
        server.all_connections_gone().await;
    }
    eventually(|| server.probe.ended.load(Ordering::SeqCst) == 2).await;
}
