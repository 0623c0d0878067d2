//! Signing in: mailed codes, guesses, the limits on both, and the device that is signed in.

mod budgets;
mod codes;
mod devices;
mod guess_limits;
mod guesses;
mod limits;
mod proofs;
mod purposes;
mod work;

use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection};
use uuid::Uuid;

use crate::support::{
    Server, TestApp, code, eventually,
    http::{challenge, codes, post},
};

/// A challenge with the code that was mailed for it.
pub struct Mailed {
    pub id: String,
    pub email: String,
    pub code: String,
}

impl Mailed {
    /// Requests a code and waits for the mail.
    pub async fn to(server: &impl Server, email: &str) -> Self {
        let (id, code) = challenge(server, email).await;
        Self { id, email: email.to_owned(), code }
    }

    /// Enters a code, right or wrong.
    pub async fn enter(&self, server: &impl Server, code: &str) -> (StatusCode, Value) {
        self.enter_with(server, code, json!({})).await
    }

    /// Enters the right code, with more fields in the request, such as `device`.
    pub async fn redeem(&self, server: &impl Server, more: Value) -> (StatusCode, Value) {
        self.enter_with(server, &self.code, more).await
    }

    async fn enter_with(&self, server: &impl Server, code: &str, more: Value) -> (StatusCode, Value) {
        let mut body = json!({ "challenge_id": self.id, "email": self.email, "code": code });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post(server, "/v1/auth/verify", body).await
    }

    /// Enters wrong codes, each of which must be evaluated.
    pub async fn guess_wrong(&self, server: &impl Server, times: u32) {
        for guess in 0..times {
            assert_eq!(refusal(&self.enter(server, &self.wrong(guess)).await), (401, "invalid_code"));
        }
    }

    /// Returns a wrong code, a different one for each number.
    pub fn wrong(&self, which: u32) -> String {
        let right: u32 = self.code.parse().unwrap();
        format!("{:08}", (right + 1 + which) % 100_000_000)
    }

    /// Returns how many guesses the database has counted.
    pub async fn attempts(&self, app: &TestApp) -> i64 {
        let url = format!("sqlite://{}?mode=ro", app.database().display());
        let mut database = SqliteConnection::connect(&url).await.unwrap();
        let id = Uuid::parse_str(&self.id).unwrap();
        let row: (i64,) = sqlx::query_as("SELECT attempts FROM email_otps WHERE id = $1")
            .bind(id)
            .fetch_one(&mut database)
            .await
            .unwrap();
        database.close().await.unwrap();
        row.0
    }
}

/// Returns the status and the error code of a refused request.
pub fn refusal(answer: &(StatusCode, Value)) -> (u16, &str) {
    (answer.0.as_u16(), code(&answer.1["error"]))
}

/// Returns the names of a body's fields, in alphabetical order.
pub fn fields(body: &Value) -> Vec<&str> {
    let mut names: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// Makes the test client a trusted proxy, whose `X-Forwarded-For` sets the client address.
pub const BEHIND_A_PROXY: (&str, &str) = ("SERVER__TRUSTED_PROXIES", "127.0.0.1");

/// Sends a request from this client address to a server [`BEHIND_A_PROXY`].
pub async fn post_as(
    server: &impl Server,
    path: &str,
    client: &str,
    token: Option<&str>,
    body: &Value,
) -> (StatusCode, Value) {
    let url = format!("http://{}{path}", server.address());
    let mut request = reqwest::Client::new().post(url).header("X-Forwarded-For", client).body(body.to_string());
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let response = request.send().await.unwrap();
    (response.status(), serde_json::from_str(&response.text().await.unwrap()).unwrap())
}

/// Requests a code from this client address.
pub async fn code_for(server: &impl Server, email: &str, client: &str) -> (StatusCode, Value) {
    post_as(server, "/v1/auth/otp", client, None, &json!({ "email": email })).await
}

/// Requests a code from this client address with this proof of work.
pub async fn code_with(server: &impl Server, email: &str, client: &str, proof: &Value) -> (StatusCode, Value) {
    post_as(server, "/v1/auth/otp", client, None, &json!({ "email": email, "proof": proof })).await
}

/// Signs in on a new device from this client address, without a proof. Returns the body of the response.
pub async fn sign_in_from(server: &impl Server, email: &str, client: &str, token: Option<&str>) -> Value {
    let before = codes(server.mail(), email);
    let (status, body) = post_as(server, "/v1/auth/otp", client, token, &json!({ "email": email })).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    let code = eventually("a mail with a code", || async {
        codes(server.mail(), email).into_iter().find(|code| !before.contains(code))
    })
    .await;
    let verify = json!({ "challenge_id": body["challenge_id"], "email": email, "code": code });
    let (status, body) = post_as(server, "/v1/auth/verify", client, None, &verify).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    body
}

/// Asserts that a request was refused by a limit, and returns the bits of the offered proof; `None` if there is none.
#[track_caller]
pub fn offered_bits((status, body): &(StatusCode, Value)) -> Option<u64> {
    assert_eq!((status.as_u16(), code(&body["error"])), (429, "rate_limited"), "{body}");
    body["error"]["details"]["proof"]["bits"].as_u64()
}
