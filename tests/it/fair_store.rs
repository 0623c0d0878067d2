//! The store under load by a few users: they wait for themselves, and others are served.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;
use reqwest::Method;
use sealwire::domain::Suite;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    metrics::{Scrape, wait_for_sample},
    support::{
        Cluster, Codec, KeySet, Member, RowLock, Server, ServerProcess, Services, Socket, code,
        http::call,
        mailing::{content, message},
        pace::{Pace, When},
        server::ReservedPort,
        sign_in,
    },
};

/// The messages of many rounds would exceed these limits.
const UNLIMITED_SENDS: &[(&str, &str)] =
    &[("LIMITS__SENDS_PER_PAIR_SECOND", "0"), ("LIMITS__SENDS_PER_DEVICE_SECOND", "0")];

const DEVICE: &str = "SELECT id FROM devices WHERE id = $1 FOR UPDATE";
const MAILBOX: &str = "SELECT device_id FROM mailboxes WHERE device_id = $1 FOR UPDATE";

/// Starts one node, with the address of its admin listener.
async fn node(settings: &[(&str, &str)]) -> (Cluster, ReservedPort) {
    let admin = ReservedPort::new();
    let bind = admin.address.to_string();
    let settings: Vec<_> = settings.iter().copied().chain([("ADMIN__BIND", bind.as_str())]).collect();
    (Cluster::start(&Services::shared(), 1, &settings).await, admin)
}

async fn assert_ready(node: &ServerProcess) {
    // Or degraded: the clusters of other tests use the same Redis.
    let (status, body) = call(node, Method::GET, "/readyz", None, None).await;
    assert_eq!(status.as_u16(), 200, "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn four_operations_of_a_user_run_at_a_time_and_64_more_wait() {
    // Four connections besides those of the batches: the attacker can hold all of them, but not the one for readiness.
    let (cluster, admin) = node(&[("DATABASE__MAX_CONNECTIONS", "9")]).await;
    let node = &cluster.nodes[0];
    let person = sign_in(node, "attacker@example.org").await;
    let sockets = [
        Socket::connect(node, &person.token, Codec::Json).await,
        Socket::connect(node, &sign_in(node, "attacker@example.org").await.token, Codec::Json).await,
    ];
    let mut row_lock = RowLock::lock(&cluster, DEVICE, &person.device).await;
    let rename = json!({ "device_id": person.device, "name": "again" });
    let (refused, unavailable) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // 100 requests for 4 + 64 places.
    let attack = sockets.iter().flat_map(|socket| {
        (0..50).map(|_| async {
            match socket.try_request("devices.rename", rename.clone()).await.unwrap() {
                Ok(_) => {}
                Err(error) if code(&error) == "unavailable" => {
                    unavailable.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) => {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    let watch = async {
        row_lock.wait_for_waiters(4).await;
        for _ in 0..10 {
            assert_ready(node).await;
        }
        wait_for_sample(admin.address, "sealwire_user_queue_full_total", 32.0..=32.0).await;
        row_lock.release().await;
    };
    tokio::join!(join_all(attack), watch);
    assert_eq!(refused.load(Ordering::Relaxed), 0);
    assert!(unavailable.load(Ordering::Relaxed) >= 32, "those without a place, and those that waited for a second");
    sockets[0].barrier().await;
}

async fn assert_users_that_flood_the_store_do_not_stop_others(node: &ServerProcess) {
    let target = Member::join(node, "target@example.org", Codec::Json).await;
    let bystander = Member::join(node, "bystander@example.org", Codec::Json).await;
    let pace = Pace::default();
    let round = || async {
        bystander.socket.barrier().await;
        bystander.socket.request("keys.fetch", json!({ "user_id": target.person.user })).await;
        bystander.send(&[&target.person], "hello").await;
        target.receives("hello").await;
        assert_ready(node).await;
    };
    let work = async |when| {
        for _ in 0..50 {
            pace.time(when, round()).await;
        }
    };
    work(When::BeforeAttack).await;
    let mut attackers = Vec::new();
    for index in 0..4 {
        let person = sign_in(node, &format!("attacker{index}@example.org")).await;
        attackers.push((Socket::connect(node, &person.token, Codec::Json).await, person));
    }
    let is_over = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    let attack = attackers.iter().flat_map(|(socket, person)| {
        let (is_over, served, target) = (&is_over, &served, &target);
        (0..60).map(move |index| async move {
            while !is_over.load(Ordering::Relaxed) {
                let answer = if index % 2 == 0 {
                    socket.try_request("keys.fetch", json!({ "user_id": target.person.user })).await
                } else {
                    let rename = json!({ "device_id": person.device, "name": "again" });
                    socket.try_request("devices.rename", rename).await
                };
                match answer.expect("the socket stays open") {
                    Ok(_) => {
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => assert!(["unavailable", "rate_limited"].contains(&code(&error)), "{error}"),
                }
            }
        })
    });
    let bystander = async {
        work(When::DuringAttack).await;
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(join_all(attack), bystander);
    pace.print("four accounts fetch and rename");
    assert!(served.load(Ordering::Relaxed) > 200, "there was an attack");
}

/// There is one writer, for which the renames of the attackers wait too.
#[tokio::test(flavor = "multi_thread")]
async fn users_that_flood_the_store_do_not_stop_others_on_sqlite() {
    assert_users_that_flood_the_store_do_not_stop_others(&ServerProcess::start(UNLIMITED_SENDS).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_that_flood_the_store_do_not_stop_others_on_postgres() {
    let (cluster, _admin) = node(UNLIMITED_SENDS).await;
    assert_users_that_flood_the_store_do_not_stop_others(&cluster.nodes[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_mailbox_fails_its_own_messages_and_no_other_of_the_batch() {
    let (cluster, admin) = node(&[]).await;
    let node = &cluster.nodes[0];
    let mut members = Vec::new();
    for name in ["alice", "bob", "carol"] {
        members.push(Member::join(node, &format!("{name}@example.org"), Codec::Json).await);
    }
    let [alice, bob, carol] = &members[..] else { panic!("three have joined") };
    let mut row_lock = RowLock::lock(&cluster, MAILBOX, &carol.person.device).await;
    let to_carol = message(&[&carol.person], "later");
    let first = alice.socket.try_request("messages.send", to_carol.clone());
    let rest = async {
        row_lock.wait_for_waiters(1).await;
        // While the first waits, these queue up and become one batch.
        let to_bob = (0..20).map(|_| bob_request(alice, bob));
        let also_to_carol = (0..5).map(|_| alice.socket.try_request("messages.send", message(&[&carol.person], "too")));
        tokio::join!(join_all(to_bob), join_all(also_to_carol))
    };
    let (first, (to_bob, also_to_carol)) = tokio::join!(first, rest);
    assert_eq!(code(&first.unwrap().unwrap_err()), "unavailable");
    for sent in to_bob {
        assert_eq!(sent["stored"], 1, "{sent}");
    }
    for refused in also_to_carol {
        assert_eq!(code(&refused.unwrap().unwrap_err()), "unavailable");
    }
    for _ in 0..20 {
        bob.receives("for bob").await;
    }
    assert!(Scrape::of(admin.address).await.samples["sealwire_lock_timeouts_total"] >= 2.0);
    row_lock.release().await;
    assert_eq!(alice.socket.request("messages.send", to_carol).await["duplicate"], false);
    carol.receives("later").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_to_others_are_stored_while_one_waits_for_a_locked_mailbox() {
    let (cluster, _admin) = node(&[]).await;
    let node = &cluster.nodes[0];
    let (alice, bob) = (
        Member::join(node, "alice@example.org", Codec::Json).await,
        Member::join(node, "bob@example.org", Codec::Json).await,
    );
    let carol = Member::join(node, "carol@example.org", Codec::Json).await;
    let mut row_lock = RowLock::lock(&cluster, MAILBOX, &carol.person.device).await;
    let (to_carol, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    // One message to carol after the other waits for a second in vain.
    let waits = async {
        while !is_over.load(Ordering::Relaxed) {
            let sent = alice.socket.try_request("messages.send", message(&[&carol.person], "never")).await;
            assert_eq!(code(&sent.unwrap().unwrap_err()), "unavailable");
            to_carol.fetch_add(1, Ordering::Relaxed);
        }
    };
    let others = async {
        let (mut overtook, mut tries) = (0, 0);
        while overtook < 5 {
            tries += 1;
            assert!(tries < 200, "messages to others wait too");
            row_lock.wait_for_waiters(1).await;
            let before = to_carol.load(Ordering::Relaxed);
            alice.send(&[&bob.person], "for bob").await;
            bob.receives("for bob").await;
            // It was stored and delivered while the same message to carol waited.
            overtook += usize::from(to_carol.load(Ordering::Relaxed) == before);
        }
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(waits, others);
    row_lock.release().await;
    alice.send(&[&carol.person], "at last").await;
    carol.receives("at last").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_waited_for_a_locked_mailbox_arrive_in_their_order() {
    let (cluster, admin) = node(&[]).await;
    let node = &cluster.nodes[0];
    let alice = Member::join(node, "alice@example.org", Codec::Json).await;
    let (phone, laptop) = (
        Member::join(node, "bob@example.org", Codec::Json).await,
        Member::join(node, "bob@example.org", Codec::Json).await,
    );
    let both = [&phone.person, &laptop.person];
    alice.send(&both, "0").await;
    let deferred = "sealwire_batch_items_sum{batch=\"deferred_mail\"}";
    // Until some have waited behind others, which needs a lock that is held longer than a batch waits for it.
    let mut sent = 1;
    while Scrape::of(admin.address).await.samples[deferred] < 10.0 {
        let mut row_lock = RowLock::lock(&cluster, MAILBOX, &phone.person.device).await;
        let numbers: Vec<u32> = (sent..sent + 20).collect();
        let socket = &alice.socket;
        let sends = numbers.iter().map(|number| async move {
            let mut params = message(&both, &number.to_string());
            params["ephemeral"] = (number % 5 == 0).into();
            socket.request("messages.send", params).await
        });
        let release = async {
            row_lock.wait_for_waiters(1).await;
            // More than the brief wait; whether it was, the counter tells.
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            row_lock.release().await;
        };
        tokio::join!(join_all(sends), release);
        sent += 20;
    }
    for device in [&phone, &laptop] {
        let mut seqs = Vec::new();
        for number in 0..sent {
            let event = device.socket.event("message").await;
            assert_eq!(event["content"], content(&number.to_string()));
            seqs.extend(event["seq"].as_u64());
        }
        assert!(seqs.iter().copied().eq(1..=seqs.len() as u64), "{seqs:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_does_not_wait_for_the_mailbox_of_a_device_of_somebody_else() {
    let (cluster, _admin) = node(&[]).await;
    let node = &cluster.nodes[0];
    let mut members = Vec::new();
    for name in ["alice", "bob", "carol"] {
        members.push(Member::join(node, &format!("{name}@example.org"), Codec::Json).await);
    }
    let [alice, bob, carol] = &members[..] else { panic!("three have joined") };
    let row_lock = RowLock::lock(&cluster, MAILBOX, &carol.person.device).await;
    for _ in 0..5 {
        let wrong = message(&[&bob.person, &carol.person], "for whom?");
        let error = alice.socket.refused("messages.send", wrong).await;
        assert_eq!(error["details"], json!({ "missing": [], "extra": [carol.person.device] }), "{error}");
    }
    row_lock.release().await;
}

async fn bob_request(alice: &Member, bob: &Member) -> Value {
    alice.send(&[&bob.person], "for bob").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_device_fails_its_own_connect_and_no_other_of_the_batch() {
    let (cluster, _admin) = node(&[]).await;
    let node = &cluster.nodes[0];
    let mut people = Vec::new();
    for index in 0..6 {
        people.push(sign_in(node, &format!("user{index}@example.org")).await);
    }
    let mut row_lock = RowLock::lock(&cluster, DEVICE, &people[0].device).await;
    let locked = Socket::try_connect(node, &people[0].token, Codec::Json);
    let others = async {
        row_lock.wait_for_waiters(1).await;
        let again = Socket::try_connect(node, &people[0].token, Codec::Json);
        let others = people[1..].iter().map(|person| Socket::connect(node, &person.token, Codec::Json));
        tokio::join!(join_all(others), again)
    };
    let (locked, (others, again)) = tokio::join!(locked, others);
    assert!(locked.is_none() && again.is_none());
    for socket in &others {
        socket.barrier().await;
    }
    row_lock.release().await;
    Socket::connect(node, &people[0].token, Codec::Json).await.barrier().await;
}

/// People who write to each other, and one who publishes keys.
struct Publishing {
    alice: Member,
    bob: Member,
    carol: Socket,
    /// The keys of carol.
    keys: KeySet,
    /// The rounds of work so far.
    rounds: u32,
}

impl Publishing {
    async fn prepare(server: &impl Server) -> Self {
        let alice = Member::join(server, "alice@example.org", Codec::Json).await;
        let bob = Member::join(server, "bob@example.org", Codec::Json).await;
        let carol = sign_in(server, "carol@example.org").await;
        let carol = Socket::connect(server, &carol.token, Codec::Json).await;
        let mut keys = KeySet::new(Suite::SignalX3dh, 7);
        carol.request("keys.publish", keys.complete([])).await;
        Self { alice, bob, carol, keys, rounds: 0 }
    }

    /// Requests of all of them, all of which must succeed.
    async fn work(&mut self) {
        self.alice.socket.barrier().await;
        self.alice.send(&[&self.bob.person], "hello").await;
        self.bob.receives("hello").await;
        // Signatures of others are verified meanwhile.
        self.rounds += 1;
        let rotated = json!({ "signed_prekey": self.keys.signed_prekey(self.rounds + 1) });
        self.carol.request("keys.publish", rotated).await;
    }
}

async fn assert_wrong_signatures_do_not_stop_others(server: &impl Server) {
    let mut others = Publishing::prepare(server).await;
    let pace = Pace::default();
    for _ in 0..50 {
        pace.time(When::BeforeAttack, others.work()).await;
    }
    let mut attackers = Vec::new();
    for index in 0..4 {
        let person = sign_in(server, &format!("attacker{index}@example.org")).await;
        let socket = Socket::connect(server, &person.token, Codec::MsgPack).await;
        let mut keys = KeySet::new(Suite::SignalPqxdh, index);
        socket.request("keys.publish", keys.complete([])).await;
        let key = keys.pq_prekey(1);
        let all = (1..=100).map(|id| {
            let mut key = key.clone();
            key["key_id"] = id.into();
            if id == 100 {
                key["signature"] = KeySet::new(Suite::SignalPqxdh, 99).pq_prekey(1)["signature"].clone();
            }
            key
        });
        attackers.push((socket, json!({ "pq_one_time": all.collect::<Vec<_>>() })));
    }
    let (is_over, wrong) = (AtomicBool::new(false), AtomicUsize::new(0));
    // Eight at a time of each; one of each user is verified at a time.
    let attack = attackers.iter().flat_map(|(socket, publish)| {
        let (is_over, wrong) = (&is_over, &wrong);
        (0..8).map(move |_| async move {
            while !is_over.load(Ordering::Relaxed) {
                let error = socket.refused("keys.publish", publish.clone()).await;
                if code(&error) == "invalid_signature" {
                    assert_eq!(error["details"], json!({ "field": "pq_one_time", "key_id": 100 }), "{error}");
                    wrong.fetch_add(1, Ordering::Relaxed);
                } else {
                    assert_eq!(code(&error), "rate_limited", "{error}");
                }
            }
        })
    });
    let others = async {
        while others.rounds < 100 || wrong.load(Ordering::Relaxed) < 100 {
            pace.time(When::DuringAttack, others.work()).await;
        }
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(join_all(attack), others);
    pace.print("four accounts publish invalid signatures");
    for (socket, _) in &attackers {
        assert_eq!(socket.request("keys.status", json!({})).await["pq_one_time"], 0, "nothing was stored");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_of_a_hundred_signatures_of_which_the_last_is_wrong_do_not_stop_others_on_sqlite() {
    assert_wrong_signatures_do_not_stop_others(&ServerProcess::start(UNLIMITED_SENDS).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_of_a_hundred_signatures_of_which_the_last_is_wrong_do_not_stop_others_on_postgres() {
    let (cluster, _admin) = node(UNLIMITED_SENDS).await;
    assert_wrong_signatures_do_not_stop_others(&cluster.nodes[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_costs_more_if_it_names_many_devices() {
    let server = ServerProcess::start(&[("LIMITS__REQUESTS_PER_CONNECTION_SECOND", "1")]).await;
    let person = sign_in(&server, "alice@example.org").await;
    let served = |devices: usize| {
        let (server, person) = (&server, &person);
        async move {
            let socket = Socket::connect(server, &person.token, Codec::Json).await;
            let ids: Vec<Uuid> = (0..devices).map(|_| Uuid::new_v4()).collect();
            let fetch = json!({ "user_id": person.user, "device_ids": ids });
            let answers = join_all((0..12).map(|_| socket.try_request("keys.fetch", fetch.clone()))).await;
            answers.into_iter().filter(|answer| matches!(answer, Some(Ok(_)))).count()
        }
    };
    // A burst is ten requests, of which these cost one, two and eleven (but at most the burst).
    assert_eq!((served(0).await, served(10).await, served(100).await), (10, 5, 1));
}

/// Besides requests on sockets, connecting and logging out over HTTP wait in the user's own queue.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_many_operations_waits_to_connect_and_to_log_out_and_others_do_not() {
    let (cluster, admin) = node(&[("DATABASE__MAX_CONNECTIONS", "20")]).await;
    let node = &cluster.nodes[0];
    let attacker = sign_in(node, "attacker@example.org").await;
    let sockets = [
        Socket::connect(node, &attacker.token, Codec::Json).await,
        Socket::connect(node, &sign_in(node, "attacker@example.org").await.token, Codec::Json).await,
    ];
    let bystander = sign_in(node, "alice@example.org").await;
    let rename = json!({ "device_id": attacker.device, "name": "again" });
    let log_out =
        |token: String| async move { call(node, Method::DELETE, "/v1/auth/session", Some(&token), None).await.0 };
    let (mut refused_connects, mut refused_logouts) = (0, 0);
    // Each round is over a second after it began, when the first operations give up. On a slow machine that may be too soon.
    for round in 0..4 {
        if refused_connects > 0 && refused_logouts > 0 {
            break;
        }
        let own = [sign_in(node, "attacker@example.org").await, sign_in(node, "attacker@example.org").await];
        let leaving = sign_in(node, &format!("bob{round}@example.org")).await;
        let full = Scrape::of(admin.address).await.samples["sealwire_user_queue_full_total"];
        let row_lock = RowLock::lock(&cluster, DEVICE, &attacker.device).await;
        // 100 requests for 4 + 64 places.
        let attack =
            sockets.iter().flat_map(|socket| (0..50).map(|_| socket.try_request("devices.rename", rename.clone())));
        let watch = async {
            wait_for_sample(admin.address, "sealwire_user_queue_full_total", full + 32.0..=f64::MAX).await;
            let attempts = async {
                tokio::join!(Socket::try_connect(node, &own[0].token, Codec::Json), log_out(own[1].token.clone()))
            };
            let others = async {
                Socket::connect(node, &bystander.token, Codec::Json).await.barrier().await;
                assert_eq!(log_out(leaving.token.clone()).await.as_u16(), 204);
                assert_ready(node).await;
            };
            // What got a place waits until the locks are released.
            let released = async {
                others.await;
                row_lock.release().await;
            };
            tokio::join!(attempts, released).0
        };
        let (_, (connected, logged_out)) = tokio::join!(join_all(attack), watch);
        refused_connects += u32::from(connected.is_none());
        refused_logouts += u32::from(logged_out.as_u16() == 503);
    }
    assert!(refused_connects > 0 && refused_logouts > 0, "{refused_connects} connects, {refused_logouts} logouts");
    Socket::connect(node, &attacker.token, Codec::Json).await.barrier().await;
}
