//! One account that floods one other with messages.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{
    metrics::Scrape,
    support::{
        Cluster, Codec, Member, Server, ServerProcess, Services, code,
        mailing::{content, message},
        pace::{Pace, When},
        problem::assert_problem,
    },
};

/// The largest content of a message.
const CONTENT: usize = 32 * 1024;

async fn join(server: &impl Server, name: &str) -> Member {
    Member::join(server, &format!("{name}@example.org"), Codec::Json).await
}

fn ephemeral(to: &Member, text: &str) -> Value {
    let mut params = message(&[&to.person], text);
    params["ephemeral"] = true.into();
    params
}

/// Sends messages, and returns how many of them were accepted. The others must be refused as too many.
async fn accepted(sender: &Member, messages: impl Iterator<Item = Value>) -> usize {
    let answers = join_all(messages.map(|params| sender.socket.try_request("messages.send", params))).await;
    let mut accepted = 0;
    for answer in answers {
        match answer.expect("the socket stays open") {
            Ok(_) => accepted += 1,
            Err(error) => {
                assert_problem(&error, "rate_limited", "a message over the rate");
                let wait = error["retry_after_ms"].as_u64().expect("when to try again");
                assert!((1..=50).contains(&wait), "the refill of one message: {error}");
            }
        }
    }
    accepted
}

#[tokio::test(flavor = "multi_thread")]
async fn all_messages_of_one_user_to_one_other_count_together() {
    // The clock stands still, so only the burst is allowed.
    let app = crate::support::TestApp::with_clock(&[]);
    let (alice, tablet) = (join(&app, "alice").await, join(&app, "alice").await);
    let (bob, carol) = (join(&app, "bob").await, join(&app, "carol").await);
    // Fifty for each device would be allowed too.
    assert_eq!(accepted(&alice, (0..40).map(|_| message(&[&bob.person], "stored"))).await, 40);
    assert_eq!(accepted(&tablet, (0..40).map(|_| ephemeral(&bob, "typing"))).await, 40);
    app.advance(std::time::Duration::from_secs(1));
    assert_eq!(accepted(&alice, (0..50).map(|_| message(&[&bob.person], "stored"))).await, 40, "20 refilled");
    assert_eq!(accepted(&tablet, (0..30).map(|_| ephemeral(&bob, "typing"))).await, 0);
    // What was refused costs the device nothing, so both still have what they need for others and for themselves.
    assert_eq!(accepted(&tablet, (0..25).map(|_| message(&[&carol.person], "hello"))).await, 25);
    assert_eq!(accepted(&tablet, (0..25).map(|_| message(&[&alice.person], "mine"))).await, 25);
    assert_eq!(accepted(&carol, (0..20).map(|_| message(&[&bob.person], "hello"))).await, 20);
    app.advance(std::time::Duration::from_millis(50));
    assert_eq!(accepted(&alice, (0..3).map(|_| ephemeral(&bob, "typing"))).await, 1);
}

/// A message of the friend to the victim, and one back. The victim handles the flood until it has the message; returns how
/// many messages of the flood that were.
async fn exchange(friend: &Member, victim: &Member, number: usize, flood: &str) -> usize {
    let text = format!("from a friend {number}");
    friend.send(&[&victim.person], &text).await;
    let mut received = 0;
    loop {
        let event = victim.socket.event("message").await;
        if event["seq"].is_u64() {
            victim.socket.request("messages.ack", json!({ "seqs": [event["seq"]] })).await;
        }
        if event["content"] == content(&text) {
            break;
        }
        assert_eq!(event["content"], content(flood), "nothing is lost before it");
        received += 1;
    }
    victim.socket.barrier().await;
    victim.send(&[&friend.person], "thanks").await;
    friend.receives("thanks").await;
    received
}

async fn assert_a_flood_stops_nobody(server: &impl Server, admin: SocketAddr) {
    let victim = join(server, "victim").await;
    let friend = join(server, "friend").await;
    // All devices that an account can have. Without a limit they push 15 MB/s.
    let mut attackers = Vec::new();
    for _ in 0..10 {
        attackers.push(join(server, "attacker").await);
    }
    let flood = "x".repeat(CONTENT);
    let pace = Pace::default();
    // As fast as one user may write to one other, and so for longer than the attackers' requests are read at once.
    let mut next = tokio::time::interval(Duration::from_millis(50));
    for number in 0..40 {
        next.tick().await;
        assert_eq!(pace.time(When::BeforeAttack, exchange(&friend, &victim, number, &flood)).await, 0);
    }
    let began = Instant::now();
    let (is_over, accepted, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let attack = attackers.iter().map(|attacker| {
        let (is_over, accepted, refused, flood, victim) = (&is_over, &accepted, &refused, &flood, &victim);
        async move {
            let (mut number, mut own_refused) = (0, 0);
            // Until the others are done, and each device had more refused than are read at once.
            while !is_over.load(Ordering::Relaxed) || own_refused <= 105 {
                let params = if number % 2 == 0 { ephemeral(victim, flood) } else { message(&[&victim.person], flood) };
                match attacker.socket.try_request("messages.send", params).await.expect("the socket stays open") {
                    Ok(_) => accepted.fetch_add(1, Ordering::Relaxed),
                    // The mailbox has a bound for each sender too.
                    Err(error) if code(&error) == "mailbox_full" => accepted.fetch_add(1, Ordering::Relaxed),
                    Err(error) => {
                        assert_problem(&error, "rate_limited", "a message over the rate");
                        own_refused += 1;
                        refused.fetch_add(1, Ordering::Relaxed)
                    }
                };
                number += 1;
            }
        }
    });
    let others = async {
        let mut received = 0;
        for number in 40..140 {
            next.tick().await;
            received += pace.time(When::DuringAttack, exchange(&friend, &victim, number, &flood)).await;
        }
        is_over.store(true, Ordering::Relaxed);
        received
    };
    let (_, received) = tokio::join!(join_all(attack), others);
    pace.print("one account pushes at one user");
    let (accepted, refused) = (accepted.into_inner(), refused.into_inner());
    // A hundred at once, then twenty a second.
    let seconds = began.elapsed().as_secs() + 1;
    let most = 101 + 20 * seconds;
    assert!((100..=most).contains(&accepted), "{accepted} were accepted, of at most {most}");
    // What a device sends in spite of refusals is read ten times a second.
    let most = 10 * (101 + 10 * seconds);
    assert!(refused <= most, "{refused} were read and refused, of at most {most}");
    assert!(refused >= 1000 && received > 50, "there was an attack: {refused} refused, {received} received");
    let counted = Scrape::of(admin).await.samples["sealwire_ops_total{code=\"rate_limited\",op=\"messages.send\"}"];
    assert!(counted >= 1000.0, "{counted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_pushes_megabytes_at_one_user_stops_neither_that_user_nor_its_friends_on_sqlite() {
    let server = ServerProcess::start(&[]).await;
    assert_a_flood_stops_nobody(&server, server.admin()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_pushes_megabytes_at_one_user_stops_neither_that_user_nor_its_friends_on_postgres() {
    let cluster = Cluster::start(&Services::shared(), 1, &[]).await;
    assert_a_flood_stops_nobody(&cluster.nodes[0], cluster.nodes[0].admin()).await;
}
