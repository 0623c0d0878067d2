//! The pushes that devices ask for: confirmations are not repeated without pause or need, and nobody takes them from others.

use futures_util::{StreamExt, stream};
use serde_json::json;

use super::{ON, register};
use crate::support::{
    Codec, Member, Socket, TestApp, code,
    http::confirmation,
    push_service::{Answer, PushService, Subscription},
    sign_in,
};

/// Asks for a confirmation that the service answers with 429 and no pause, and returns once it was tried twice.
async fn tried_twice(service: &PushService, socket: &Socket) -> Subscription {
    let subscription = service.subscribe();
    service.answer(&subscription, Answer::Status(429, "retry-after: 0\r\n"));
    socket.request("push.register", subscription.params()).await;
    service.arrived(&subscription, 2).await;
    subscription
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_service_cannot_have_confirmations_repeated_without_pause_or_after_the_target_is_gone() {
    let app = TestApp::start(&ON);
    let service = PushService::start().await;
    let join = async |name: &str| Member::join(&app, &format!("{name}@example.org"), Codec::Json).await;
    let (removing, replacing, revoked, deleted) =
        tokio::join!(join("removing"), join("replacing"), join("revoked"), join("deleted"));
    let tried = tokio::join!(
        tried_twice(&service, &removing.socket),
        tried_twice(&service, &replacing.socket),
        tried_twice(&service, &revoked.socket),
        tried_twice(&service, &deleted.socket)
    );
    removing.socket.request("push.remove", json!({})).await;
    register(&replacing.socket, &service, &service.subscribe()).await;
    revoked.socket.request("devices.revoke", json!({ "device_id": revoked.person.device })).await;
    let confirmed = confirmation(&app, "deleted@example.org", "delete").await;
    deleted.socket.request("account.delete", confirmed).await;

    // A device that registers now has its third try after theirs would have been.
    let later = join("later").await;
    let other = tried_twice(&service, &later.socket).await;
    service.arrived(&other, 3).await;
    for subscription in [tried.0, tried.1, tried.2, tried.3] {
        assert_eq!(service.pushes(&subscription).len(), 2);
    }
    assert_eq!(service.pushes(&other).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_whose_push_services_hang_leave_the_confirmations_of_others_alone() {
    let app = TestApp::start(&ON);
    let (hanging, honest) = (PushService::start().await, PushService::start().await);
    let attack = async |n: usize| {
        let person = sign_in(&app, &format!("attacker{n}@example.org")).await;
        let socket = Socket::connect(&app, &person.token, Codec::Json).await;
        for _ in 0..5 {
            let subscription = hanging.subscribe();
            hanging.answer(&subscription, Answer::Never);
            socket.request("push.register", subscription.params()).await;
        }
        let refused = socket.refused("push.register", hanging.subscribe().params()).await;
        assert_eq!(code(&refused), "rate_limited");
    };
    // 1,050 registrations.
    stream::iter(0..210).for_each_concurrent(20, attack).await;
    let bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    register(&bob.socket, &honest, &honest.subscribe()).await;
    assert_eq!(bob.socket.request("push.test", json!({})).await, json!({}));
}
