//! The places of a node for sockets: neither few accounts nor one network keep others from connecting.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{ADDRESS, OTHER_NETWORK, SAME_NETWORK, assert_upgrade_refused, upgrade, users};
use crate::{
    metrics::wait_for_sample,
    support::{
        Person, TestApp, eventually,
        pace::{Pace, When},
        problem::assert_problem,
        raw::{BINARY, RawSocket, UpgradeResponse, header},
        sign_in,
    },
};

const OPEN: &str = "sealwire_open_sockets";
const OF_USERS: &str = "sealwire_sockets_given_up_total{share=\"user\"}";
const OF_NETWORKS: &str = "sealwire_sockets_given_up_total{share=\"network\"}";

fn assert_full(answer: &UpgradeResponse) {
    assert_eq!(answer.status, assert_problem(&answer.body["error"], "unavailable", "an upgrade on a full node"));
}

async fn open(app: &TestApp, source: [u8; 4], person: &Person) -> RawSocket {
    let (answer, mut socket) = upgrade(app, source, person, None).await;
    assert_eq!(answer.status, 101);
    assert_eq!(socket.message().await.unwrap()["event"], "welcome");
    socket
}

/// Does the same as before the attack: a new socket, which answers.
async fn work(app: &TestApp, person: &Person) {
    let mut socket = open(app, OTHER_NETWORK, person).await;
    assert!(socket.status(1).await["result"].is_object());
}

/// Each new socket of a device displaces the one before, whose client keeps its connection as long as it can.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_reconnects_all_the_time_holds_two_places_for_each_device() {
    // Four for each user.
    let app = TestApp::start(&[("SERVER__MAX_CONNECTIONS", "8"), ("AUTH__MAX_DEVICES", "2")]);
    let (attacker, bystander) =
        (sign_in(&app, "attacker@example.org").await, sign_in(&app, "bystander@example.org").await);
    let pace = Pace::default();
    for _ in 0..10 {
        pace.time(When::BeforeAttack, work(&app, &bystander)).await;
    }
    let is_over = AtomicBool::new(false);
    let attack = async {
        let (mut held, mut dripping) = (Vec::new(), Vec::new());
        while !is_over.load(Ordering::Relaxed) || held.len() < 40 {
            let mut socket = open(&app, ADDRESS, &attacker).await;
            assert!(socket.status(1).await["result"].is_object());
            // What it sends keeps the server waiting for the end of the connection.
            dripping.push(socket.drip_in_background(header(BINARY, 100_000)));
            held.push(socket);
        }
        // They all drip, and only four of them have a place.
        wait_for_sample(app.admin(), OPEN, 0.0..=4.0).await;
        for drip in dripping {
            drip.abort();
        }
    };
    let bystander = async {
        for _ in 0..30 {
            pace.time(When::DuringAttack, work(&app, &bystander)).await;
        }
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(attack, bystander);
    pace.print("a user connects all the time");
    wait_for_sample(app.admin(), OF_USERS, 10.0..=f64::MAX).await;
    wait_for_sample(app.admin(), OF_NETWORKS, 0.0..=0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_gives_up_sockets_of_the_network_that_holds_most_and_refuses_that_network() {
    let app = TestApp::start(&[("SERVER__MAX_CONNECTIONS", "8")]);
    let people = users(&app, 14).await;
    let mut crowd = Vec::new();
    for person in &people[..8] {
        crowd.push(open(&app, ADDRESS, person).await);
    }
    // The network does not displace its own, so that what connects through one proxy does not take turns.
    for person in &people[8..10] {
        assert_full(&upgrade(&app, SAME_NETWORK, person, None).await.0);
    }
    let mut few = Vec::new();
    for person in &people[8..12] {
        few.push(open(&app, OTHER_NETWORK, person).await);
    }
    for source in [ADDRESS, OTHER_NETWORK] {
        assert_full(&upgrade(&app, source, &people[12], None).await.0);
    }
    // The oldest four of the crowd are closed, and nobody else.
    let newer = crowd.split_off(4);
    for mut oldest in crowd {
        assert_eq!(oldest.close_code().await, 4003);
    }
    for mut kept in few.into_iter().chain(newer) {
        assert!(kept.status(1).await["result"].is_object());
    }
    wait_for_sample(app.admin(), OF_NETWORKS, 4.0..=4.0).await;
    wait_for_sample(app.admin(), OF_USERS, 0.0..=0.0).await;
    let refused = "sealwire_connections_refused_total{limit=\"max_connections\"}";
    wait_for_sample(app.admin(), refused, 8.0..=8.0).await;
    eventually("the node has places again", || async {
        (upgrade(&app, ADDRESS, &people[13], None).await.0.status == 101).then_some(())
    })
    .await;
}

/// A client whose place was given up has a second to read why. Then its connection ends, whatever it does.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_lost_its_place_ends_even_if_its_client_does_not_read() {
    let app = TestApp::start(&[("SERVER__MAX_CONNECTIONS", "2")]);
    let people = users(&app, 3).await;
    let stubborn = open(&app, ADDRESS, &people[0]).await;
    let mut second = open(&app, ADDRESS, &people[1]).await;
    let dripping = stubborn.drip_in_background(header(BINARY, 100_000));
    work(&app, &people[2]).await;
    // The drip ends when the connection does.
    eventually("the connection ends", || async { dripping.is_finished().then_some(()) }).await;
    wait_for_sample(app.admin(), OF_NETWORKS, 1.0..=1.0).await;
    assert!(second.status(1).await["result"].is_object());
}

/// However many /48 it has, a wide network of IPv6 has at most half of the places. A single network may be a proxy.
#[tokio::test(flavor = "multi_thread")]
async fn a_wide_ipv6_network_may_hold_half_of_the_places() {
    let app = TestApp::start(&[
        ("SERVER__TRUSTED_PROXIES", "127.0.1.0/24"),
        ("SERVER__MAX_CONNECTIONS", "8"),
        ("LIMITS__CONNECTIONS_PER_NETWORK", "20000"),
    ]);
    let users = users(&app, 9).await;
    let mut held = Vec::new();
    let open = async |person: &Person, client: &str| upgrade(&app, ADDRESS, person, Some(client)).await;
    for (index, user) in users[..4].iter().enumerate() {
        let (answer, socket) = open(user, &format!("2001:db8:{index:x}::1")).await;
        assert_eq!(answer.status, 101);
        held.push(socket);
    }
    for client in ["2001:db8::1", "2001:db8:ff::1", "2001:db8:ff00::1"] {
        assert_upgrade_refused(&open(&users[4], client).await.0);
    }
    for (index, user) in users[4..8].iter().enumerate() {
        let (answer, socket) = open(user, "192.0.2.1").await;
        assert_eq!(answer.status, 101, "{index}");
        held.push(socket);
    }
    for socket in &mut held {
        assert!(socket.status(1).await["result"].is_object());
    }
}
