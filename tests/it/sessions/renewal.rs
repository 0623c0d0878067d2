//! `session.renew`: the new session (the successor), when it replaces the old one, and how both end.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{EMAIL, assert_ended, connect, delete_session, session_of};
use crate::support::{Codec, Socket, TestApp, code, sign_in};

const DAY: Duration = Duration::from_hours(24);

async fn renew(socket: &Socket) -> (String, String) {
    let renewed = socket.request("session.renew", json!({})).await;
    let text = |key: &str| renewed[key].as_str().unwrap().to_owned();
    assert_eq!(renewed.as_object().unwrap().len(), 3, "{renewed}");
    assert!(text("expires_at").ends_with('Z'));
    (text("session_id"), text("token"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_token_is_valid_until_the_new_one_is_presented_over_http() {
    let app = TestApp::start(&[]);
    let old = sign_in(&app, EMAIL).await;
    let socket = connect(&app, &old.token).await;
    let (session, token) = renew(&socket).await;
    assert_ne!(session, old.session);
    for _ in 0..2 {
        assert_eq!(session_of(&app, &old.token).await, Some(old.session.clone()), "the old token is still valid");
    }
    assert_eq!(session_of(&app, &token).await, Some(session.clone()));
    assert_eq!(session_of(&app, &old.token).await, None);
    socket.barrier().await;
    assert!(!socket.is_closed(), "the socket that renewed belongs to the successor");
    assert_eq!(session_of(&app, &token).await, Some(session));
    assert_eq!(delete_session(&app, &token).await, 204);
    assert_ended(&socket, "logout", 4500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_token_is_valid_until_the_new_one_is_presented_in_an_upgrade() {
    let app = TestApp::start(&[]);
    let old = sign_in(&app, EMAIL).await;
    let socket = connect(&app, &old.token).await;
    let (session, token) = renew(&socket).await;
    let newer = connect(&app, &token).await;
    assert_eq!(newer.welcome["session_id"], session);
    assert_eq!(session_of(&app, &old.token).await, None);
    assert_eq!(socket.close_code().await, 4503, "displaced, as by any newer connection");
    assert_eq!(socket.take_event("session.revoked"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_of_the_old_session_closes_when_the_new_token_is_presented() {
    let app = TestApp::start(&[]);
    let old = sign_in(&app, EMAIL).await;
    let (_, token) = renew(&connect(&app, &old.token).await).await;
    let back = connect(&app, &old.token).await;
    assert_eq!(back.welcome["session_id"], old.session);
    assert!(session_of(&app, &token).await.is_some());
    assert_ended(&back, "logout", 4500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_may_be_presented_in_parallel() {
    let app = TestApp::start(&[]);
    let mut person = sign_in(&app, EMAIL).await;
    let socket = connect(&app, &person.token).await;
    for _ in 0..10 {
        let (session, token) = renew(&socket).await;
        let presented = join_all((0..8).map(|_| session_of(&app, &token))).await;
        assert!(presented.iter().all(|found| found.as_ref() == Some(&session)), "{presented:?}");
        assert_eq!(session_of(&app, &person.token).await, None);
        person.token = token;
        socket.barrier().await;
    }
}

/// If a successor is presented while it is being replaced, either it or the old token stays valid.
#[tokio::test(flavor = "multi_thread")]
async fn presenting_a_successor_while_renewing_again_leaves_a_valid_token() {
    let app = TestApp::start(&[]);
    let mut old = sign_in(&app, EMAIL).await;
    let socket = connect(&app, &old.token).await;
    for _ in 0..20 {
        let (_, first) = renew(&socket).await;
        let (presented, (_, second)) = tokio::join!(session_of(&app, &first), renew(&socket));
        let valid = if presented.is_some() { &first } else { &old.token };
        assert!(session_of(&app, valid).await.is_some());
        assert!(session_of(&app, &second).await.is_some());
        assert_eq!(session_of(&app, &first).await, None);
        assert_eq!(session_of(&app, &old.token).await, None);
        socket.barrier().await;
        old.token = second;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn renewing_again_replaces_the_successor() {
    let app = TestApp::start(&[]);
    let old = sign_in(&app, EMAIL).await;
    let socket = connect(&app, &old.token).await;
    let (_, first) = renew(&socket).await;
    let (second_session, second) = renew(&socket).await;
    assert_eq!(session_of(&app, &first).await, None, "the earlier successor is invalid");
    assert_eq!(
        session_of(&app, &old.token).await,
        Some(old.session.clone()),
        "presenting it did not end the old session"
    );

    // A client that lost the reply reconnects with the old token and renews again.
    let back = connect(&app, &old.token).await;
    let (third_session, third) = renew(&back).await;
    assert_eq!(session_of(&app, &second).await, None);
    assert_eq!(session_of(&app, &third).await, Some(third_session.clone()));
    assert_eq!(session_of(&app, &old.token).await, None);
    back.barrier().await;

    // Once presented, the successor can be renewed like any other session.
    let (fourth_session, fourth) = renew(&back).await;
    assert_eq!(session_of(&app, &third).await, Some(third_session.clone()));
    assert_eq!(session_of(&app, &fourth).await, Some(fourth_session.clone()));
    assert_eq!(session_of(&app, &third).await, None);
    let sessions = [old.session, second_session, third_session, fourth_session];
    assert_eq!(sessions.iter().collect::<std::collections::HashSet<_>>().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn logging_out_the_old_or_the_new_session_ends_both() {
    let app = TestApp::start(&[]);
    for way in ["old token", "new token", "socket"] {
        let old = sign_in(&app, EMAIL).await;
        let socket = connect(&app, &old.token).await;
        let (_, token) = renew(&socket).await;
        match way {
            "old token" => assert_eq!(delete_session(&app, &old.token).await, 204),
            "new token" => assert_eq!(delete_session(&app, &token).await, 204),
            _ => assert_eq!(socket.request("session.logout", json!({})).await, json!({})),
        }
        assert_eq!(session_of(&app, &old.token).await, None, "{way}");
        assert_eq!(session_of(&app, &token).await, None, "{way}");
        assert_ended(&socket, "logout", 4500).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_on_a_socket_of_the_old_session_ends_both_sessions() {
    let app = TestApp::start(&[]);
    let old = sign_in(&app, EMAIL).await;
    let (_, token) = renew(&connect(&app, &old.token).await).await;
    let back = connect(&app, &old.token).await;
    back.request("session.logout", json!({})).await;
    assert_ended(&back, "logout", 4500).await;
    assert_eq!(session_of(&app, &token).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_expiry_of_the_old_session_does_not_end_the_new_one() {
    let app = TestApp::with_clock(&[("AUTH__SESSION_DAYS", "30")]);
    let old = sign_in(&app, EMAIL).await;
    let socket = connect(&app, &old.token).await;
    app.advance(29 * DAY);
    let (session, token) = renew(&socket).await;
    app.advance(2 * DAY);
    assert_eq!(session_of(&app, &old.token).await, None);
    socket.barrier().await;
    assert_eq!(session_of(&app, &token).await, Some(session));
    let (_, next) = renew(&socket).await;
    app.advance(29 * DAY);
    assert_eq!(session_of(&app, &token).await, None, "the successor expires at its own time");
    assert!(session_of(&app, &next).await.is_some());
    socket.barrier().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_renewed_closes_when_the_new_session_expires() {
    // 8.64 seconds: long enough to sign in and connect on a busy machine. The test needs real time.
    let app = TestApp::start(&[("AUTH__SESSION_DAYS", "0.0001")]);
    let old = sign_in(&app, EMAIL).await;
    let socket = connect(&app, &old.token).await;
    // The successor expires this much later than the old session.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let renewed = Instant::now();
    let (_, token) = renew(&socket).await;
    assert_ended(&socket, "expired", 4501).await;
    let lived = renewed.elapsed();
    assert!(lived >= Duration::from_millis(8640) && lived < Duration::from_millis(8640 + 5000), "{lived:?}");
    assert_eq!(session_of(&app, &token).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn renewals_may_be_pipelined_with_other_requests() {
    let app = TestApp::start(&[]);
    let old = sign_in(&app, EMAIL).await;
    for codec in Codec::ALL {
        let person = crate::support::sign_in_as(&app, EMAIL, json!({ "device": { "id": old.device } })).await;
        let socket = Socket::connect(&app, &person.token, codec).await;
        let ops = ["keys.status", "session.renew", "devices.list", "session.renew", "devices.rename", "session.renew"];
        let mut replies = Vec::new();
        for (index, op) in (1_000_000..).zip(ops) {
            replies.push(socket.expect_reply(index));
            let params = if op == "devices.rename" { json!({ "name": "phone" }) } else { json!({}) };
            socket.send(codec.encode(&json!({ "id": index, "op": op, "params": params }))).await;
        }
        let mut tokens = Vec::new();
        for (reply, op) in replies.into_iter().zip(ops) {
            let reply: Value = reply.await.unwrap();
            assert!(reply.get("error").is_none(), "{op}: {reply}");
            if op == "session.renew" {
                tokens.push(reply["result"]["token"].as_str().unwrap().to_owned());
            }
        }
        assert_eq!(session_of(&app, &tokens[0]).await, None);
        assert_eq!(session_of(&app, &tokens[1]).await, None);
        assert!(session_of(&app, &person.token).await.is_some());
        assert!(session_of(&app, &tokens[2]).await.is_some());
        assert_eq!(session_of(&app, &person.token).await, None);
        socket.barrier().await;
    }
}

/// Whatever comes first, a revoked device has no valid token left.
#[tokio::test(flavor = "multi_thread")]
async fn renewing_in_parallel_with_a_revocation_leaves_no_valid_token() {
    let app = TestApp::start(&[]);
    let owner = sign_in(&app, EMAIL).await;
    let phone = connect(&app, &owner.token).await;
    for _ in 0..20 {
        let stolen = sign_in(&app, EMAIL).await;
        let socket = connect(&app, &stolen.token).await;
        let (revoked, renewed) = tokio::join!(
            phone.request("devices.revoke", json!({ "device_id": stolen.device })),
            socket.try_request("session.renew", json!({})),
        );
        assert_eq!(revoked, json!({}));
        assert_ended(&socket, "device_revoked", 4502).await;
        assert_eq!(session_of(&app, &stolen.token).await, None);
        match renewed {
            Some(Ok(renewed)) => assert_eq!(session_of(&app, renewed["token"].as_str().unwrap()).await, None),
            Some(Err(error)) => assert_eq!(code(&error), "session_revoked"),
            None => {}
        }
    }
}
