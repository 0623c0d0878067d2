//! The HTTP side of a client: signing in by mailed code.

use std::{fs, path::Path};

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use super::{Server, eventually};

/// Somebody with a session.
#[derive(Clone, Debug)]
pub struct Person {
    pub email: String,
    pub user: String,
    pub device: String,
    pub session: String,
    pub token: String,
}

/// Sends a JSON request and gives status and body (`Null` where there is none).
pub async fn call(
    server: &impl Server,
    method: Method,
    path: &str,
    token: Option<&str>,
    body: Option<Value>,
) -> (StatusCode, Value) {
    let mut request = Client::new().request(method, format!("http://{}{path}", server.address()));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if let Some(body) = body {
        request = request.body(body.to_string());
    }
    let response = request.send().await.unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    (status, if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() })
}

/// POSTs JSON.
pub async fn post(server: &impl Server, path: &str, body: Value) -> (StatusCode, Value) {
    call(server, Method::POST, path, None, Some(body)).await
}

/// Asks for a code and gives the challenge's id with the code out of the mail.
pub async fn challenge(server: &impl Server, email: &str) -> (String, String) {
    let before = codes(server.mail(), email);
    let (status, body) = post(server, "/v1/auth/otp", json!({ "email": email })).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    // Under a clock that stands still the files' names do not tell which is the newest.
    let code = eventually("a mail with a code", || async {
        codes(server.mail(), email).into_iter().find(|code| !before.contains(code))
    })
    .await;
    (body["challenge_id"].as_str().unwrap().to_owned(), code)
}

/// The codes that were mailed to an address, oldest first.
pub fn codes(folder: &Path, email: &str) -> Vec<String> {
    let marker = format!("To: {}", email.to_lowercase());
    mails(folder).into_iter().filter(|mail| mail.contains(&marker)).filter_map(|mail| eight_digits(&mail)).collect()
}

/// All mails, oldest first.
pub fn mails(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return vec![] };
    let mut paths: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "eml"))
        .collect();
    paths.sort();
    paths.into_iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// The one group of eight digits in a mail's text.
fn eight_digits(mail: &str) -> Option<String> {
    let (_, text) = mail.split_once("\r\n\r\n")?;
    let mut groups = text.split(|c: char| !c.is_ascii_digit()).filter(|group| group.len() == 8);
    let code = groups.next()?.to_owned();
    assert_eq!(groups.next(), None, "more than one group of eight digits");
    Some(code)
}

/// Signs in on a new device.
pub async fn sign_in(server: &impl Server, email: &str) -> Person {
    sign_in_as(server, email, json!({})).await
}

/// Signs in with more fields in the request, such as `device`.
pub async fn sign_in_as(server: &impl Server, email: &str, more: Value) -> Person {
    let (challenge_id, code) = challenge(server, email).await;
    let mut body = json!({ "challenge_id": challenge_id, "email": email, "code": code });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (status, body) = post(server, "/v1/auth/verify", body).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    person(email, &body)
}

/// Reads the answer to a successful verify.
pub fn person(email: &str, body: &Value) -> Person {
    let text = |key: &str| body[key].as_str().unwrap().to_owned();
    Person {
        email: email.to_owned(),
        user: text("user_id"),
        device: text("device_id"),
        session: text("session_id"),
        token: text("token"),
    }
}
