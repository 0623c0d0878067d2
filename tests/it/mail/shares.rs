//! Mail under attack: recipients that hang, and networks that ask for many codes, stop nobody else's mail. Mail that was
//! not sent does not count for its address.

use std::{net::SocketAddr, sync::atomic::Ordering};

use futures_util::{StreamExt, future::join_all, stream};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    auth::{BEHIND_A_PROXY, code_for, offered_bits, post_as},
    metrics::wait_for_sample,
    support::{Cluster, Server, ServerProcess, Services, TestApp, eventually, mail_server::MailServer},
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
    let signed_in = (0..count).map(|person| async move {
        let email = format!("{name}{person}@{}", DOMAINS[person % DOMAINS.len()]);
        let client = format!("198.51.{person}.1");
        let (status, body) = code_for(server, &email, &client).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{body}");
        let code = mail.state.mail_to(&email).await.code();
        let verify = json!({ "challenge_id": body["challenge_id"], "email": email, "code": code });
        let (status, body) = post_as(server, "/v1/auth/verify", &client, None, &verify).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
    });
    join_all(signed_in).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn thirty_five_networks_do_not_silence_sign_in_mail() {
    let mail = MailServer::start().await;
    mail.state.hang_for(Some("@slow.example"));
    let server = ServerProcess::start(&[BEHIND_A_PROXY, PER_NETWORK, ("MAILER__URL", &mail.url())]).await;
    people_sign_in(&server, &mail, "before", 20).await;
    attack(&server, CODES, |network, number| format!("victim{network}-{number}@slow.example")).await;
    mail.state.wait_for_hanging(1).await;
    people_sign_in(&server, &mail, "during", 20).await;
    // The domain held its share of 128 places, and the rest was dropped.
    let dropped = "sealwire_mails_dropped_total{reason=\"domain\"}";
    wait_for_sample(server.admin(), dropped, 100.0..=(35.0 * 30.0 - 128.0)).await;
    mail.state.hang_for(None);
    people_sign_in(&server, &mail, "after", 20).await;
}

/// Each network names domains of its own, so that no domain reaches a share.
#[tokio::test(flavor = "multi_thread")]
async fn networks_with_many_domains_that_hang_do_not_silence_sign_in_mail() {
    let mail = MailServer::start().await;
    mail.state.hang_for(Some(".slow.example"));
    let server = ServerProcess::start(&[BEHIND_A_PROXY, PER_NETWORK, ("MAILER__URL", &mail.url())]).await;
    people_sign_in(&server, &mail, "before", 20).await;
    attack(&server, 10, |network, number| format!("victim@d{number}.n{network}.slow.example")).await;
    mail.state.wait_for_hanging(16).await;
    // All connections hang; the first that ends goes to somebody else.
    people_sign_in(&server, &mail, "during", 20).await;
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
