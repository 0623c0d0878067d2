//! Who takes more than their share is refused or slowed, by a clear answer, and nobody else notices.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::support::{
    Codec, PATIENCE, Person, Server, Socket, TestApp, eventually,
    http::call,
    problem::assert_problem,
    raw::{Answer, BINARY, HANDSHAKE, RawSocket, connect_from, header, knock_from},
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
async fn upgrade(app: &TestApp, source: [u8; 4], person: &Person, forwarded: Option<&str>) -> (Answer, RawSocket) {
    let bearer = format!("Bearer {}", person.token);
    let mut headers = HANDSHAKE.to_vec();
    headers.push(("authorization", &bearer));
    headers.extend(forwarded.map(|address| ("x-forwarded-for", address)));
    knock_from(source, app, &headers).await
}

async fn people(app: &TestApp, count: usize) -> Vec<Person> {
    let mut people = Vec::new();
    for index in 0..count {
        people.push(sign_in(app, &format!("person{index}@example.org")).await);
    }
    people
}

fn assert_upgrade_refused(answer: &Answer) {
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
    let mut statuses = Vec::new();
    for _ in 0..60 {
        statuses.push(upgrade(&app, HERE, &nobody, Some("192.0.2.1")).await.0.status);
    }
    let seen = |status| statuses.iter().filter(|seen| **seen == status).count();
    assert!(seen(401) >= 20 && seen(429) > 10 && seen(401) + seen(429) == 60, "{statuses:?}");
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
    socket.settle().await;
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
    let (address, began) = (app.address(), Instant::now());
    let flood = tokio::spawn(async move {
        let (mut let_in, mut refused) = (0, 0);
        while began.elapsed() < Duration::from_secs(5) {
            let round = (0..50).map(|_| async move {
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                socket.bind((HERE, 0).into()).unwrap();
                let mut stream = socket.connect(address).await.unwrap();
                answer(&mut stream).await
            });
            for answer in join_all(round).await {
                match answer.0 {
                    200 => let_in += 1,
                    429 => {
                        assert_refused(answer, "rate_limited");
                        refused += 1;
                    }
                    // Beyond so many at a time nobody is told why.
                    0 => refused += 1,
                    other => panic!("{other}"),
                }
            }
        }
        (let_in, refused)
    });
    while !flood.is_finished() {
        let asked = Instant::now();
        let (answer, mut socket) = upgrade(&app, THERE, &person, None).await;
        assert_eq!(answer.status, 101);
        assert!(socket.status(1).await["result"].is_object());
        assert!(asked.elapsed() < Duration::from_secs(3), "it took {:?}", asked.elapsed());
        sleep(Duration::from_millis(100)).await;
    }
    let (let_in, refused) = flood.await.unwrap();
    // Two hundred at once, then ten a second.
    let most = 201 + 10 * (began.elapsed().as_secs() + 1);
    assert!((200..=most).contains(&let_in) && refused > 100, "{let_in} were let in, {refused} refused");
    eventually("the network may connect again", || async {
        works(&mut connect_from(HERE, &app).await).await.then_some(())
    })
    .await;
}

/// Keeps a connection alive by a byte now and then, and gives how long it lasted and what was answered.
async fn drip(app: &TestApp, begin: &str, drop_by_drop: &str, reads: bool) -> (Duration, String) {
    let mut stream = connect_from(HERE, app).await;
    let (began, mut answer, mut drops) = (Instant::now(), Vec::new(), drop_by_drop.bytes().cycle());
    // All of it, or as much as the server takes.
    let _ = timeout(Duration::from_secs(2), stream.write_all(begin.as_bytes())).await;
    let mut chunk = [0; 4096];
    loop {
        assert!(began.elapsed() < Duration::from_secs(90), "it is still open after {:?}", began.elapsed());
        if reads {
            match timeout(Duration::from_millis(500), stream.read(&mut chunk)).await {
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(n)) => answer.extend_from_slice(&chunk[..n]),
                Err(_) => {}
            }
        } else {
            sleep(Duration::from_millis(500)).await;
        }
        if let Some(byte) = drops.next()
            && let Err(error) = stream.try_write(&[byte])
            && error.kind() != std::io::ErrorKind::WouldBlock
        {
            break;
        }
    }
    (began.elapsed(), String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_slow_on_purpose_is_cut_off_and_nobody_waits_for_them() {
    const EACH: usize = 40;
    let post = "POST /v1/auth/otp HTTP/1.1\r\nHost: x\r\n";
    let declared = format!("{post}Content-Length: 60000\r\n\r\n{{");
    let chunked = format!("{post}Transfer-Encoding: chunked\r\n\r\n");
    let unread = "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n";
    let unread_chunks = "GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n";
    let unfinished_upgrade = "GET /v1/socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: web";
    // Name, what is sent at once, what follows byte by byte, by when it must have ended, and how the answer begins.
    let cases: &[(&str, &str, &str, u64, &str)] = &[
        ("says nothing", "", "", 20, "HTTP/1.1 408 "),
        ("a head by drops", "GET /healthz HTTP/1.1\r\nX: ", "x", 20, "HTTP/1.1 408 "),
        ("an upgrade by drops", unfinished_upgrade, "s", 20, "HTTP/1.1 408 "),
        ("a second head by drops", &format!("{GET}GET "), "x", 60, "HTTP/1.1 200 "),
        ("an idle connection", GET, "", 45, "HTTP/1.1 200 "),
        ("a body by drops", &declared, " ", 35, "HTTP/1.1 400 "),
        ("a body by chunks", &chunked, "1\r\n \r\n", 70, "HTTP/1.1 400 "),
        ("a body that nobody reads", unread, " ", 60, "HTTP/1.1 200 "),
        ("chunks that nobody reads", unread_chunks, " ", 60, "HTTP/1.1 200 "),
    ];
    let app = TestApp::start(&[]);
    let person = sign_in(&app, "alice@example.org").await;
    let socket = Socket::connect(&app, &person.token, Codec::Json).await;
    let drips = cases.iter().flat_map(|(name, begin, drops, within, starts)| {
        let (app, name, starts) = (&app, *name, *starts);
        std::iter::repeat_with(move || async move {
            let (lasted, answer) = drip(app, begin, drops, true).await;
            assert!(answer.starts_with(starts), "{name}: {answer:?} after {lasted:?}");
            assert!(lasted < Duration::from_secs(*within), "{name}: {lasted:?}");
        })
        .take(EACH)
    });
    // Answers that nobody takes: more than the buffers on both sides hold.
    let deaf = async {
        let (lasted, _) = drip(&app, &GET.repeat(200_000), "x", false).await;
        assert!(lasted < Duration::from_secs(80), "{lasted:?}");
    };
    let others = async {
        for _ in 0..50 {
            let asked = Instant::now();
            socket.settle().await;
            assert!(works(&mut connect_from(THERE, &app).await).await);
            assert_eq!(call(&app, Method::GET, "/readyz", None, None).await.0, StatusCode::OK);
            assert!(asked.elapsed() < Duration::from_secs(3), "others wait {:?}", asked.elapsed());
            sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::join!(join_all(drips), deaf, others);
}

/// The worst of some round trips on a socket.
async fn slowest(socket: &Socket, round_trips: usize) -> Duration {
    let mut slowest = Duration::ZERO;
    for _ in 0..round_trips {
        let asked = Instant::now();
        socket.settle().await;
        slowest = slowest.max(asked.elapsed());
        sleep(Duration::from_millis(20)).await;
    }
    slowest
}

/// Sends requests as fast as their replies come, so many under way at a time, and gives how long that took.
async fn flood(socket: &Socket, op: &str, requests: usize) -> Duration {
    let began = Instant::now();
    let lane = || async {
        for _ in 0..requests / 20 {
            let answer = socket.try_request(op, json!({})).await.expect("the socket stays open");
            if let Err(error) = answer {
                assert_eq!(error["code"], "unknown_op", "nothing is refused for its rate: {error}");
            }
        }
    };
    join_all(std::iter::repeat_with(lane).take(20)).await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_asks_too_fast_is_read_more_slowly_and_loses_nothing() {
    let app = TestApp::start(&[("LIMITS__REQUESTS_PER_CONNECTION_SECOND", "50")]);
    let mut sockets = Vec::new();
    for person in people(&app, 3).await {
        sockets.push(Socket::connect(&app, &person.token, Codec::MsgPack).await);
    }
    // Five hundred are free, the others take twenty milliseconds each.
    let (took, cheap, slowest) =
        tokio::join!(flood(&sockets[0], "devices.list", 700), flood(&sockets[1], "x", 4000), slowest(&sockets[2], 100));
    assert!(took > Duration::from_millis(3800), "it was not slowed: {took:?}");
    assert!(cheap < took, "what costs little is slowed later: {cheap:?} and {took:?}");
    assert!(slowest < Duration::from_secs(2), "others wait {slowest:?}");

    let app = TestApp::start(&[("LIMITS__REQUESTS_PER_CONNECTION_SECOND", "0")]);
    let person = sign_in(&app, "alice@example.org").await;
    flood(&Socket::connect(&app, &person.token, Codec::Json).await, "x", 40_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_megabytes_are_refused_by_their_header_and_nobody_notices() {
    let app = TestApp::start(&[]);
    let mut people = people(&app, 9).await;
    let other = Socket::connect(&app, &people.pop().unwrap().token, Codec::Json).await;
    let attack = |person: Person| {
        let app = &app;
        async move {
            for _ in 0..10 {
                let (mut socket, _) = RawSocket::connect(app, &person.token, Codec::MsgPack).await;
                socket.send(&header(BINARY, 200_000_000)).await;
                socket.send_meanwhile(vec![0; 1 << 20]);
                assert_eq!(socket.close_code().await, 4505);
            }
        }
    };
    let (_, slowest) = tokio::join!(join_all(people.into_iter().map(attack)), slowest(&other, 50));
    assert!(slowest < Duration::from_secs(2), "others wait {slowest:?}");
}
