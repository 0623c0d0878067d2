//! Clients that hold memory: they begin messages and do not finish them, or do not read what they are sent.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    metrics::{Scrape, wait_for_sample},
    support::{
        Codec, Person, ServerProcess, Socket,
        raw::{BINARY, RawSocket, header},
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

/// Sends requests of 5 KiB and 200 KiB. All of them must succeed. Returns the median of their durations.
async fn work(bystander: &Socket, requests: usize) -> Duration {
    let mut took = Vec::new();
    for index in 0..requests {
        let began = Instant::now();
        let padding = "x".repeat(if index % 4 == 0 { 200_000 } else { 5000 });
        bystander.request("keys.status", json!({ "padding": padding })).await;
        took.push(began.elapsed());
    }
    took.sort_unstable();
    took[took.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_that_drip_declared_frames_do_not_keep_others_from_sending_large_requests() {
    let admin = ReservedPort::new();
    let bind = admin.address.to_string();
    let server = ServerProcess::start(&[("ADMIN__BIND", &bind), ("SERVER__MEMORY_BUDGET_MB", "16")]).await;
    let people = attackers(&server, ATTACKERS).await;
    let bystander = sign_in(&server, "bystander@example.org").await;
    let bystander = Socket::connect(&server, &bystander.token, Codec::Json).await;
    let before = work(&bystander, 100).await;

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
        // Several tries, because other tests may keep the processor busy for a while.
        let mut during = work(&bystander, 100).await;
        for _ in 0..10 {
            if during > before * 3 {
                during = work(&bystander, 100).await;
            }
        }
        // Until all attackers that only drip were closed once.
        while too_slow.load(Ordering::Relaxed) < ATTACKERS / 2 {
            work(&bystander, 4).await;
            sleep(Duration::from_millis(100)).await;
        }
        end.send_replace(true);
        assert!(during <= before * 3, "median before {before:?}, during the attack {during:?}");
    };
    tokio::join!(join_all(attack), work);
    assert!(given_up.load(Ordering::Relaxed) > 0, "the memory was exhausted");
    wait_for_sample(admin.address, "sealwire_memory_budget_used_bytes{direction=\"in\"}", 0.0..=0.0).await;
    let scrape = Scrape::of(admin.address).await;
    assert!(scrape.samples["sealwire_memory_given_up_total{direction=\"in\"}"] > 0.0);
    assert!(scrape.samples["sealwire_closes_total{code=\"4001\"}"] >= 26.0);
}
