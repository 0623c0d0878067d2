//! Mail under attack: recipients that hang, networks that ask for many codes and accounts that cause many notices stop nobody
//! else's mail. Mail that was not sent does not count for its address.

use std::{net::SocketAddr, sync::atomic::Ordering, time::Duration};

use futures_util::{StreamExt, future::join_all, stream};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    auth::{BEHIND_A_PROXY, code_for, offered_bits, post_as},
    metrics::{value, wait_for_sample},
    support::{
        Cluster, Codec, Person, Server, ServerProcess, Services, Socket, TestApp, eventually, http,
        keys::base64,
        mail_server::MailServer,
        pace::{Pace, When},
    },
};

/// The default, which the tests otherwise turn off.
const PER_NETWORK: (&str, &str) = ("LIMITS__OTP_PER_NETWORK_HOUR", "30");
/// The networks of the attack, each with as many codes as it gets in an hour.
const NETWORKS: usize = 35;
const CODES: usize = 30;

/// A bystander's domains. Each of its sign-ins comes from another network.
const DOMAINS: [&str; 4] = ["one.example", "two.example", "three.example", "four.example"];

/// Signs in as `count` people, each from a network of their own, at several domains. Each code must arrive and be valid.
async fn people_sign_in(server: &impl Server, mail: &MailServer, name: &str, count: usize) {
    sign_in_at(server, mail, &DOMAINS, name, count).await;
}

/// Signs in as `count` people, each from a network of their own, at these domains. Each code must arrive and be valid.
async fn sign_in_at(
    server: &impl Server,
    mail: &MailServer,
    domains: &[&str],
    name: &str,
    count: usize,
) -> Vec<Person> {
    let signed_in = (0..count).map(|person| async move {
        let email = format!("{name}{person}@{}", domains[person % domains.len()]);
        let client = format!("198.51.{person}.1");
        let (status, body) = code_for(server, &email, &client).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{body}");
        let code = mail.state.mail_to(&email).await.code();
        let verify = json!({ "challenge_id": body["challenge_id"], "email": email, "code": code });
        let (status, body) = post_as(server, "/v1/auth/verify", &client, None, &verify).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        http::person(&email, &body)
    });
    join_all(signed_in).await
}

/// Requests codes from all networks of the attack. All are answered with 202.
async fn attack(server: &impl Server, codes: usize, email: impl Fn(usize, usize) -> String) {
    let requests = (0..NETWORKS * codes).map(|index| {
        let (network, number) = (index % NETWORKS, index / NETWORKS);
        let email = email(network, number);
        async move { code_for(server, &email, &format!("203.0.{network}.{number}")).await }
    });
    let answers: Vec<(StatusCode, Value)> = stream::iter(requests).buffer_unordered(32).collect().await;
    for (status, body) in answers {
        assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    }
}

/// A node with SQLite, or with PostgreSQL, whose mail goes to this server.
enum Node {
    Sqlite(ServerProcess),
    Postgres(Cluster),
}

impl Node {
    async fn with_sqlite(mail: &MailServer, settings: &[(&str, &str)]) -> Self {
        let url = mail.url();
        Self::Sqlite(ServerProcess::start(&Self::settings(&url, settings)).await)
    }

    async fn with_postgres(mail: &MailServer, settings: &[(&str, &str)]) -> Self {
        let url = mail.url();
        Self::Postgres(Cluster::start(&Services::shared(), 1, &Self::settings(&url, settings)).await)
    }

    fn settings<'a>(url: &'a str, settings: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        settings.iter().copied().chain([BEHIND_A_PROXY, ("MAILER__URL", url)]).collect()
    }

    fn server(&self) -> &ServerProcess {
        match self {
            Self::Sqlite(server) => server,
            Self::Postgres(cluster) => &cluster.nodes[0],
        }
    }
}

/// All networks of the attack ask for codes at a domain that hangs.
async fn thirty_five_networks_attack_one_domain(server: &ServerProcess, mail: &MailServer) {
    mail.state.hang_for(Some("@slow.example"));
    let pace = Pace::default();
    pace.time(When::BeforeAttack, people_sign_in(server, mail, "before", 20)).await;
    attack(server, CODES, |network, number| format!("victim{network}-{number}@slow.example")).await;
    mail.state.wait_for_hanging(1).await;
    pace.time(When::DuringAttack, people_sign_in(server, mail, "during", 20)).await;
    pace.print("35 networks ask for mail to a domain that hangs");
    // The domain held its share of 128 places, and the rest was dropped.
    let dropped = "sealwire_mails_dropped_total{reason=\"domain\"}";
    wait_for_sample(server.admin(), dropped, 100.0..=(35.0 * 30.0 - 128.0)).await;
    mail.state.hang_for(None);
    people_sign_in(server, mail, "after", 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_five_networks_do_not_silence_sign_in_mail() {
    let mail = MailServer::start().await;
    let node = Node::with_sqlite(&mail, &[PER_NETWORK]).await;
    thirty_five_networks_attack_one_domain(node.server(), &mail).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_five_networks_do_not_silence_sign_in_mail_on_postgres() {
    let mail = MailServer::start().await;
    let node = Node::with_postgres(&mail, &[PER_NETWORK]).await;
    thirty_five_networks_attack_one_domain(node.server(), &mail).await;
}

/// All networks of the attack fill the share of a domain that takes mail slowly. Its other users sign in meanwhile.
async fn the_share_of_a_slow_domain_is_filled(server: &ServerProcess, mail: &MailServer) {
    const SLOW: [&str; 1] = ["slow.example"];
    // With eight connections, eight mails a second.
    mail.state.delay_for("@slow.example", Duration::from_secs(1));
    sign_in_at(server, mail, &SLOW, "before", 20).await;
    attack(server, CODES, |network, number| format!("victim{network}-{number}@slow.example")).await;
    let waiting = value(server.admin(), "sealwire_unsent_mails{state=\"waiting\"}").await;
    assert!(waiting > 100.0, "the share is full: {waiting}");
    sign_in_at(server, mail, &SLOW, "during", 20).await;
    let dropped = "sealwire_mails_dropped_total{reason=\"domain\"}";
    wait_for_sample(server.admin(), dropped, 100.0..=(35.0 * 30.0 - 128.0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_users_of_an_attacked_domain_sign_in() {
    let mail = MailServer::start().await;
    let node = Node::with_sqlite(&mail, &[PER_NETWORK]).await;
    the_share_of_a_slow_domain_is_filled(node.server(), &mail).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_users_of_an_attacked_domain_sign_in_on_postgres() {
    let mail = MailServer::start().await;
    let node = Node::with_postgres(&mail, &[PER_NETWORK]).await;
    the_share_of_a_slow_domain_is_filled(node.server(), &mail).await;
}

/// Each network names domains of its own, so that no domain reaches a share.
async fn networks_attack_many_domains(server: &ServerProcess, mail: &MailServer) {
    mail.state.hang_for(Some(".slow.example"));
    people_sign_in(server, mail, "before", 20).await;
    attack(server, 10, |network, number| format!("victim@d{number}.n{network}.slow.example")).await;
    mail.state.wait_for_hanging(16).await;
    // All connections hang; the first that ends goes to somebody else.
    people_sign_in(server, mail, "during", 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_with_many_domains_that_hang_do_not_silence_sign_in_mail() {
    let mail = MailServer::start().await;
    let node = Node::with_sqlite(&mail, &[PER_NETWORK]).await;
    networks_attack_many_domains(node.server(), &mail).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_with_many_domains_that_hang_do_not_silence_sign_in_mail_on_postgres() {
    let mail = MailServer::start().await;
    let node = Node::with_postgres(&mail, &[PER_NETWORK]).await;
    networks_attack_many_domains(node.server(), &mail).await;
}

const LOCKED: &str = "Your account was locked";
const RECOVERY_KEY: [u8; 32] = [42; 32];
/// The attack needs more changes than are allowed.
const NO_LOCK_LIMIT: (&str, &str) = ("LIMITS__LOCK_CHANGES_PER_DEVICE_HOUR", "0");

async fn lock(socket: &Socket) {
    let hash = base64(&Sha256::digest(RECOVERY_KEY));
    assert_eq!(socket.request("account.lock", json!({ "recovery_key_hash": hash })).await, json!({}));
}

/// One account causes notices to its own address, whose domain hangs. Others are told what happens to their accounts, also by
/// clients in the network of the attacker.
async fn one_account_causes_notices(server: &ServerProcess, mail: &MailServer) {
    let people = sign_in_at(server, mail, &DOMAINS, "person", 8).await;
    let thief = sign_in_at(server, mail, &["slow.example"], "thief", 1).await.remove(0);
    mail.state.hang_for(Some("@slow.example"));
    let socket = Socket::connect(server, &thief.token, Codec::Json).await;
    for _ in 0..150 {
        lock(&socket).await;
        socket.request("account.unlock", json!({ "recovery_key": base64(&RECOVERY_KEY) })).await;
    }
    wait_for_sample(server.admin(), "sealwire_unsent_mails{state=\"waiting\"}", 100.0..=128.0).await;
    for person in &people {
        // All sockets of a test are in one network.
        let socket = Socket::connect(server, &person.token, Codec::Json).await;
        lock(&socket).await;
        mail.state.notice_to(&person.email, LOCKED).await;
    }
    people_sign_in(server, mail, "during", 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_account_does_not_silence_the_notices_to_others() {
    let mail = MailServer::start().await;
    let node = Node::with_sqlite(&mail, &[NO_LOCK_LIMIT]).await;
    one_account_causes_notices(node.server(), &mail).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_account_does_not_silence_the_notices_to_others_on_postgres() {
    let mail = MailServer::start().await;
    let node = Node::with_postgres(&mail, &[NO_LOCK_LIMIT]).await;
    one_account_causes_notices(node.server(), &mail).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thief_who_fills_the_share_of_its_network_does_not_suppress_the_notice_to_the_owner() {
    let mail = MailServer::start().await;
    let node = Node::with_sqlite(&mail, &[]).await;
    let server = node.server();
    let victim = sign_in_at(server, &mail, &DOMAINS, "victim", 1).await.remove(0);
    mail.state.hang_for(Some(".slow.example"));
    // The thief's socket is in the same network.
    let codes = (0..200).map(|n| async move {
        let (status, body) =
            http::post(server, "/v1/auth/otp", json!({ "email": format!("x@d{n}.slow.example") })).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    });
    join_all(codes).await;
    wait_for_sample(server.admin(), "sealwire_mails_dropped_total{reason=\"network\"}", 50.0..=72.0).await;
    lock(&Socket::connect(server, &victim.token, Codec::Json).await).await;
    mail.state.notice_to(&victim.email, LOCKED).await;
}

/// Requests more codes for two addresses than they get in an hour: the mail to one is refused, that to the other dropped.
async fn request_codes_that_are_not_mailed(server: &impl Server, mail: &MailServer, admin: SocketAddr) {
    mail.state.refuse_with.store(550, Ordering::SeqCst);
    for code in 1..=4 {
        // The budget is given back after the mail has failed.
        eventually("a code can be requested", || async {
            (code_for(server, REFUSED, "192.0.2.1").await.0 == StatusCode::ACCEPTED).then_some(())
        })
        .await;
        mail.state.wait_for_refusals(code).await;
    }
    mail.state.refuse_with.store(0, Ordering::SeqCst);

    mail.state.hang_for(Some("@slow.example"));
    let fill = (0..128).map(|n| async move {
        let (status, body) = code_for(server, &format!("user{n}@slow.example"), &format!("203.0.{n}.1")).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    });
    join_all(fill).await;
    for network in 0..4 {
        let (status, body) = code_for(server, DROPPED, &format!("192.0.{network}.1")).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    }
    wait_for_sample(admin, "sealwire_mails_dropped_total{reason=\"domain\"}", 4.0..=4.0).await;
}

const REFUSED: &str = "refused@one.example";
const DROPPED: &str = "dropped@slow.example";
const TWO_AN_HOUR: [(&str, &str); 3] =
    [BEHIND_A_PROXY, ("LIMITS__OTP_PER_EMAIL_HOUR", "2"), ("LIMITS__OTP_PER_EMAIL_NETWORK_HOUR", "0")];

#[tokio::test(flavor = "multi_thread")]
async fn mail_that_was_not_sent_does_not_count_for_its_address() {
    let mail = MailServer::start().await;
    let url = mail.url();
    let settings: Vec<_> = TWO_AN_HOUR.into_iter().chain([("MAILER__URL", url.as_str())]).collect();
    let app = TestApp::start(&settings);
    request_codes_that_are_not_mailed(&app, &mail, app.admin()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_that_one_node_did_not_send_does_not_count_on_another() {
    let mail = MailServer::start().await;
    let url = mail.url();
    let settings: Vec<_> = TWO_AN_HOUR.into_iter().chain([("MAILER__URL", url.as_str())]).collect();
    let cluster = Cluster::start(&Services::shared(), 2, &settings).await;
    let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
    request_codes_that_are_not_mailed(first, &mail, first.admin()).await;
    // On the other node, each address has both of its codes. The places of that node are free.
    for email in [REFUSED, DROPPED] {
        for network in ["192.0.1.1", "192.0.2.1"] {
            let (status, body) = eventually("the code before was given back", || async {
                Some(code_for(second, email, network).await).filter(|answer| answer.0 == StatusCode::ACCEPTED)
            })
            .await;
            assert_eq!(status, StatusCode::ACCEPTED, "{body}");
        }
        offered_bits(&code_for(second, email, "192.0.3.1").await);
    }
}
