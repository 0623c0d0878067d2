//! Signing in: mailed codes, guesses, the limits on both, and the device that is signed in.

mod codes;
mod devices;
mod guesses;
mod limits;
mod proofs;
mod purposes;

use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection};
use uuid::Uuid;

use crate::support::{
    Server, TestApp, code,
    http::{challenge, post},
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
