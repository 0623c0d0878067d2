//! Who takes more than their share is refused or slowed, by a clear answer, and nobody else notices.

mod requests;
mod slow;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use futures_util::future::join_all;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    Codec, PATIENCE, Person, Socket, TestApp, eventually,
    problem::assert_problem,
    raw::{BINARY, HANDSHAKE, RawSocket, UpgradeResponse, connect_from, header, request_upgrade_from},
    sign_in,
};

/// Addresses of one network, and of another. The other tests' clients are of neither.
const HERE: [u8; 4] = [127, 0, 1, 1];
const ALSO_HERE: [u8; 4] = [127, 0, 1, 200];
const THERE: [u8; 4] = [127, 0, 2, 1];
const GET: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";

/// Asks once and reads until the connection ends. Gives status (0 where there is none), head and JSON of the answer.
async fn answer(stream: &mut TcpStream) -> (u16, String, Value) {
    let mut bytes = Vec::new();
    let _ = stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await;
    // A reset after the answer is as good as an end.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the server ends the connection");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).map_or(0, |status| status.parse().unwrap());
    (status, head.to_lowercase(), serde_json::from_str(body).unwrap_or(Value::Null))
}

fn assert_refused(answer: (u16, String, Value), code: &str) {
    let (status, head, body) = answer;
    assert_eq!(status, assert_problem(&body["error"], code, "a refused connection"), "{head}");
    assert!(head.contains("\r\nretry-after: ") && head.contains("\r\nconnection: close"), "{head}");
}

/// Whether an ordinary request of a connection is answered.
async fn works(stream: &mut TcpStream) -> bool {
    let mut first = [0; 12];
    stream.write_all(GET.as_bytes()).await.is_ok()
        && timeout(PATIENCE, stream.read_exact(&mut first)).await.unwrap().is_ok()
        && &first == b"HTTP/1.1 200"
}

/// Asks for a socket from an address, maybe through a proxy that names another.
async fn upgrade(
    app: &TestApp,
    source: [u8; 4],
    person: &Person,
    forwarded: Option<&str>,
) -> (UpgradeResponse, RawSocket) {
    let bearer = format!("Bearer {}", person.token);
    let mut headers = HANDSHAKE.to_vec();
    headers.push(("authorization", &bearer));
    headers.extend(forwarded.map(|address| ("x-forwarded-for", address)));
    request_upgrade_from(source, app, &headers).await
}

async fn people(app: &TestApp, count: usize) -> Vec<Person> {
    let mut people = Vec::new();
    for index in 0..count {
        people.push(sign_in(app, &format!("person{index}@example.org")).await);
    }
    people
}

fn assert_upgrade_refused(answer: &UpgradeResponse) {
    assert_eq!(answer.status, assert_problem(&answer.body["error"], "rate_limited", "an upgrade"));
    assert!(answer.header("retry-after").is_some_and(|wait| wait.parse::<u64>().unwrap() > 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_has_its_number_of_sockets() {
    let app = TestApp::start(&[("LIMITS__CONNECTIONS_PER_NETWORK", "2")]);
    let people = people(&app, 5).await;
    let (first, held) = upgrade(&app, HERE, &people[0], None).await;
    let (second, _also_held) = upgrade(&app, ALSO_HERE, &people[1], None).await;
    assert_eq!((first.status, second.status), (101, 101));
    assert_upgrade_refused(&upgrade(&app, HERE, &people[2], None).await.0);
    let (other, _other) = upgrade(&app, THERE, &people[3], None).await;
    assert_eq!(other.status, 101, "another network is not concerned");
    // What a client says of itself does not make it another network.
    assert_upgrade_refused(&upgrade(&app, HERE, &people[2], Some("198.51.100.1")).await.0);
    held.reset();
    eventually("a place is free again", || async {
        (upgrade(&app, HERE, &people[4], None).await.0.status == 101).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_proxy_the_networks_are_those_it_names() {
    let app = TestApp::start(&[
        ("SERVER__TRUSTED_PROXIES", "127.0.1.0/24"),
        ("LIMITS__CONNECTIONS_PER_NETWORK", "1"),
        ("LIMITS__HTTP_CONNECTIONS_PER_NETWORK", "10"),
        ("LIMITS__CONNECTS_PER_NETWORK_SECOND", "1"),
    ]);
    let people = people(&app, 3).await;
    let (first, _first) = upgrade(&app, HERE, &people[0], Some("198.51.100.1")).await;
    let (other, _other) = upgrade(&app, HERE, &people[1], Some("203.0.113.1")).await;
    assert_eq!((first.status, other.status), (101, 101));
    assert_upgrade_refused(&upgrade(&app, HERE, &people[2], Some("198.51.100.2")).await.0);
    // The proxy's own connections are not one network's.
    let mut idle = join_all((0..30).map(|_| connect_from(HERE, &app))).await;
    for stream in &mut idle {
        assert!(works(stream).await);
    }
    // Twenty at once, then one a second; a refused one is judged before its token.
    let nobody = Person { token: "A".repeat(43), ..people[2].clone() };
    let (mut judged, mut refused, began) = (0, 0, Instant::now());
    while refused <= 10 {
        match upgrade(&app, HERE, &nobody, Some("192.0.2.1")).await.0.status {
            401 => judged += 1,
            429 => refused += 1,
            other => panic!("{other}"),
        }
        let most = 20 + began.elapsed().as_secs() + 1;
        assert!(judged <= most, "{judged} were let in, and at most {most} may");
    }
    assert!(judged >= 20, "{judged}");
    assert_eq!(upgrade(&app, HERE, &nobody, Some("192.0.3.1")).await.0.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_has_its_number_of_other_connections() {
    let app = TestApp::start(&[("LIMITS__HTTP_CONNECTIONS_PER_NETWORK", "20")]);
    let mut held = join_all((0..20).map(|_| connect_from(HERE, &app))).await;
    for stream in &mut held {
        assert!(works(stream).await);
    }
    for _ in 0..50 {
        assert_refused(answer(&mut connect_from(ALSO_HERE, &app).await).await, "rate_limited");
    }
    assert!(works(&mut connect_from(THERE, &app).await).await, "another network is not concerned");
    held.pop();
    eventually("a place is free again", || async { works(&mut connect_from(HERE, &app).await).await.then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_do_not_count_among_the_other_connections() {
    let app = TestApp::start(&[("LIMITS__HTTP_CONNECTIONS_PER_NETWORK", "4"), ("SERVER__MAX_HTTP_CONNECTIONS", "8")]);
    let mut sockets = Vec::new();
    for person in people(&app, 10).await {
        let (answer, socket) = upgrade(&app, HERE, &person, None).await;
        assert_eq!(answer.status, 101);
        sockets.push(socket);
    }
    for socket in &mut sockets {
        assert!(socket.status(1).await["result"].is_object());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_has_its_number_of_other_connections_and_its_sockets_keep_working() {
    let app = TestApp::start(&[("SERVER__MAX_HTTP_CONNECTIONS", "30"), ("LIMITS__HTTP_CONNECTIONS_PER_NETWORK", "0")]);
    let person = sign_in(&app, "alice@example.org").await;
    let socket = Socket::connect(&app, &person.token, Codec::Json).await;
    let mut held = Vec::new();
    let mut refused = 0;
    while refused < 10 {
        let mut stream = connect_from(HERE, &app).await;
        if works(&mut stream).await {
            held.push(stream);
            assert!(held.len() <= 30);
        } else {
            refused += 1;
        }
    }
    assert_refused(answer(&mut connect_from(THERE, &app).await).await, "unavailable");
    socket.barrier().await;
    drop(held);
    eventually("it takes connections again", || async {
        works(&mut connect_from(THERE, &app).await).await.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_connects_is_refused_beyond_its_rate_and_others_get_in() {
    let app = TestApp::start(&[("LIMITS__CONNECTS_PER_NETWORK_SECOND", "10")]);
    let person = sign_in(&app, "alice@example.org").await;
    let (others_are_done, began) = (AtomicBool::new(false), Instant::now());
    let flood = async {
        let (mut let_in, mut told, mut cut_off) = (0, 0, 0);
        while told <= 100 || !others_are_done.load(Ordering::Relaxed) {
            let round = (0..50).map(|_| async { answer(&mut connect_from(HERE, &app).await).await });
            for answer in join_all(round).await {
                match answer.0 {
                    200 => let_in += 1,
                    429 => {
                        assert_refused(answer, "rate_limited");
                        told += 1;
                    }
                    // Beyond so many at a time nobody is told why.
                    0 => cut_off += 1,
                    other => panic!("{other}"),
                }
            }
        }
        (let_in, told, cut_off)
    };
    // The flood goes on until they have been served.
    let others = async {
        for _ in 0..30 {
            let (answer, mut socket) = upgrade(&app, THERE, &person, None).await;
            assert_eq!(answer.status, 101);
            assert!(socket.status(1).await["result"].is_object());
        }
        others_are_done.store(true, Ordering::Relaxed);
    };
    let ((let_in, told, cut_off), ()) = tokio::join!(flood, others);
    // Two hundred at once, then ten a second.
    let most = 201 + 10 * (began.elapsed().as_secs() + 1);
    assert!((200..=most).contains(&let_in), "{let_in} were let in, {told} refused, {cut_off} cut off");
    eventually("the network may connect again", || async {
        works(&mut connect_from(HERE, &app).await).await.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_megabytes_are_refused_by_their_header_and_nobody_notices() {
    let app = TestApp::start(&[]);
    let mut people = people(&app, 9).await;
    let other = Socket::connect(&app, &people.pop().unwrap().token, Codec::Json).await;
    let other_is_done = AtomicBool::new(false);
    let attack = |person: Person| {
        let (app, other_is_done) = (&app, &other_is_done);
        async move {
            let mut attempts = 0;
            while attempts < 10 || !other_is_done.load(Ordering::Relaxed) {
                let (mut socket, _) = RawSocket::connect(app, &person.token, Codec::MsgPack).await;
                socket.send(&header(BINARY, 200_000_000)).await;
                socket.send_in_background(vec![0; 1 << 20]);
                assert_eq!(socket.close_code().await, 4505);
                attempts += 1;
            }
        }
    };
    // The attack goes on until the other has its answers.
    let served = async {
        for _ in 0..100 {
            other.barrier().await;
        }
        other_is_done.store(true, Ordering::Relaxed);
    };
    tokio::join!(join_all(people.into_iter().map(attack)), served);
}
