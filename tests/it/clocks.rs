//! Nodes with a wrong clock: they delete nothing, and what they wrote harms nobody.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    metrics::wait_for_sample,
    support::{Codec, Member, Person, Server, Services, Socket, TestApp, http::call, mailing::message, sign_in},
};

const TRUSTED: &str = "sealwire_clock_trusted";
const MONTH: Duration = Duration::from_hours(31 * 24);
/// Longer than the interval at which expired mail is deleted. Only time can show that nothing is.
const TWO_EXPIRIES: Duration = Duration::from_secs(11);

async fn readiness(server: &impl Server) -> (StatusCode, Value) {
    call(server, Method::GET, "/readyz", None, None).await
}

/// Stores a message that expires within a day. Returns its receiver, who is not connected.
async fn store_message(server: &impl Server) -> Person {
    let alice = Member::join(server, "alice@example.org", Codec::Json).await;
    let Member { person, socket } = Member::join(server, "bob@example.org", Codec::Json).await;
    drop(socket);
    let mut short = message(&[&person], "still here");
    short["ttl_s"] = json!(24 * 3600);
    assert_eq!(alice.socket.request("messages.send", short).await["stored"], 1);
    person
}

async fn assert_received(server: &impl Server, bob: Person) {
    let socket = Socket::connect(server, &bob.token, Codec::Json).await;
    Member { person: bob, socket }.receives("still here").await;
}

async fn request_code(server: &impl Server, email: &str) -> StatusCode {
    let body = json!({ "email": email });
    call(server, Method::POST, "/v1/auth/otp", None, Some(body)).await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_clock_is_a_month_ahead_is_not_ready_and_deletes_nothing() {
    let services = Services::shared();
    let database = services.database().await;
    let settings = [
        ("DATABASE__URL", database.as_str()),
        ("BUS__URL", services.redis.as_str()),
        ("AUTH__SECRET", "c2VhbHdpcmUtdGVzdC1zZWNyZXQtMzItYnl0ZXMtISE="),
    ];
    let right = TestApp::start(&settings);
    let bob = store_message(&right).await;
    let ahead = TestApp::with_clock_ahead(&settings, MONTH);
    wait_for_sample(ahead.admin(), "sealwire_clock_skew_seconds", 2_678_000.0..=2_679_000.0).await;
    wait_for_sample(ahead.admin(), TRUSTED, 0.0..=0.0).await;
    wait_for_sample(right.admin(), TRUSTED, 1.0..=1.0).await;
    let (status, body) = readiness(&ahead).await;
    assert_eq!((status.as_u16(), &body["status"], &body["reasons"]), (503, &json!("not_ready"), &json!(["clock"])));
    tokio::time::sleep(TWO_EXPIRIES).await;
    wait_for_sample(ahead.admin(), "sealwire_sweeps_total", 0.0..=0.0).await;
    wait_for_sample(ahead.admin(), "sealwire_expired_envelopes_total", 0.0..=0.0).await;
    // A session that ends within the month stays valid there, and so do a new code and its session.
    let carol = Member::join(&right, "carol@example.org", Codec::Json).await;
    drop(carol.socket);
    let there =
        Member { socket: Socket::connect(&ahead, &carol.person.token, Codec::Json).await, person: carol.person };
    there.socket.request("keys.status", json!({})).await;
    let dave = Member::join(&ahead, "dave@example.org", Codec::Json).await;
    let (status, session) = call(&right, Method::GET, "/v1/auth/session", Some(&dave.person.token), None).await;
    assert_eq!(status, StatusCode::OK, "{session}");
    assert_eq!(readiness(&right).await.0, StatusCode::OK);
    wait_for_sample(right.admin(), "sealwire_clock_skew_seconds", -1.0..=1.0).await;
    assert_received(&right, bob).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_sqlite_a_jump_ahead_and_back_deletes_nothing_and_locks_nobody_out() {
    let app = TestApp::with_clock(&[
        ("LIMITS__OTP_PER_EMAIL_HOUR", "3"),
        ("LIMITS__OTP_PER_EMAIL_DAY", "5"),
        ("LIMITS__OTP_PER_NETWORK_HOUR", "8"),
    ]);
    let bob = store_message(&app).await;
    wait_for_sample(app.admin(), "sealwire_sweeps_total", 1.0..=1.0).await;
    app.jump(i64::try_from(MONTH.as_secs()).unwrap());
    tokio::time::sleep(TWO_EXPIRIES).await;
    wait_for_sample(app.admin(), "sealwire_expired_envelopes_total", 0.0..=0.0).await;
    for _ in 0..3 {
        assert_eq!(request_code(&app, "carol@example.org").await, StatusCode::ACCEPTED);
    }
    assert_eq!(request_code(&app, "carol@example.org").await, StatusCode::TOO_MANY_REQUESTS);
    let mut others = 0;
    while request_code(&app, &format!("other{others}@example.org")).await == StatusCode::ACCEPTED {
        others += 1;
    }
    assert!(others < 8, "the limit of the network is reached too");
    app.jump(-i64::try_from(MONTH.as_secs()).unwrap());
    assert_eq!(
        request_code(&app, "carol@example.org").await,
        StatusCode::ACCEPTED,
        "codes from the future do not count"
    );
    assert_received(&app, bob).await;
    assert_eq!(readiness(&app).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_sqlite_mail_expires_again_once_the_clock_has_run_evenly_for_ten_minutes() {
    let app = TestApp::with_clock(&[]);
    store_message(&app).await;
    wait_for_sample(app.admin(), "sealwire_sweeps_total", 1.0..=1.0).await;
    wait_for_sample(app.admin(), TRUSTED, 1.0..=1.0).await;
    app.jump(i64::try_from(MONTH.as_secs()).unwrap());
    tokio::time::sleep(TWO_EXPIRIES).await;
    wait_for_sample(app.admin(), "sealwire_expired_envelopes_total", 0.0..=0.0).await;
    wait_for_sample(app.admin(), TRUSTED, 0.0..=0.0).await;
    app.advance(Duration::from_mins(10));
    wait_for_sample(app.admin(), "sealwire_expired_envelopes_total", 1.0..=1.0).await;
    wait_for_sample(app.admin(), TRUSTED, 1.0..=1.0).await;
}

/// The clock is five years ahead while a device signs in. Then the server starts again, with the right time.
async fn assert_a_device_from_the_future_grows_old(database: &str) {
    const YEARS: i64 = 5 * 365 * 24 * 3600;
    let settings = [("DATABASE__URL", database), ("AUTH__SECRET", "c2VhbHdpcmUtdGVzdC1zZWNyZXQtMzItYnl0ZXMtISE=")];
    let (old, young) = {
        let app = TestApp::with_clock(&settings);
        let old = Member::join(&app, "alice@example.org", Codec::Json).await;
        app.jump(YEARS);
        (old.person, sign_in(&app, "alice@example.org").await)
    };
    let app = TestApp::with_clock(&settings);
    wait_for_sample(app.admin(), "sealwire_sweeps_total", 1.0..=1.0).await;
    let laptop = Socket::connect(&app, &young.token, Codec::Json).await;
    // From now on, younger devices may not rename the older one.
    app.advance(Duration::from_hours(72));
    laptop.request("devices.rename", json!({ "device_id": old.device, "name": "old" })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_signed_in_under_a_clock_years_ahead_is_as_old_as_now_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sealwire.db");
    assert_a_device_from_the_future_grows_old(&format!("sqlite://{}", file.display())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_signed_in_under_a_clock_years_ahead_is_as_old_as_now_on_postgres() {
    assert_a_device_from_the_future_grows_old(&Services::shared().database().await).await;
}
