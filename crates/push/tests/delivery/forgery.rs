//! Clients choose endpoints. No request reaches an address that is not public.

use sealwire_push::{Outcome, Reason, Settings, WebPushTarget};

use crate::support::{
    Script, Service, Speaks, answer, answer_with, sender, sender_with_names, subscribe, wake, web_push_settings,
};

const FORBIDDEN: Outcome = Outcome::Failed(Reason::ForbiddenAddress);

/// The keys of a subscription, from RFC 8291.
const P256DH: &str = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";

#[tokio::test]
async fn names_with_forbidden_addresses_are_not_connected_to() {
    let service = Service::start(Speaks::Https1, |_| answer(201, "")).await;
    let settings = || Settings { allow_insecure: false, ..web_push_settings() };
    for address in
        ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "64:ff9b::7f00:1", "2002:7f00:1::", "169.254.169.254"]
    {
        let script = Script::new(&[&[address]]);
        let sender = sender_with_names(settings(), &script);
        let target = subscribe(&service.https_url("push.example.test", "/"), &sender);
        assert_eq!(sender.send(&target, &wake()).await, FORBIDDEN, "{address}");
        assert_eq!(script.look_ups(), 1);
    }
    assert_eq!(service.connections(), 0);
}

#[tokio::test]
async fn every_look_up_is_checked() {
    // The service closes each connection, so that each message needs a look-up.
    let service = Service::start(Speaks::Https1, |_| answer_with(201, "connection", "close")).await;
    let script = Script::new(&[&["127.0.0.1"], &["169.254.169.254"], &["127.0.0.1"]]);
    let sender = sender_with_names(web_push_settings(), &script);
    let target = subscribe(&service.https_url("push.example.test", "/"), &sender);
    assert_eq!(sender.send(&target, &wake()).await, Outcome::Delivered);
    assert_eq!(sender.send(&target, &wake()).await, FORBIDDEN);
    assert_eq!(sender.send(&target, &wake()).await, Outcome::Delivered);
    assert_eq!((script.look_ups(), service.connections()), (3, 2));
}

#[tokio::test]
async fn forbidden_addresses_among_others_are_left_out() {
    let service = Service::start(Speaks::Https1, |_| answer(201, "")).await;
    let script = Script::new(&[&["10.0.0.1", "fe80::1", "127.0.0.1"]]);
    let sender = sender_with_names(web_push_settings(), &script);
    let target = subscribe(&service.https_url("push.example.test", "/"), &sender);
    assert_eq!(sender.send(&target, &wake()).await, Outcome::Delivered);
}

#[tokio::test]
async fn no_request_is_sent_to_a_network_of_the_settings() {
    let service = Service::start(Speaks::Https1, |_| answer(201, "")).await;
    let names = [&["127.0.0.1", "2606:4700:64::7f00:1"][..], &["93.184.216.34"], &["2606:4700:64::a00:1"]];
    let script = Script::new(&names);
    let forbidden_networks =
        ["127.0.0.0/8", "93.184.216.34/32", "2606:4700:64::/96"].map(|text| text.parse().unwrap()).to_vec();
    let sender = sender_with_names(Settings { forbidden_networks, ..web_push_settings() }, &script);
    let target = subscribe(&service.https_url("push.example.test", "/"), &sender);
    for addresses in names {
        assert_eq!(sender.send(&target, &wake()).await, FORBIDDEN, "{addresses:?}");
    }
    assert_eq!((script.look_ups(), service.connections()), (3, 0));
    for literal in [service.url("/"), "https://[2606:4700:64::a00:1]/".to_owned(), "https://93.184.216.34/".to_owned()]
    {
        assert!(WebPushTarget::parse(&literal, P256DH, AUTH, sender.endpoint_rules()).is_err(), "{literal}");
    }
}

#[tokio::test]
async fn without_tls_only_loopback_is_connected_to() {
    let sender = sender_with_names(web_push_settings(), &Script::new(&[&["93.184.216.34"]]));
    let target = subscribe("http://localhost:8080/", &sender);
    assert_eq!(sender.send(&target, &wake()).await, FORBIDDEN);
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let inner = Service::start(Speaks::Http1, |_| answer(201, "")).await;
    let location = inner.url("/internal");
    for status in [301, 302, 303, 307, 308] {
        let location = location.clone();
        let service = Service::start(Speaks::Http1, move |_| answer_with(status, "location", &location)).await;
        let sender = sender(web_push_settings());
        let outcome = sender.send(&subscribe(&service.url("/"), &sender), &wake()).await;
        assert_eq!(outcome, Outcome::Failed(Reason::Redirected), "{status}");
        assert_eq!(service.received().len(), 1);
    }
    assert_eq!(inner.connections(), 0);
}

#[tokio::test]
async fn names_that_do_not_resolve_are_tried_later() {
    let sender = sender_with_names(web_push_settings(), &Script::new(&[&[]]));
    let target = subscribe("https://push.example.test/", &sender);
    assert_eq!(sender.send(&target, &wake()).await, Outcome::Later { wait: None, reason: Reason::Name });
}
