//! Throw-away accounts against one person whose device is offline, with the default settings: they fill what strangers may
//! have, and friends still get what they need.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;

use super::*;
use crate::support::{
    Cluster, ServerProcess, code,
    mailing::content,
    pace::{Pace, When},
};

/// The defaults of the server, which other tests turn off.
const DEFAULTS: Settings = &[("LIMITS__STRANGER_KEYS_PER_DEVICE_HOUR", "20"), ("MAILBOX__STRANGER_SHARE", "0.25")];
/// The largest content of a message.
const CONTENT: usize = 32 * 1024;
/// One-time keys that bob publishes.
const POOL: u32 = 100;
/// A stranger may take ten keys of a device, so the attackers could take more than strangers may.
const ATTACKERS: usize = 11;
const FRIENDS: usize = 3;
/// Rounds of work before the attack, and again during it. A friend too may take only ten keys of a device at once.
const ROUNDS: usize = 5;
/// Messages that the friends send and keys that they claim in all rounds.
const WORK: usize = 2 * ROUNDS * FRIENDS;

/// Bob, who goes offline, and the people around him.
struct Scene {
    bob: Person,
    /// They know bob's access key.
    friends: Vec<Member>,
    attackers: Vec<Member>,
}

impl Scene {
    /// Everybody joins; the attackers are spread over the servers.
    async fn prepare(servers: &[&ServerProcess]) -> Self {
        let join = async |index: usize, name: String| {
            Member::join(servers[index % servers.len()], &format!("{name}@example.org"), Codec::MsgPack).await
        };
        let bob = join(0, "bob".to_owned()).await;
        let keys = (1..=POOL).map(|id| KeySet::new(Suite::SignalX3dh, id.into()).prekey(id)).collect::<Vec<_>>();
        bob.socket.request("keys.publish", json!({ "one_time_prekeys": keys })).await;
        bob.socket.request("access.set", json!({ "strangers": "limit", "key": key() })).await;
        let (mut friends, mut attackers) = (Vec::new(), Vec::new());
        for index in 0..FRIENDS {
            friends.push(join(index, format!("friend{index}")).await);
        }
        for index in 0..ATTACKERS {
            attackers.push(join(index, format!("attacker{index}")).await);
        }
        // His socket closes.
        Self { bob: bob.person, friends, attackers }
    }

    /// Sends from each friend and claims a key for each. All must succeed.
    async fn friends_work(&self, round: usize) {
        for (index, friend) in self.friends.iter().enumerate() {
            let params = showing(message(&[&self.bob], &format!("{round} of friend {index}")), &key());
            let sent = friend.socket.request("messages.send", params).await;
            assert_eq!(sent["stored"], 1, "{sent}");
            assert_eq!(claim(friend, &self.bob, Some(&key())).await, "claimed", "{round}");
        }
    }

    /// One attacker fills bob's mailbox until it is full for it, whatever it sends, and drains his pool until nothing is left
    /// for it. Then it goes on until `is_over`.
    async fn attack(&self, attacker: &Member, counts: &AttackCounts, is_over: &AtomicBool) {
        let flood = "x".repeat(CONTENT);
        let (mut full, mut limited) = (0, 0);
        while full < 5 || limited < 5 || !is_over.load(Ordering::Relaxed) {
            let sent = attacker.socket.try_request("messages.send", message(&[&self.bob], &flood)).await;
            match sent.expect("the socket stays open") {
                Ok(_) => counts.stored.fetch_add(1, Ordering::Relaxed),
                Err(error) if code(&error) == "mailbox_full" => {
                    full += 1;
                    counts.full.fetch_add(1, Ordering::Relaxed)
                }
                Err(error) => {
                    assert_problem(&error, "rate_limited", "a message over the rate");
                    let wait = error["retry_after_ms"].as_u64().unwrap();
                    tokio::time::sleep(Duration::from_millis(wait)).await;
                    0
                }
            };
            match claim(attacker, &self.bob, None).await.as_str().unwrap() {
                "claimed" => counts.claimed.fetch_add(1, Ordering::Relaxed),
                "limited" => {
                    limited += 1;
                    0
                }
                other => panic!("{other}"),
            };
        }
    }
}

#[derive(Default)]
struct AttackCounts {
    stored: AtomicUsize,
    full: AtomicUsize,
    claimed: AtomicUsize,
}

/// The outcome of a claim of one of bob's keys.
async fn claim(by: &Member, of: &Person, access: Option<&str>) -> Value {
    let mut params = json!({ "user_id": of.user, "device_ids": [of.device], "claim_id": Uuid::new_v4() });
    params["access"] = access.into();
    by.socket.request("keys.claim", params).await["bundles"][0]["one_time"].clone()
}

/// The friends do their rounds of work, and then as many during the attack.
async fn attack_and_work(scene: &Scene) {
    let pace = Pace::default();
    for round in 0..ROUNDS {
        pace.time(When::BeforeAttack, scene.friends_work(round)).await;
    }
    let (counts, is_over) = (AttackCounts::default(), AtomicBool::new(false));
    let attack = scene.attackers.iter().map(|attacker| scene.attack(attacker, &counts, &is_over));
    let work = async {
        // Once the attackers have what strangers may have.
        while counts.full.load(Ordering::Relaxed) < ATTACKERS || counts.claimed.load(Ordering::Relaxed) < 20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Spread over the attack, which is fastest before its accounts have spent the bursts of their limits.
        let mut next = tokio::time::interval(Duration::from_secs(1));
        for round in ROUNDS..2 * ROUNDS {
            next.tick().await;
            pace.time(When::DuringAttack, scene.friends_work(round)).await;
        }
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(join_all(attack), work);
    pace.print("eleven accounts fill a mailbox and drain a pool");
    // A quarter of 64 MiB, and twenty claims an hour.
    assert_eq!((counts.stored.into_inner(), counts.claimed.into_inner()), (512, 20));
}

/// After the attack, and perhaps a restart: strangers still find no room, friends do, and bob gets everything.
async fn assert_friends_are_served(scene: &Scene, server: &ServerProcess) {
    let stranger = Member::join(server, "stranger@example.org", Codec::MsgPack).await;
    let mut large = message(&[&scene.bob], &"x".repeat(CONTENT));
    assert_eq!(stranger.socket.refused("messages.send", large.clone()).await["code"], "mailbox_full");
    assert_eq!(claim(&stranger, &scene.bob, None).await, "limited");
    let friend = Member::join(server, "another.friend@example.org", Codec::MsgPack).await;
    let params = showing(message(&[&scene.bob], "at last"), &key());
    assert_eq!(friend.socket.request("messages.send", params).await["stored"], 1);
    assert_eq!(claim(&friend, &scene.bob, Some(&key())).await, "claimed");

    let bob = Socket::connect(server, &scene.bob.token, Codec::MsgPack).await;
    assert_eq!(bob.welcome["keys"]["one_time"], u64::from(POOL) - 20 - WORK as u64 - 1, "{}", bob.welcome);
    let (mut of_friends, mut of_attackers) = (0, 0);
    while of_friends < WORK + 1 {
        let event = bob.event("message").await;
        bob.request("messages.ack", json!({ "seqs": [event["seq"]] })).await;
        if event["content"] == content(&"x".repeat(CONTENT)) {
            of_attackers += 1;
        } else {
            of_friends += 1;
        }
    }
    assert_eq!(of_attackers, 512);
    large["message_id"] = Uuid::new_v4().to_string().into();
    assert_eq!(stranger.socket.request("messages.send", large).await["stored"], 1, "the room is given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn throw_away_accounts_take_nothing_that_friends_need_and_a_restart_changes_nothing() {
    let mut server = ServerProcess::start(DEFAULTS).await;
    let scene = Scene::prepare(&[&server]).await;
    attack_and_work(&scene).await;
    server.kill();
    server.restart().await;
    assert_friends_are_served(&scene, &server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn throw_away_accounts_on_two_nodes_take_nothing_that_friends_need() {
    let cluster = Cluster::start(&Services::shared(), 2, DEFAULTS).await;
    let scene = Scene::prepare(&[&cluster.nodes[0], &cluster.nodes[1]]).await;
    attack_and_work(&scene).await;
    assert_friends_are_served(&scene, &cluster.nodes[1]).await;
}
