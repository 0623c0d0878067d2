//! Services that hang, drip, flood or answer garbage harm nobody but themselves.

use sealwire_push::{Outcome, Reason, Sender, Target};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::support::{
    Service, Speaks, answer, answer_with, impatient_settings, sender, subscribe, until, wake, web_push_settings,
};

const TIMEOUT: Outcome = Outcome::Later { wait: None, reason: Reason::Timeout };
const PROTOCOL: Outcome = Outcome::Later { wait: None, reason: Reason::Protocol };
const CONNECTION: Outcome = Outcome::Later { wait: None, reason: Reason::Connection };

async fn hang(stream: TcpStream) {
    let _stream = stream;
    std::future::pending::<()>().await;
}

/// Reads a whole request. Its body is encrypted and has one size, so its end is known.
async fn read_request(stream: &mut TcpStream) {
    let mut request = Vec::new();
    let length = loop {
        if stream.read_buf(&mut request).await.unwrap() == 0 {
            return;
        }
        let text = String::from_utf8_lossy(&request).to_lowercase();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let length = head.split_once("content-length: ").unwrap().1.lines().next().unwrap();
            break head.len() + 4 + length.parse::<usize>().unwrap();
        }
    };
    while request.len() < length && stream.read_buf(&mut request).await.unwrap() > 0 {}
}

/// A service that reads a request, and then sends `chunk` again and again until the client goes away.
async fn flood(head: &'static str, chunk: &'static [u8]) -> Service {
    Service::raw(move |mut stream| async move {
        read_request(&mut stream).await;
        stream.write_all(head.as_bytes()).await.unwrap();
        while stream.write_all(chunk).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
}

async fn send(sender: &Sender, service: &Service) -> Outcome {
    sender.send(&subscribe(&service.url("/"), sender), &wake()).await
}

fn hold(sender: &Sender, target: &Target, sends: &mut JoinSet<Outcome>) {
    let (sender, target) = (sender.clone(), target.clone());
    sends.spawn(async move { sender.send(&target, &wake()).await });
}

#[tokio::test]
async fn a_service_that_does_not_answer_is_given_up() {
    let sender = sender(impatient_settings());
    let silent = Service::raw(hang).await;
    assert_eq!(send(&sender, &silent).await, TIMEOUT);
    // TLS that is not spoken.
    let target = subscribe(&format!("https://{}/", silent.address), &sender);
    assert_eq!(sender.send(&target, &wake()).await, TIMEOUT);
    assert_eq!(silent.connections(), 2);
}

#[tokio::test]
async fn a_service_that_drips_its_head_is_given_up() {
    let sender = sender(impatient_settings());
    let service = Service::raw(|mut stream| async move {
        read_request(&mut stream).await;
        let mut head = b"HTTP/1.1 201 Created\r\nx-header: ".as_slice().iter().chain(std::iter::repeat(&b'a'));
        while let Some(&byte) = head.next()
            && stream.write_all(&[byte]).await.is_ok()
        {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(send(&sender, &service).await, TIMEOUT);
}

#[tokio::test]
async fn a_service_that_answers_interim_for_ever_is_given_up() {
    let sender = sender(impatient_settings());
    let service = flood("", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await;
    assert_eq!(send(&sender, &service).await, TIMEOUT);
    until(|| service.ended() == 1).await;
}

#[tokio::test]
async fn heads_are_limited() {
    let sender = sender(web_push_settings());
    let service = flood("HTTP/1.1 201 Created\r\nx-header: ", &[b'a'; 4096]).await;
    assert_eq!(send(&sender, &service).await, PROTOCOL);
    until(|| service.ended() == 1).await;
}

#[tokio::test]
async fn heads_are_limited_over_http2_too() {
    let service = Service::start(Speaks::Https2, |_| answer_with(201, "x-header", &"a".repeat(20_000))).await;
    let sender = sender(web_push_settings());
    let target = subscribe(&service.https_url("127.0.0.1", "/"), &sender);
    assert_eq!(sender.send(&target, &wake()).await, CONNECTION);
}

#[tokio::test]
async fn bodies_without_end_do_not_matter() {
    let sender = sender(web_push_settings());
    let accepted = flood("HTTP/1.1 201 Created\r\n\r\n", &[b'a'; 4096]).await;
    assert_eq!(send(&sender, &accepted).await, Outcome::Delivered);
    let gone = flood("HTTP/1.1 410 Gone\r\ncontent-length: 1000000000\r\n\r\n", &[b'a'; 4096]).await;
    assert_eq!(send(&sender, &gone).await, Outcome::Gone);
    until(|| accepted.ended() == 1 && gone.ended() == 1).await;
    assert_eq!(sender.usage().under_way, 0);
}

#[tokio::test]
async fn garbage_and_closed_connections_are_tried_later() {
    let sender = sender(web_push_settings());
    let garbage = Service::raw(|mut stream| async move {
        read_request(&mut stream).await;
        stream.write_all(b"\x16\x03\x01 garbage\r\n\r\n").await.unwrap();
    })
    .await;
    assert_eq!(send(&sender, &garbage).await, PROTOCOL);
    let closed = Service::raw(|mut stream| async move { read_request(&mut stream).await }).await;
    assert_eq!(send(&sender, &closed).await, CONNECTION);
    // Nothing listens where a service was.
    let address = Service::raw(hang).await.address;
    let target = subscribe(&format!("http://{address}/"), &sender);
    assert_eq!(sender.send(&target, &wake()).await, CONNECTION);
}

#[tokio::test]
async fn one_origin_that_hangs_takes_only_its_own_places() {
    let hanging = Service::raw(hang).await;
    let working = Service::start(Speaks::Http1, |_| answer(201, "")).await;
    let sender = sender(web_push_settings());
    let target = subscribe(&hanging.url("/"), &sender);
    let mut sends = JoinSet::new();
    for _ in 0..200 {
        hold(&sender, &target, &mut sends);
    }
    // 16 are under way and 64 wait; the others are refused at once.
    for _ in 0..120 {
        assert!(matches!(sends.join_next().await.unwrap().unwrap(), Outcome::Busy { .. }));
    }
    until(|| hanging.connections() == 16).await;
    let usage = sender.usage();
    assert_eq!((usage.under_way, usage.waiting), (16, 64));
    for _ in 0..20 {
        assert_eq!(send(&sender, &working).await, Outcome::Delivered);
    }
    assert_eq!(hanging.connections(), 16);
    sends.shutdown().await;
    let usage = sender.usage();
    assert_eq!((usage.under_way, usage.waiting), (0, 0));
}

#[tokio::test]
async fn many_origins_that_hang_leave_half_of_the_places() {
    let mut settings = web_push_settings();
    settings.limits.under_way = 64;
    let sender = sender(settings);
    let working = Service::start(Speaks::Http1, |_| answer(201, "")).await;
    for _ in 0..32 {
        assert_eq!(send(&sender, &working).await, Outcome::Delivered);
    }
    let mut hanging = Vec::new();
    let mut sends = JoinSet::new();
    for _ in 0..8 {
        let service = Service::raw(hang).await;
        for _ in 0..16 {
            hold(&sender, &subscribe(&service.url("/"), &sender), &mut sends);
        }
        hanging.push(service);
    }
    until(|| sender.usage().under_way == 32 && sender.usage().waiting == 96).await;
    for _ in 0..20 {
        assert_eq!(send(&sender, &working).await, Outcome::Delivered);
    }
    sends.shutdown().await;
}
