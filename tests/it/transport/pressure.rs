//! Backpressure in both directions, and the memory budget for large messages.

use std::sync::atomic::{AtomicU64, Ordering};

use sealwire::socket::transport::{SharedBudget, frame_bytes};
use tokio::io::AsyncWriteExt;

use super::{
    client::close_code,
    eventually,
    server::{COUNTED, Server},
};
use crate::support::raw::{BINARY, PING, PONG, TEXT, frame, header};

#[tokio::test]
async fn a_wire_counts_every_byte_of_every_frame() {
    let server = Server::start();
    let mut client = server.open("/count").await;
    for size in COUNTED {
        assert_eq!(client.receive().await.1.len(), size);
    }
    assert!(client.ends_orderly().await);
    let given = server.probe.given.load(Ordering::SeqCst);
    assert_eq!(given, server.probe.written.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_client_that_does_not_read_blocks_its_handler() {
    let server = Server::start();
    let client = server.open("/push").await;
    let given = server.settled(|| server.probe.given.load(Ordering::SeqCst)).await;
    let written = server.probe.written.load(Ordering::SeqCst);
    assert!(given > 0 && given - written <= 64 * 1024 + 2 * frame_bytes(16 * 1024), "{given} {written}");
    drop(client);
    server.all_connections_gone().await;
}

#[tokio::test]
async fn a_handler_that_does_not_read_blocks_its_client() {
    let server = Server::start();
    let mut client = server.open("/mute").await;
    let message = frame(BINARY, &vec![7; 60_000]);
    let sent = AtomicU64::new(0);
    let sending = async {
        while client.stream.write_all(&message).await.is_ok() {
            sent.fetch_add(message.len() as u64, Ordering::SeqCst);
        }
    };
    let stopped_at = tokio::select! {
        () = sending => panic!("the connection ended"),
        sent = server.settled(|| sent.load(Ordering::SeqCst)) => sent,
    };
    // The kernel's buffers on both sides take some megabytes; the server adds one chunk.
    assert!(stopped_at < 32 << 20, "{stopped_at} bytes were taken");
    assert!(server.tuning.inbound.in_use() <= 60_000 + 16_384, "one message, and the beginning of the next");
    client.stream.set_zero_linger().unwrap();
}

#[tokio::test]
async fn memory_is_reserved_as_bytes_arrive_and_not_by_the_declared_length() {
    let server = Server::start();
    let mut client = server.open("/echo").await;
    client.send(&header(BINARY, 400_000)).await;
    for (bytes, reserved) in [(4096, 0), (1, 16_384), (16_000, 32_768), (379_902, 400_000)] {
        client.send(&vec![7; bytes]).await;
        eventually(|| server.tuning.inbound.in_use() == reserved).await;
    }
    client.send(&[7]).await;
    assert_eq!(client.receive().await.1.len(), 400_000);
    eventually(|| server.tuning.inbound.in_use() == 0).await;
}

#[tokio::test]
async fn a_message_that_needs_memory_displaces_the_oldest_unfinished_one() {
    let server = Server::with_budgets(SharedBudget::new(600_000, 600_000), 10);
    let mut oldest = server.open("/echo").await;
    oldest.send(&[header(BINARY, 400_000), vec![7; 399_999]].concat()).await;
    eventually(|| server.tuning.inbound.in_use() == 400_000).await;
    let mut second = server.open("/echo").await;
    second.send(&[header(BINARY, 100_000), vec![7; 99_999]].concat()).await;
    eventually(|| server.tuning.inbound.in_use() == 500_000).await;

    let mut newcomer = server.open("/echo").await;
    let large = vec![7; 300_000];
    newcomer.send(&[frame(TEXT, b"small"), frame(BINARY, &large)].concat()).await;
    assert_eq!(newcomer.receive().await, (TEXT, b"small".to_vec()));
    assert_eq!(newcomer.receive().await, (BINARY, large));
    assert_eq!(close_code(&oldest.receive().await), 4003);
    second.send(&[7]).await;
    assert_eq!(second.receive().await.1.len(), 100_000, "one was enough");
    eventually(|| server.tuning.inbound.in_use() == 0).await;
}

#[tokio::test]
async fn a_large_message_stays_reserved_until_its_reader_asks_for_the_next() {
    let server = Server::start();
    let mut client = server.open("/sip").await;
    client.send(&frame(BINARY, &[7; 10_000])).await;
    eventually(|| server.probe.ended.load(Ordering::SeqCst) == 1).await;
    assert_eq!(server.tuning.inbound.in_use(), 10_000);
    server.probe.given.store(1, Ordering::SeqCst);
    eventually(|| server.tuning.inbound.in_use() == 0).await;
}

#[tokio::test]
async fn a_fragmented_message_reserves_memory_for_all_its_fragments() {
    let server = Server::start();
    let mut client = server.open("/echo").await;
    client.send(&frame(0x02, &[7; 3000])).await;
    client.send(&frame(PING, b"")).await;
    assert_eq!(client.receive().await.0, PONG);
    assert_eq!(server.tuning.inbound.in_use(), 0, "still small");
    client.send(&frame(0x00, &[7; 3000])).await;
    eventually(|| server.tuning.inbound.in_use() == 16_384).await;
    client.send(&frame(0x00, &vec![7; 20_000])).await;
    eventually(|| server.tuning.inbound.in_use() == 32_768).await;
    client.send(&frame(0x80, &[7; 3000])).await;
    assert_eq!(client.receive().await, (BINARY, vec![7; 29_000]));
    eventually(|| server.tuning.inbound.in_use() == 0).await;
}

#[tokio::test]
async fn aborting_disconnects_a_client_that_does_not_read() {
    let server = Server::start();
    let mut client = server.open("/abort").await;
    client.send(&frame(TEXT, b"go")).await;
    eventually(|| server.probe.ended.load(Ordering::SeqCst) == 1).await;
    server.all_connections_gone().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected_soon_after_its_handler_ends() {
    let server = Server::start();
    let client = server.open("/leave").await;
    eventually(|| server.probe.ended.load(Ordering::SeqCst) == 1).await;
    server.all_connections_gone().await;
    drop(client);
}
