//! Overload: clients that exceed a limit are refused or slowed with a clear answer, and other clients are not affected.

mod batches;
mod churn;
mod connections;
mod memory;
mod pairs;
mod requests;
mod seats;
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
    Codec, PATIENCE, Person, Server, Socket, TestApp, eventually,
    problem::assert_problem,
    raw::{BINARY, HANDSHAKE, RawSocket, UpgradeResponse, connect_from, header, request_upgrade_from},
    sign_in,
};

/// Addresses in two networks that no other test uses.
const ADDRESS: [u8; 4] = [127, 0, 1, 1];
const SAME_NETWORK: [u8; 4] = [127, 0, 1, 200];
const OTHER_NETWORK: [u8; 4] = [127, 0, 2, 1];
const GET: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";

/// Sends a request and reads until the connection ends. Returns status (0 if there is no answer), head and JSON body.
async fn request_and_close(stream: &mut TcpStream) -> (u16, String, Value) {
    let mut bytes = Vec::new();
    let _ = stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await;
    // A reset after the answer counts as an end too.
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

/// Returns whether an ordinary request on the connection succeeds.
async fn is_served(stream: &mut TcpStream) -> bool {
    let mut first = [0; 12];
    stream.write_all(GET.as_bytes()).await.is_ok()
        && timeout(PATIENCE, stream.read_exact(&mut first)).await.unwrap().is_ok()
        && &first == b"HTTP/1.1 200"
}

/// Requests a socket from an address, with another address in `X-Forwarded-For` if one is given.
async fn upgrade(
    app: &impl Server,
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

async fn users(app: &TestApp, count: usize) -> Vec<Person> {
    let mut users = Vec::new();
    for index in 0..count {
        users.push(sign_in(app, &format!("user{index}@example.org")).await);
    }
    users
}

fn assert_upgrade_refused(answer: &UpgradeResponse) {
    assert_eq!(answer.status, assert_problem(&answer.body["error"], "rate_limited", "an upgrade"));
    assert!(answer.header("retry-after").is_some_and(|wait| wait.parse::<u64>().unwrap() > 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_may_open_a_limited_number_of_sockets() {
    let app = TestApp::start(&[("LIMITS__CONNECTIONS_PER_NETWORK", "2")]);
    let users = users(&app, 5).await;
    let (first, held) = upgrade(&app, ADDRESS, &users[0], None).await;
    let (second, _also_held) = upgrade(&app, SAME_NETWORK, &users[1], None).await;
    assert_eq!((first.status, second.status), (101, 101));
    assert_upgrade_refused(&upgrade(&app, ADDRESS, &users[2], None).await.0);
    let (other, _other) = upgrade(&app, OTHER_NETWORK, &users[3], None).await;
    assert_eq!(other.status, 101, "another network is not affected");
    // The server does not believe the header of a client that is not a trusted proxy.
    assert_upgrade_refused(&upgrade(&app, ADDRESS, &users[2], Some("198.51.100.1")).await.0);
    held.reset();
    eventually("the network may connect again", || async {
        (upgrade(&app, ADDRESS, &users[4], None).await.0.status == 101).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_trusted_proxy_the_limits_apply_to_the_forwarded_addresses() {
    let app = TestApp::start(&[
        ("SERVER__TRUSTED_PROXIES", "127.0.1.0/24"),
        ("LIMITS__CONNECTIONS_PER_NETWORK", "1"),
        ("LIMITS__HTTP_CONNECTIONS_PER_NETWORK", "10"),
        ("LIMITS__CONNECTS_PER_NETWORK_SECOND", "1"),
    ]);
    let users = users(&app, 3).await;
    let (first, _first) = upgrade(&app, ADDRESS, &users[0], Some("198.51.100.1")).await;
    let (other, _other) = upgrade(&app, ADDRESS, &users[1], Some("203.0.113.1")).await;
    assert_eq!((first.status, other.status), (101, 101));
    assert_upgrade_refused(&upgrade(&app, ADDRESS, &users[2], Some("198.51.100.2")).await.0);
    // The proxy's own connections do not count as those of one network.
    let mut idle = join_all((0..30).map(|_| connect_from(ADDRESS, &app))).await;
    for stream in &mut idle {
        assert!(is_served(stream).await);
    }
    // Twenty upgrades at once, then one a second. The limit is checked before the token.
    let invalid = Person { token: "A".repeat(43), ..users[2].clone() };
    let (mut accepted, mut refused, began) = (0, 0, Instant::now());
    while refused <= 10 {
        match upgrade(&app, ADDRESS, &invalid, Some("192.0.2.1")).await.0.status {
            401 => accepted += 1,
            429 => refused += 1,
            other => panic!("{other}"),
        }
        let most = 20 + began.elapsed().as_secs() + 1;
        assert!(accepted <= most, "{accepted} got past the limit, but at most {most} may");
    }
    assert!(accepted >= 20, "{accepted}");
    assert_eq!(upgrade(&app, ADDRESS, &invalid, Some("192.0.3.1")).await.0.status, 401);
}

/// Each /48 of IPv6 has the limit, and the /40 around it eight times as much.
#[tokio::test(flavor = "multi_thread")]
async fn many_small_ipv6_networks_of_a_wide_one_share_a_limit_of_sockets() {
    let app = TestApp::start(&[("SERVER__TRUSTED_PROXIES", "127.0.1.0/24"), ("LIMITS__CONNECTIONS_PER_NETWORK", "1")]);
    let users = users(&app, 11).await;
    let mut held = Vec::new();
    for (narrow, user) in users[..8].iter().enumerate() {
        let client = format!("2001:db8:{narrow:x}::1");
        let (answer, socket) = upgrade(&app, ADDRESS, user, Some(&client)).await;
        assert_eq!(answer.status, 101);
        held.push(socket);
        assert_upgrade_refused(&upgrade(&app, ADDRESS, &users[8], Some(&client)).await.0);
    }
    assert_upgrade_refused(&upgrade(&app, ADDRESS, &users[8], Some("2001:db8:ff::1")).await.0);
    for (client, user) in [("2001:db8:100::1", &users[8]), ("2001:db9::1", &users[9]), ("192.0.2.1", &users[10])] {
        let (answer, socket) = upgrade(&app, ADDRESS, user, Some(client)).await;
        assert_eq!(answer.status, 101, "{client} is another network");
        held.push(socket);
    }
    held.swap_remove(0).reset();
    eventually("the /40 may connect again", || async {
        (upgrade(&app, ADDRESS, &users[0], Some("2001:db8:ff::1")).await.0.status == 101).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_may_open_a_limited_number_of_http_connections() {
    let app = TestApp::start(&[("LIMITS__HTTP_CONNECTIONS_PER_NETWORK", "20")]);
    let mut held = join_all((0..20).map(|_| connect_from(ADDRESS, &app))).await;
    for stream in &mut held {
        assert!(is_served(stream).await);
    }
    for _ in 0..50 {
        assert_refused(request_and_close(&mut connect_from(SAME_NETWORK, &app).await).await, "rate_limited");
    }
    assert!(is_served(&mut connect_from(OTHER_NETWORK, &app).await).await, "another network is not affected");
    held.pop();
    eventually("the network may connect again", || async {
        is_served(&mut connect_from(ADDRESS, &app).await).await.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_do_not_count_as_http_connections() {
    let app = TestApp::start(&[("LIMITS__HTTP_CONNECTIONS_PER_NETWORK", "4"), ("SERVER__MAX_HTTP_CONNECTIONS", "8")]);
    let mut sockets = Vec::new();
    for person in users(&app, 10).await {
        let (answer, socket) = upgrade(&app, ADDRESS, &person, None).await;
        assert_eq!(answer.status, 101);
        sockets.push(socket);
    }
    for socket in &mut sockets {
        assert!(socket.status(1).await["result"].is_object());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_too_many_connections_of_a_proxy_refuses_more_and_its_sockets_keep_working() {
    let app = TestApp::start(&[
        ("SERVER__MAX_HTTP_CONNECTIONS", "30"),
        ("LIMITS__HTTP_CONNECTIONS_PER_NETWORK", "0"),
        // Its connections are never given up, because they are for clients of many networks.
        ("SERVER__TRUSTED_PROXIES", "127.0.1.0/24"),
    ]);
    let person = sign_in(&app, "alice@example.org").await;
    let socket = Socket::connect(&app, &person.token, Codec::Json).await;
    let mut held = Vec::new();
    let mut refused = 0;
    while refused < 10 {
        let mut stream = connect_from(ADDRESS, &app).await;
        if is_served(&mut stream).await {
            held.push(stream);
            assert!(held.len() <= 30);
        } else {
            refused += 1;
        }
    }
    assert_refused(request_and_close(&mut connect_from(OTHER_NETWORK, &app).await).await, "unavailable");
    socket.barrier().await;
    drop(held);
    eventually("the node accepts connections again", || async {
        is_served(&mut connect_from(OTHER_NETWORK, &app).await).await.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_connections_from_one_network_is_refused_and_others_can_connect() {
    let app = TestApp::start(&[("LIMITS__CONNECTS_PER_NETWORK_SECOND", "10")]);
    let person = sign_in(&app, "alice@example.org").await;
    let (others_are_done, began) = (AtomicBool::new(false), Instant::now());
    let flood = async {
        let (mut accepted, mut refused, mut cut_off) = (0, 0, 0);
        while refused <= 100 || !others_are_done.load(Ordering::Relaxed) {
            let round = (0..50).map(|_| async { request_and_close(&mut connect_from(ADDRESS, &app).await).await });
            for answer in join_all(round).await {
                match answer.0 {
                    200 => accepted += 1,
                    429 => {
                        assert_refused(answer, "rate_limited");
                        refused += 1;
                    }
                    // If there are too many at a time, connections are closed without an answer.
                    0 => cut_off += 1,
                    other => panic!("{other}"),
                }
            }
        }
        (accepted, refused, cut_off)
    };
    // The flood continues until these clients have been served.
    let others = async {
        for _ in 0..30 {
            let (answer, mut socket) = upgrade(&app, OTHER_NETWORK, &person, None).await;
            assert_eq!(answer.status, 101);
            assert!(socket.status(1).await["result"].is_object());
        }
        others_are_done.store(true, Ordering::Relaxed);
    };
    let ((accepted, refused, cut_off), ()) = tokio::join!(flood, others);
    // Two hundred connects at once, then ten a second.
    let most = 201 + 10 * (began.elapsed().as_secs() + 1);
    assert!((200..=most).contains(&accepted), "{accepted} were accepted, {refused} refused, {cut_off} cut off");
    eventually("the network may connect again", || async {
        is_served(&mut connect_from(ADDRESS, &app).await).await.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_of_200_megabytes_are_refused_before_their_payload_and_other_clients_are_served() {
    let app = TestApp::start(&[]);
    let mut users = users(&app, 9).await;
    let other = Socket::connect(&app, &users.pop().unwrap().token, Codec::Json).await;
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
    // The attack continues until the other client has been served.
    let served = async {
        for _ in 0..100 {
            other.barrier().await;
        }
        other_is_done.store(true, Ordering::Relaxed);
    };
    tokio::join!(join_all(users.into_iter().map(attack)), served);
}
