//! Connections that begin and break in every way, for `CHURN_SECONDS` (default: 5). Afterwards nothing that they used may be
//! missing. `scripts/churn` runs these tests for ten minutes.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, sleep},
};

use super::{
    GET, is_served,
    memory::{large_fetch, requests},
    upgrade,
};
use crate::{
    metrics::{Scrape, wait_for_sample},
    support::{
        Cluster, Codec, Person, ServerProcess, Services, Socket,
        raw::{PING, RawSocket, TEXT, connect_from, frame, header},
        server::ReservedPort,
        sign_in,
    },
};

const NETWORKS: usize = 6;
/// Users in each network, with one device each.
const USERS: usize = 4;
/// Places of each network for sockets and for other connections. All of them are needed afterwards.
const SEATS: &str = "4";
const HTTP_SEATS: usize = 8;
/// The largest message, which is the share of a user; four of them are the share of a network.
const MESSAGE: usize = 512 * 1024;
/// Ways in which a connection ends.
const ENDS: usize = 10;
/// Each user goes through all of them at least this often.
const ROUNDS: usize = 2;

const SETTINGS: [(&str, &str); 4] = [
    ("SERVER__MEMORY_BUDGET_MB", "16"),
    ("LIMITS__CONNECTIONS_PER_NETWORK", SEATS),
    ("LIMITS__HTTP_CONNECTIONS_PER_NETWORK", "8"),
    // So that the ways in which sockets end are those of the test.
    ("LIMITS__REQUESTS_PER_CONNECTION_SECOND", "0"),
];

fn seconds() -> Duration {
    let seconds = std::env::var("CHURN_SECONDS").map_or(5, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
}

/// The part of a message that arrives before it is abandoned.
fn unfinished(bytes: usize) -> Vec<u8> {
    [header(TEXT, MESSAGE as u64), vec![b' '; bytes]].concat()
}

/// Makes a request. Returns false if the socket is closed, because an earlier connection of the device was registered later and
/// has displaced it.
async fn answers(socket: &mut RawSocket) -> bool {
    socket.send_value(&json!({ "id": 1, "op": "keys.status" })).await;
    while let Some(message) = socket.message().await {
        if message["id"] == 1 {
            return true;
        }
    }
    false
}

/// Opens a connection and ends it in one of the ways. Returns false if the network had no place, because the server
/// has not noticed yet that an earlier connection broke.
async fn churn(server: &ServerProcess, source: [u8; 4], person: &Person, fetch: &Value, end: usize) -> bool {
    if end < 2 {
        let mut stream = connect_from(source, server).await;
        let bytes =
            if end == 0 { GET.repeat(20) } else { "POST /v1/auth/otp HTTP/1.1\r\nContent-Length: 9".to_owned() };
        let _ = stream.write_all(bytes.as_bytes()).await;
        // Closed with unread responses, or in the middle of a head.
        return true;
    }
    if end == 2 {
        let nobody = Person { token: "A".repeat(43), ..person.clone() };
        let (answer, _open) = upgrade(server, source, &nobody, None).await;
        return answer.status == 401;
    }
    let (answer, mut socket) = upgrade(server, source, person, None).await;
    if answer.status != 101 {
        assert_eq!(answer.status, 429, "{}", answer.body);
        return false;
    }
    match end {
        3 => socket.send(&unfinished(100_000)).await,
        4 => socket.send(&unfinished(MESSAGE - 1)).await,
        5 => {
            socket.send(&requests("keys.fetch", fetch, 60)).await;
            sleep(Duration::from_millis(50)).await;
        }
        6 => {
            if !answers(&mut socket).await {
                return true;
            }
            socket.send(&frame(0x88, &1000u16.to_be_bytes())).await;
            let _ = socket.close_code().await;
            return true;
        }
        7 => {
            // Not a WebSocket frame: the server closes with 4504, unless an earlier connection has displaced this one.
            socket.send(&[0xff; 10]).await;
            let code = socket.close_code().await;
            assert!(matches!(code, 4503 | 4504), "{code}");
            return true;
        }
        8 => {
            // Displaced by another connection of the same device, once it is open itself.
            if !answers(&mut socket).await {
                return true;
            }
            let (answer, mut newer) = upgrade(server, source, person, None).await;
            if answer.status == 101 {
                assert_eq!(socket.close_code().await, 4503);
                answers(&mut newer).await;
                newer.reset();
                return true;
            }
        }
        _ => socket.send(&[frame(PING, b"x"), unfinished(3000)].concat()).await,
    }
    // A reset, or an orderly end of TCP without a Close frame.
    if end.is_multiple_of(2) {
        socket.reset();
    } else {
        socket.shutdown().await;
    }
    true
}

/// What must be as before once all connections are gone.
async fn wait_until_idle(server: &ServerProcess, admin: std::net::SocketAddr, open_files: f64) {
    for (sample, most) in [
        ("sealwire_open_sockets", 0.0),
        ("sealwire_connected_devices", 0.0),
        ("sealwire_open_http_connections", 0.0),
        ("sealwire_memory_budget_used_bytes{direction=\"in\"}", 0.0),
        ("sealwire_memory_budget_used_bytes{direction=\"out\"}", 0.0),
        ("sealwire_work_under_way", 0.0),
        ("process_open_fds", open_files),
    ] {
        wait_for_sample(admin, sample, 0.0..=most).await;
    }
    // All seats of all networks for connections without an upgrade.
    for network in 0..NETWORKS {
        let mut open = join_all((0..HTTP_SEATS).map(|_| connect_from(source(network, 9), server))).await;
        for stream in &mut open {
            assert!(is_served(stream).await);
        }
    }
}

fn source(network: usize, host: usize) -> [u8; 4] {
    [127, 0, 60 + u8::try_from(network).unwrap(), u8::try_from(host).unwrap()]
}

/// All seats for sockets and the whole shares of memory are free: each user of each network sends a message of the maximum size, those
/// of a network at the same time. Nothing is given up for them.
async fn use_everything(server: &ServerProcess, admin: std::net::SocketAddr, people: &[Person]) {
    let given_up = "sealwire_memory_given_up_total{direction=\"in\"}";
    let before = Scrape::of(admin).await.samples[given_up];
    for network in 0..NETWORKS {
        let mut sockets = Vec::new();
        for (index, person) in people.iter().enumerate().filter(|(index, _)| index % NETWORKS == network) {
            let socket = RawSocket::connect_from(source(network, index + 1), server, &person.token, Codec::Json);
            sockets.push(socket.await.0);
        }
        assert_eq!(sockets.len(), USERS);
        let request = json!({ "id": 1, "op": "keys.status" }).to_string();
        let message = [request.as_str(), &" ".repeat(MESSAGE - request.len())].concat();
        let message = frame(TEXT, message.as_bytes());
        for socket in &mut sockets {
            socket.send(&message[..message.len() - 1]).await;
        }
        #[expect(clippy::cast_precision_loss, reason = "a few megabytes")]
        let all = (USERS * MESSAGE) as f64;
        wait_for_sample(admin, "sealwire_memory_budget_used_bytes{direction=\"in\"}", all..=all).await;
        for socket in &mut sockets {
            socket.send(&message[message.len() - 1..]).await;
            assert!(socket.reply(1).await["result"].is_object());
        }
    }
    assert!(Scrape::of(admin).await.samples[given_up] <= before);
}

async fn nothing_is_lost(server: &ServerProcess, admin: std::net::SocketAddr) {
    let fetch = large_fetch(server).await;
    let mut people = Vec::new();
    for index in 0..NETWORKS * USERS {
        people.push(sign_in(server, &format!("user{index}@example.org")).await);
    }
    let bystander = sign_in(server, "bystander@example.org").await;
    // Once for the connections to the database.
    use_everything(server, admin, &people).await;
    let scrape = Scrape::of(admin).await;
    // A connection to SQLite has three files.
    let open_files = scrape.samples["process_open_fds"] + 3.0 * scrape.samples["sealwire_pool_connections_limit"];
    wait_until_idle(server, admin, open_files).await;
    let resident = server.resident_bytes();

    let socket = Socket::connect(server, &bystander.token, Codec::Json).await;
    let (is_over, served, until) = (AtomicBool::new(false), AtomicUsize::new(0), Instant::now() + seconds());
    let attack = people.iter().enumerate().map(|(index, person)| {
        let fetch = &fetch;
        async move {
            let mut random = StdRng::seed_from_u64(index as u64);
            let mut ended = [0; ENDS];
            while Instant::now() < until || ended.iter().any(|times| *times < ROUNDS) {
                // At first each in turn.
                let end =
                    ended.iter().position(|times| *times < ROUNDS).unwrap_or_else(|| random.random_range(0..ENDS));
                if churn(server, source(index % NETWORKS, index + 1), person, fetch, end).await {
                    ended[end] += 1;
                }
                sleep(Duration::from_millis(random.random_range(50..250))).await;
            }
            ended.iter().sum::<usize>()
        }
    });
    let work = async {
        while !is_over.load(Ordering::Relaxed) {
            socket.request("keys.status", json!({ "padding": "x".repeat(20_000) })).await;
            served.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(20)).await;
        }
    };
    let attack = async {
        let all = join_all(attack).await;
        is_over.store(true, Ordering::Relaxed);
        all.iter().sum::<usize>()
    };
    let (connections, ()) = tokio::join!(attack, work);
    drop(socket);
    wait_until_idle(server, admin, open_files).await;
    use_everything(server, admin, &people).await;
    wait_until_idle(server, admin, open_files).await;
    println!(
        "{connections} connections, {} requests of the bystander; resident memory {resident} bytes before, {} after",
        served.load(Ordering::Relaxed),
        server.resident_bytes()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_on_sqlite() {
    let admin = ReservedPort::new();
    let bind = admin.address.to_string();
    let server = ServerProcess::start(&[&SETTINGS[..], &[("ADMIN__BIND", bind.as_str())]].concat()).await;
    nothing_is_lost(&server, admin.address).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_on_postgres() {
    let admin = ReservedPort::new();
    let bind = admin.address.to_string();
    let settings = [&SETTINGS[..], &[("ADMIN__BIND", bind.as_str())]].concat();
    let cluster = Cluster::start(&Services::shared(), 1, &settings).await;
    nothing_is_lost(&cluster.nodes[0], admin.address).await;
}
