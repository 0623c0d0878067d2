//! Clients that hold connections without an upgrade.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::sleep,
};

use super::{ADDRESS, OTHER_NETWORK, SAME_NETWORK, assert_refused, is_served, request_and_close, upgrade};
use crate::{
    metrics::{Scrape, wait_for_sample},
    support::{
        Codec, Person, Socket, TestApp, eventually,
        pace::{Pace, When},
        raw::connect_from,
        sign_in,
    },
};

/// Places for connections that have not upgraded.
const PLACES: u32 = 64;

/// Opens a connection and holds it until the server ends it or the attack is over. Returns false if the attack is over.
async fn hold(app: &TestApp, network: u8, mut is_over: watch::Receiver<bool>) -> bool {
    let mut stream = connect_from([127, 0, network, 1], app).await;
    // The beginning of a request, so that the server waits for the rest.
    let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nX: ").await;
    let mut answer = [0; 64];
    tokio::select! {
        () = async { while matches!(stream.read(&mut answer).await, Ok(1..)) {} } => true,
        _ = is_over.wait_for(|is_over| *is_over) => false,
    }
}

/// Makes requests, each on a connection of its own, and a sign-in. All of them must succeed.
async fn work(app: &TestApp, socket: &Socket, round: &str, pace: &Pace, when: When) {
    for _ in 0..50 {
        let requests = async {
            assert!(is_served(&mut connect_from(OTHER_NETWORK, app).await).await);
            socket.barrier().await;
        };
        pace.time(when, requests).await;
    }
    sign_in(app, &format!("{round}@example.org")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_that_hold_all_http_connections_do_not_keep_others_from_connecting() {
    let places = PLACES.to_string();
    let app = TestApp::start(&[("SERVER__MAX_HTTP_CONNECTIONS", &places)]);
    let person = sign_in(&app, "bystander@example.org").await;
    let socket = Socket::connect(&app, &person.token, Codec::Json).await;
    let pace = Pace::default();
    work(&app, &socket, "before", &pace, When::BeforeAttack).await;

    let (end, is_over) = watch::channel(false);
    let opened = AtomicUsize::new(0);
    // Eight networks, with three connections for each two places.
    let attack = (0..PLACES * 3 / 2).map(|index| {
        let (app, is_over, opened) = (&app, is_over.clone(), &opened);
        async move {
            while hold(app, 40 + u8::try_from(index % 8).unwrap(), is_over.clone()).await {
                opened.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(200)).await;
            }
        }
    });
    let bystander = async {
        let refused = "sealwire_connections_refused_total{limit=\"max_http_connections\"}";
        wait_for_sample(app.admin(), refused, 10.0..=1e9).await;
        work(&app, &socket, "during", &pace, When::DuringAttack).await;
        // The attackers displace each other all the time.
        while opened.load(Ordering::Relaxed) < 100 {
            work(&app, &socket, "later", &pace, When::DuringAttack).await;
        }
        let open = Scrape::of(app.admin()).await.samples["sealwire_open_http_connections"];
        assert!(open > f64::from(PLACES) / 2.0, "{open} are open, so there was no attack");
        end.send_replace(true);
    };
    tokio::join!(join_all(attack), bystander);
    pace.print("eight networks hold all connections");
    // One is the connection of the client that reads the metrics.
    wait_for_sample(app.admin(), "sealwire_open_http_connections", 0.0..=8.0).await;
}

/// Keeps a refused upgrade open for as long as the server lets it: sends bytes that the server discards.
async fn linger(app: &TestApp, person: &Person) -> Option<tokio::task::JoinHandle<()>> {
    let (answer, socket) = upgrade(app, ADDRESS, person, None).await;
    (answer.status == 401).then(|| socket.drip_in_background(vec![b'x']))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_upgrade_counts_as_a_connection_until_it_ends() {
    let app = TestApp::start(&[("LIMITS__HTTP_CONNECTIONS_PER_NETWORK", "2")]);
    let person = sign_in(&app, "alice@example.org").await;
    let invalid = Person { token: "A".repeat(43), ..person };
    // Several tries, because lingering ends after some seconds.
    eventually("the network has no place", || async {
        let lingering = (linger(&app, &invalid).await, linger(&app, &invalid).await);
        let mut third: TcpStream = connect_from(SAME_NETWORK, &app).await;
        let answer = request_and_close(&mut third).await;
        for one in [lingering.0, lingering.1].into_iter().flatten() {
            one.abort();
        }
        (answer.0 == 429).then(|| assert_refused(answer, "rate_limited"))
    })
    .await;
    eventually("the places are free again", || async {
        is_served(&mut connect_from(SAME_NETWORK, &app).await).await.then_some(())
    })
    .await;
}
