//! Clients that hold memory: they begin messages and do not finish them, or do not read what they are sent.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use sealwire::domain::Suite;
use serde_json::json;
use tokio::{sync::watch, time::sleep};

use crate::{
    log_lines::entries,
    metrics::{Scrape, wait_for_sample},
    support::{
        Codec, KeySet, Person, ServerProcess, Socket, eventually,
        pace::{Pace, When},
        raw::{BINARY, PONG, RawSocket, data, encode, frame, header},
        server::ReservedPort,
        sign_in,
    },
};

/// The size of the largest message.
const FRAME: usize = 512 * 1024;
const ATTACKERS: usize = 52;

/// The attackers are in as many networks as there are parts of the memory.
fn network(index: usize) -> [u8; 4] {
    [127, 0, 10 + u8::try_from(index % 8).unwrap(), 1]
}

async fn attackers(server: &ServerProcess, count: usize) -> Vec<Person> {
    let mut people = Vec::new();
    for index in 0..count {
        people.push(sign_in(server, &format!("attacker{index}@example.org")).await);
    }
    people
}

/// Sends `begin` bytes of a large message and then a byte at a time until the server closes. Returns the close code, or
/// `None` if the attack is over before.
async fn drip(socket: &mut RawSocket, begin: usize, mut is_over: watch::Receiver<bool>) -> Option<u16> {
    let dripping = socket.drip_in_background([header(BINARY, FRAME as u64), vec![7; begin]].concat());
    let code = tokio::select! {
        code = socket.close_code() => Some(code),
        _ = is_over.wait_for(|is_over| *is_over) => None,
    };
    dripping.abort();
    code
}

/// Sends requests of 5 KiB and 200 KiB. All of them must succeed.
async fn work(bystander: &Socket, requests: usize, pace: &Pace, when: When) {
    for index in 0..requests {
        let padding = "x".repeat(if index % 4 == 0 { 200_000 } else { 5000 });
        pace.time(when, bystander.request("keys.status", json!({ "padding": padding }))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_that_drip_declared_frames_do_not_keep_others_from_sending_large_requests() {
    let admin = ReservedPort::new();
    let bind = admin.address.to_string();
    let server = ServerProcess::start(&[("ADMIN__BIND", &bind), ("SERVER__MEMORY_BUDGET_MB", "16")]).await;
    let people = attackers(&server, ATTACKERS).await;
    let bystander = sign_in(&server, "bystander@example.org").await;
    let bystander = Socket::connect(&server, &bystander.token, Codec::Json).await;

    let pace = Pace::default();
    work(&bystander, 200, &pace, When::BeforeAttack).await;

    let (end, is_over) = watch::channel(false);
    let (too_slow, given_up) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let attack = people.iter().enumerate().map(|(index, person)| {
        let (server, is_over, too_slow, given_up) = (&server, &is_over, &too_slow, &given_up);
        async move {
            // Half of them send nearly all of their messages, twice as much as there is memory.
            let begin = if index % 2 == 0 { FRAME - 50_000 } else { 0 };
            while !*is_over.borrow() {
                let (mut socket, _) =
                    RawSocket::connect_from(network(index), server, &person.token, Codec::MsgPack).await;
                match drip(&mut socket, begin, is_over.clone()).await {
                    Some(4001) => too_slow.fetch_add(1, Ordering::Relaxed),
                    Some(4003) => given_up.fetch_add(1, Ordering::Relaxed),
                    Some(other) => panic!("closed with {other}"),
                    None => return,
                };
                // Otherwise the attackers would compete with the server for the processor.
                sleep(Duration::from_millis(500)).await;
            }
        }
    });
    let work = async {
        // Until the memory was exhausted many times while the bystander was served, and all attackers that only drip were
        // closed once.
        let (mut served, mut exhausted) = (0, 0);
        while served < 200 || exhausted < 10 || too_slow.load(Ordering::Relaxed) < ATTACKERS / 2 {
            let before = given_up.load(Ordering::Relaxed);
            work(&bystander, 4, &pace, When::DuringAttack).await;
            served += 4;
            exhausted += usize::from(given_up.load(Ordering::Relaxed) > before);
            if served >= 200 {
                sleep(Duration::from_millis(100)).await;
            }
        }
        end.send_replace(true);
    };
    tokio::join!(join_all(attack), work);
    pace.print("52 accounts drip frames");
    wait_for_sample(admin.address, "sealwire_memory_budget_used_bytes{direction=\"in\"}", 0.0..=0.0).await;
    let scrape = Scrape::of(admin.address).await;
    assert!(scrape.samples["sealwire_memory_given_up_total{direction=\"in\"}"] > 0.0);
    assert!(scrape.samples["sealwire_closes_total{code=\"4001\"}"] >= 26.0);
}

/// Signs in five devices of one user with large keys, and returns the request that fetches all of them.
pub async fn large_fetch(server: &ServerProcess) -> serde_json::Value {
    let mut user = String::new();
    for seed in 0..5 {
        let owner = sign_in(server, "owner@example.org").await;
        let socket = Socket::connect(server, &owner.token, Codec::Json).await;
        socket.request("keys.publish", KeySet::new(Suite::SignalPqxdh, seed).complete(1..=5)).await;
        user = owner.user;
    }
    json!({ "user_id": user })
}

pub fn requests(op: &str, params: &serde_json::Value, count: u32) -> Vec<u8> {
    let request = |id| data(Codec::Json, &encode(Codec::Json, &json!({ "id": id, "op": op, "params": params })));
    (1..=count).flat_map(request).collect()
}

/// The number of closed sockets with this reason in the log.
fn closed(server: &ServerProcess, reason: &str) -> usize {
    entries(server).iter().filter(|entry| entry["fields"]["reason"] == reason).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_answer_pings_and_never_read_do_not_hold_memory_that_others_need() {
    const SOCKETS: usize = 36;
    let admin = ReservedPort::new();
    let bind = admin.address.to_string();
    // Half of it is for queues: 16 MiB, less than the attackers ask for.
    let server = ServerProcess::start(&[("ADMIN__BIND", &bind), ("SERVER__MEMORY_BUDGET_MB", "32")]).await;
    let fetch = large_fetch(&server).await;
    let people = attackers(&server, SOCKETS).await;
    let bystander = sign_in(&server, "bystander@example.org").await;
    let bystander = Socket::connect(&server, &bystander.token, Codec::Json).await;
    for _ in 0..100 {
        bystander.request("keys.fetch", fetch.clone()).await;
    }
    let pace = Pace::default();
    work(&bystander, 100, &pace, When::BeforeAttack).await;
    let mut attack = Vec::new();
    for (index, person) in people.iter().enumerate() {
        let socket = RawSocket::connect_narrow(network(index), &server, &person.token, Codec::Json).await;
        // A few of them queue only some frames, and so are not the ones that hold most.
        let count = if index < 8 { 20 } else { 400 };
        socket.send_in_background(requests("keys.fetch", &fetch, count));
        attack.push(socket);
    }
    let is_over = AtomicBool::new(false);
    let pongs = async {
        while !is_over.load(Ordering::Relaxed) {
            for socket in &attack {
                socket.send_in_background(frame(PONG, b""));
            }
            sleep(Duration::from_secs(5)).await;
        }
    };
    let work = async {
        let closes = "sealwire_closes_total{code=\"4002\"}";
        for _ in 0..100 {
            bystander.request("keys.fetch", fetch.clone()).await;
        }
        while Scrape::of(admin.address).await.samples[closes] < 36.0 {
            bystander.request("keys.fetch", fetch.clone()).await;
            work(&bystander, 4, &pace, When::DuringAttack).await;
        }
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(pongs, work);
    pace.print("36 sockets are not read");
    let stalled = closed(&server, "slow consumer: queue does not move");
    // The latter if the queue was about to grow.
    let given_up = closed(&server, "slow consumer: queue given up") + closed(&server, "slow consumer");
    assert!(stalled >= 8 && given_up > 0 && stalled + given_up == SOCKETS, "{stalled} stalled, {given_up} given up");
    for what in ["used_bytes{direction=\"in\"}", "used_bytes{direction=\"out\"}"] {
        wait_for_sample(admin.address, &format!("sealwire_memory_budget_{what}"), 0.0..=0.0).await;
    }
    drop(attack);
    wait_for_sample(admin.address, "sealwire_open_sockets", 1.0..=1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_reads_again_gives_its_memory_back() {
    const REQUESTS: u32 = 200;
    let admin = ReservedPort::new();
    let bind = admin.address.to_string();
    let server = ServerProcess::start(&[("ADMIN__BIND", &bind)]).await;
    let fetch = large_fetch(&server).await;
    let person = sign_in(&server, "slow@example.org").await;
    let used = "sealwire_memory_budget_used_bytes{direction=\"out\"}";
    let (mut socket, _) = RawSocket::connect(&server, &person.token, Codec::Json).await;
    socket.send_in_background(requests("keys.fetch", &fetch, REQUESTS));
    wait_for_sample(admin.address, used, 3e5..=9e6).await;
    // In any order.
    for _ in 0..REQUESTS {
        assert!(socket.message().await.is_some_and(|reply| reply["id"].is_u64()));
    }
    // The last bytes were not in the queue but on their way to the kernel.
    wait_for_sample(admin.address, used, 0.0..=0.0).await;
    assert!(socket.status(1).await["result"].is_object());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_while_it_is_not_read_gives_back_its_memory_and_its_seat() {
    let admin = ReservedPort::new();
    let bind = admin.address.to_string();
    let server = ServerProcess::start(&[("ADMIN__BIND", &bind), ("LIMITS__CONNECTIONS_PER_NETWORK", "1")]).await;
    let fetch = large_fetch(&server).await;
    let person = sign_in(&server, "gone@example.org").await;
    for round in 1..=3 {
        // The network's only seat.
        let mut socket = RawSocket::connect_narrow([127, 0, 30, 1], &server, &person.token, Codec::Json).await;
        socket.send(&requests("keys.fetch", &fetch, 200)).await;
        // The server reads no further, because the replies fill the queue.
        wait_for_sample(admin.address, "sealwire_memory_budget_used_bytes{direction=\"out\"}", 3e5..=9e6).await;
        socket.reset();
        wait_for_sample(admin.address, "sealwire_open_sockets", 0.0..=0.0).await;
        wait_for_sample(admin.address, "sealwire_memory_budget_used_bytes{direction=\"out\"}", 0.0..=0.0).await;
        // Not closed by a timer.
        eventually("the loss is logged", || async { (closed(&server, "connection lost") >= round).then_some(()) })
            .await;
        assert_eq!(closed(&server, "slow consumer: queue does not move") + closed(&server, "slow consumer"), 0);
    }
}
