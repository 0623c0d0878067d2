//! Limits: how many codes an address and a network may request, and how many guesses a network may make.

use std::time::Duration;

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use super::{BEHIND_A_PROXY, sign_in_from};
use crate::support::{Server, TestApp, code, eventually, http::codes};

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// Turns the limit of codes per network off.
const NO_NETWORK_LIMIT: (&str, &str) = ("LIMITS__OTP_PER_NETWORK_HOUR", "0");

struct Answer {
    status: StatusCode,
    retry_after: Option<String>,
    body: Value,
}

impl Answer {
    /// Asserts that the request was refused for this time: exact in the body, rounded up to seconds in the header.
    #[track_caller]
    fn assert_wait(&self, wait: Duration) {
        assert_eq!(self.status, StatusCode::TOO_MANY_REQUESTS, "{}", self.body);
        let error = &self.body["error"];
        assert_eq!(code(error), "rate_limited");
        assert_eq!(error["retryable"], true);
        assert_eq!(error["retry_after_ms"], json!(wait.as_millis()));
        let seconds = wait.as_millis().div_ceil(1000).to_string();
        assert_eq!(self.retry_after.as_deref(), Some(&*seconds));
    }
}

async fn post_from(app: &TestApp, path: &str, client: &str, body: Value) -> Answer {
    let url = format!("http://{}{path}", app.address());
    let request = Client::new().post(url).header("X-Forwarded-For", client).body(body.to_string());
    let response = request.send().await.unwrap();
    let status = response.status();
    let retry_after = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    Answer { status, retry_after, body: serde_json::from_str(&response.text().await.unwrap()).unwrap() }
}

async fn request_code(app: &TestApp, email: &str, client: &str) -> Answer {
    post_from(app, "/v1/auth/otp", client, json!({ "email": email })).await
}

async fn assert_code_is_sent(app: &TestApp, email: &str, client: &str) {
    let answer = request_code(app, email, client).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_gets_three_codes_an_hour_from_one_network() {
    let app = TestApp::with_clock(&[BEHIND_A_PROXY, NO_NETWORK_LIMIT, ("LIMITS__OTP_PER_EMAIL_NETWORK_HOUR", "3")]);
    for minute in 0..3 {
        assert_code_is_sent(&app, "alice@example.org", &format!("192.0.2.{minute}")).await;
        app.advance(MINUTE);
    }
    request_code(&app, "alice@example.org", "192.0.2.77").await.assert_wait(57 * MINUTE);
    app.advance(Duration::from_millis(1500));
    request_code(&app, " Alice@Example.org", "192.0.2.1")
        .await
        .assert_wait(56 * MINUTE + Duration::from_millis(58_500));
    assert_code_is_sent(&app, "bob@example.org", "192.0.2.1").await;
    assert_code_is_sent(&app, "alice@example.org", "192.0.3.1").await;
    assert_code_is_sent(&app, "alice@example.org", "::ffff:198.51.100.1").await;
    for _ in 0..3 {
        assert_code_is_sent(&app, "alice@example.org", "2001:db8:1::1").await;
    }
    request_code(&app, "alice@example.org", "2001:db8:1:ffff::2").await.assert_wait(HOUR);
    assert_code_is_sent(&app, "alice@example.org", "2001:db8:2::1").await;
    app.advance(57 * MINUTE);
    assert_code_is_sent(&app, "alice@example.org", "192.0.2.1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_gets_ten_codes_an_hour_and_thirty_a_day() {
    let app = TestApp::with_clock(&[
        BEHIND_A_PROXY,
        NO_NETWORK_LIMIT,
        ("LIMITS__OTP_PER_EMAIL_NETWORK_HOUR", "3"),
        ("LIMITS__OTP_PER_EMAIL_HOUR", "10"),
        ("LIMITS__OTP_PER_EMAIL_DAY", "30"),
    ]);
    // In the third hour both limits are reached, and the longer wait applies.
    for (hour, wait) in [HOUR, HOUR, 22 * HOUR].into_iter().enumerate() {
        for client in 0..10 {
            assert_code_is_sent(&app, "alice@example.org", &format!("10.0.{client}.1")).await;
        }
        request_code(&app, "alice@example.org", "10.0.99.1").await.assert_wait(wait);
        assert_code_is_sent(&app, &format!("someone{hour}@example.org"), "10.0.99.1").await;
        app.advance(HOUR);
    }
    request_code(&app, "alice@example.org", "10.0.99.1").await.assert_wait(21 * HOUR);
    app.advance(21 * HOUR);
    assert_code_is_sent(&app, "alice@example.org", "10.0.99.1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_gets_a_limited_number_of_codes_an_hour() {
    let app = TestApp::with_clock(&[BEHIND_A_PROXY, ("LIMITS__OTP_PER_NETWORK_HOUR", "4")]);
    for client in 0..4 {
        assert_code_is_sent(&app, &format!("user{client}@example.org"), &format!("192.0.2.{client}")).await;
    }
    request_code(&app, "more@example.org", "192.0.2.200").await.assert_wait(HOUR);
    assert_code_is_sent(&app, "more@example.org", "192.0.1.200").await;
    app.advance(HOUR);
    assert_code_is_sent(&app, "more@example.org", "192.0.2.200").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_may_make_a_limited_number_of_guesses_a_minute() {
    let app = TestApp::with_clock(&[BEHIND_A_PROXY, ("LIMITS__VERIFY_PER_NETWORK_MINUTE", "2")]);
    let guess = |client: &'static str| {
        let body = json!({ "challenge_id": uuid::Uuid::from_u128(7), "email": "a@example.org", "code": "12345678" });
        post_from(&app, "/v1/auth/verify", client, body)
    };
    for _ in 0..2 {
        assert_eq!(code(&guess("192.0.2.1").await.body["error"]), "invalid_code");
    }
    guess("192.0.2.2").await.assert_wait(MINUTE);
    assert_eq!(code(&guess("198.51.100.1").await.body["error"]), "invalid_code");
    app.advance(MINUTE);
    assert_eq!(code(&guess("192.0.2.2").await.body["error"]), "invalid_code");
}

/// A right code takes no place of the network, unless the answer helps to guess something else.
#[tokio::test(flavor = "multi_thread")]
async fn right_codes_take_no_place_of_the_network() {
    let app = TestApp::with_clock(&[BEHIND_A_PROXY, ("LIMITS__VERIFY_PER_NETWORK_MINUTE", "2")]);
    for person in 0..5 {
        sign_in_from(&app, &format!("user{person}@example.org"), "192.0.2.1", None).await;
    }
    let before = codes(app.mail(), "user0@example.org");
    let asked = request_code(&app, "user0@example.org", "192.0.2.1").await.body;
    let code = eventually("a code", || async {
        codes(app.mail(), "user0@example.org").into_iter().find(|code| !before.contains(code))
    })
    .await;
    let device = json!({ "id": uuid::Uuid::nil() });
    let body =
        json!({ "challenge_id": asked["challenge_id"], "email": "user0@example.org", "code": code, "device": device });
    for _ in 0..2 {
        let answer = post_from(&app, "/v1/auth/verify", "192.0.2.1", body.clone()).await;
        assert_eq!(self::code(&answer.body["error"]), "unknown_device");
    }
    post_from(&app, "/v1/auth/verify", "192.0.2.1", body).await.assert_wait(MINUTE);
}

/// An IPv6 /40 has 8 times the limits of a /48, a /32 has 32 times.
#[tokio::test(flavor = "multi_thread")]
async fn wider_ipv6_networks_have_limits_too() {
    let app = TestApp::with_clock(&[
        BEHIND_A_PROXY,
        ("LIMITS__OTP_PER_NETWORK_HOUR", "1"),
        ("LIMITS__VERIFY_PER_NETWORK_MINUTE", "1"),
    ]);
    let guess = |client: String| {
        let body = json!({ "challenge_id": uuid::Uuid::nil(), "email": "a@example.org", "code": "12345678" });
        let app = &app;
        async move { post_from(app, "/v1/auth/verify", &client, body).await }
    };
    let client = |wide: u8, narrow: u8| format!("2001:db8:{wide:02x}{narrow:02x}::1");
    for wide in 0..4 {
        for narrow in 0..8 {
            assert_code_is_sent(&app, &format!("user{wide}-{narrow}@example.org"), &client(wide, narrow)).await;
            assert_eq!(code(&guess(client(wide, narrow)).await.body["error"]), "invalid_code");
        }
        if wide < 3 {
            request_code(&app, "more@example.org", &client(wide, 8)).await.assert_wait(HOUR);
            guess(client(wide, 8)).await.assert_wait(MINUTE);
        }
    }
    request_code(&app, "more@example.org", &client(77, 0)).await.assert_wait(HOUR);
    guess(client(77, 0)).await.assert_wait(MINUTE);
    assert_code_is_sent(&app, "more@example.org", "2001:db9::1").await;
    assert_eq!(code(&guess("2001:db9::1".to_owned()).await.body["error"]), "invalid_code");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_trusted_proxy_can_set_the_client_address() {
    let limit = ("LIMITS__OTP_PER_NETWORK_HOUR", "1");
    let app = TestApp::with_clock(&[limit]);
    assert_code_is_sent(&app, "alice@example.org", "192.0.2.1").await;
    request_code(&app, "bob@example.org", "198.51.100.1").await.assert_wait(HOUR);

    let app = TestApp::with_clock(&[limit, ("SERVER__TRUSTED_PROXIES", "127.0.0.1,10.0.0.0/8")]);
    assert_code_is_sent(&app, "alice@example.org", "192.0.2.1").await;
    assert_code_is_sent(&app, "alice@example.org", "198.51.100.1").await;
    // Proxies append to the header: addresses left of the last untrusted one may be forged and are ignored.
    request_code(&app, "alice@example.org", "203.0.113.1, 198.51.100.9, 10.1.2.3").await.assert_wait(HOUR);
    // If the header has no valid address, the proxy's own address counts.
    assert_code_is_sent(&app, "alice@example.org", "").await;
    request_code(&app, "alice@example.org", "nonsense").await.assert_wait(HOUR);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_zero_means_no_limit_of_codes() {
    let app = TestApp::with_clock(&[]);
    for _ in 0..40 {
        assert_code_is_sent(&app, "alice@example.org", "192.0.2.1").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_codes_holds_for_parallel_requests() {
    let app = TestApp::with_clock(&[("LIMITS__OTP_PER_EMAIL_HOUR", "10")]);
    let answers = futures_util::future::join_all((0..30).map(|_| request_code(&app, "alice@example.org", ""))).await;
    let mailed = answers.iter().filter(|answer| answer.status == StatusCode::ACCEPTED).count();
    assert_eq!(mailed, 10);
}
