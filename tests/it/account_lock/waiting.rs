//! A request is approved by time, with a mail each day, and a user has few of them.

use std::time::Duration;

use serde_json::json;

use super::{
    EMAIL, WEEK_S, approving, ask, assert_pending, assert_poll_refused, collect, denying, devices, expect_waiting,
    locked_account, pending, right_code,
};
use crate::metrics::wait_for_sample;
use crate::support::{
    Codec, Server, Socket, TestApp, code, eventually,
    http::{mails, post},
};

const DAY: Duration = Duration::from_hours(24);
/// The device that decides must be older than the request.
const TICK: Duration = Duration::from_secs(1);
const WEEK: Duration = Duration::from_secs(WEEK_S);

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_nobody_denies_is_approved_when_its_time_has_come() {
    let app = TestApp::with_clock(&[]);
    let phone = locked_account(&app, EMAIL).await;
    app.advance(TICK);
    let approval = ask(&app, EMAIL, json!({ "device": { "name": "tablet" } })).await;
    assert_eq!(approval["decides_at"], "2026-06-08T12:00:01.000000Z");
    app.advance(Duration::from_millis(WEEK_S * 1000 - 1));
    assert_pending(&app, &approval).await;
    app.advance(Duration::from_millis(1));
    let tablet = collect(&app, EMAIL, &approval).await;
    assert_eq!(phone.socket.event("devices.changed").await["added"], json!([tablet.device]));
    assert_eq!(collect(&app, EMAIL, &approval).await.token, tablet.token);
    Socket::connect(&app, &tablet.token, Codec::Json).await;
    assert_poll_refused(&app, &approval, 404, "not_found").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_approved_by_time_also_if_nobody_polls_it() {
    let app = TestApp::with_clock(&[]);
    let phone = locked_account(&app, EMAIL).await;
    app.advance(TICK);
    let approval = ask(&app, EMAIL, json!({})).await;
    app.advance(WEEK);
    let changed = phone.socket.event("devices.changed").await;
    assert_eq!(changed["added"], json!([collect(&app, EMAIL, &approval).await.device]));
}

/// Longer than the interval at which the server looks at requests. Only time can show that nothing is done.
const A_LOOK: Duration = Duration::from_secs(11);

#[tokio::test(flavor = "multi_thread")]
async fn on_sqlite_a_clock_that_jumps_ahead_approves_nothing_and_mails_nothing() {
    let app = TestApp::with_clock(&[]);
    let phone = locked_account(&app, EMAIL).await;
    app.advance(TICK);
    let approval = ask(&app, EMAIL, json!({})).await;
    let mailed = || {
        let all = mails(app.mail());
        all.iter().filter(|mail| mail.contains("Subject: A request waits for your approval")).count()
    };
    // The server has seen the right time.
    wait_for_sample(app.admin(), "sealwire_sweeps_total", 1.0..=1.0).await;
    let ahead = i64::try_from((WEEK + DAY).as_secs()).unwrap();
    app.jump(ahead);
    for _ in 0..3 {
        assert_pending(&app, &approval).await;
    }
    tokio::time::sleep(A_LOOK).await;
    assert_pending(&app, &approval).await;
    assert_eq!(devices(&phone.socket).await.len(), 1);
    app.jump(-ahead);
    assert_pending(&app, &approval).await;
    assert_eq!(mailed(), 1, "the mail of the first day");
    app.advance(DAY);
    eventually("the mail of the second day", || async { (mailed() == 2).then_some(()) }).await;
    app.advance(DAY * 6);
    collect(&app, EMAIL, &approval).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_device_limit_a_request_whose_time_has_come_waits_until_there_is_a_place() {
    let app = TestApp::with_clock(&[("AUTH__MAX_DEVICES", "2")]);
    let phone = locked_account(&app, EMAIL).await;
    app.advance(TICK);
    let [one, two, three] =
        [ask(&app, EMAIL, json!({})).await, ask(&app, EMAIL, json!({})).await, ask(&app, EMAIL, json!({})).await];
    phone.socket.request("devices.decide", approving(&one)).await;
    let tablet = collect(&app, EMAIL, &one).await;
    app.advance(WEEK);
    assert_pending(&app, &two).await;
    assert_eq!(pending(&phone.socket).await.len(), 2);
    phone.socket.request("devices.decide", denying(&three)).await;
    phone.socket.request("devices.revoke", json!({ "device_id": tablet.device })).await;
    let laptop = collect(&app, EMAIL, &two).await;
    assert_eq!(devices(&phone.socket).await, [phone.person.device.clone(), laptop.device]);
    assert_poll_refused(&app, &three, 403, "denied").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_request_is_mailed_when_it_is_made_and_each_day() {
    let app = TestApp::with_clock(&[]);
    let phone = locked_account(&app, EMAIL).await;
    app.advance(TICK);
    let approval = ask(&app, EMAIL, json!({ "device": { "name": "tablet" } })).await;
    let mailed = || {
        let all = mails(app.mail());
        all.into_iter().filter(|mail| mail.contains("Subject: A request waits for your approval")).collect::<Vec<_>>()
    };
    for day in 0..3 {
        let all = eventually("the mail of the day", || async {
            let all = mailed();
            (all.len() > day).then_some(all)
        })
        .await;
        assert_eq!(all.len(), day + 1);
        assert!(all[day].contains("Name: tablet") && all[day].contains("8 June 2026 at 12:00"), "{}", all[day]);
        assert!(!all[day].contains(approval["poll_token"].as_str().unwrap()));
        app.advance(DAY);
    }
    phone.socket.request("devices.decide", denying(&approval)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_requests_pend_and_ten_are_made_in_a_day() {
    let app = TestApp::with_clock(&[]);
    let phone = locked_account(&app, EMAIL).await;
    app.advance(TICK);
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(ask(&app, EMAIL, json!({})).await);
    }
    let body = right_code(&app, EMAIL, json!({})).await;
    for _ in 0..6 {
        let (status, refused) = post(&app, "/v1/auth/verify", body.clone()).await;
        assert_eq!((status.as_u16(), code(&refused["error"])), (429, "rate_limited"));
        assert_eq!(refused["error"]["retry_after_ms"], json!(WEEK_S * 1000), "until one of the three is decided");
    }
    for approval in &waiting {
        phone.socket.request("devices.decide", denying(approval)).await;
    }
    expect_waiting(&post(&app, "/v1/auth/verify", body).await);
    app.advance(Duration::from_hours(1));
    for made in 4..10 {
        let requests = pending(&phone.socket).await;
        phone.socket.request("devices.decide", json!({ "request_id": requests[0], "approve": false })).await;
        ask(&app, EMAIL, json!({ "device": { "name": format!("number {made}") } })).await;
    }
    let requests = pending(&phone.socket).await;
    phone.socket.request("devices.decide", json!({ "request_id": requests[0], "approve": false })).await;
    let body = right_code(&app, EMAIL, json!({})).await;
    let (_, refused) = post(&app, "/v1/auth/verify", body).await;
    assert_eq!(code(&refused["error"]), "rate_limited");
    assert_eq!(refused["error"]["retry_after_ms"], json!(23 * 3600 * 1000), "until the oldest of the ten is a day old");
    app.advance(Duration::from_hours(23));
    ask(&app, EMAIL, json!({})).await;
}
