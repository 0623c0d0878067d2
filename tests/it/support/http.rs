//! An HTTP client: signing in with a mailed code.

use std::{fs, path::Path};

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{KeySet, Server, eventually, keys::base64};

/// A signed-in device of a user.
#[derive(Clone, Debug)]
pub struct Person {
    pub email: String,
    pub user: String,
    pub device: String,
    pub session: String,
    pub token: String,
}

/// Sends a JSON request and returns the status and the body (`Null` if it is empty).
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

/// Sends a POST request without a token.
pub async fn post(server: &impl Server, path: &str, body: Value) -> (StatusCode, Value) {
    call(server, Method::POST, path, None, Some(body)).await
}

/// Requests a code to sign in, and returns the challenge id and the code from the mail.
pub async fn challenge(server: &impl Server, email: &str) -> (String, String) {
    challenge_for(server, email, "sign_in").await
}

/// Requests a code to delete the account or change its address, and returns the fields of the op that needs it.
pub async fn confirmation(server: &impl Server, email: &str, purpose: &str) -> Value {
    let (challenge_id, code) = challenge_for(server, email, purpose).await;
    json!({ "challenge_id": challenge_id, "code": code })
}

/// Requests a code for a purpose, and returns the challenge id and the code from the mail.
pub async fn challenge_for(server: &impl Server, email: &str, purpose: &str) -> (String, String) {
    let before = codes(server.mail(), email);
    let (status, body) = post(server, "/v1/auth/otp", json!({ "email": email, "purpose": purpose })).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    // With a manual clock the file names do not show which mail is the newest, so compare with the codes from before.
    let code = eventually("a mail with a code", || async {
        codes(server.mail(), email).into_iter().find(|code| !before.contains(code))
    })
    .await;
    (body["challenge_id"].as_str().unwrap().to_owned(), code)
}

/// Returns the codes that were mailed to an address, oldest first.
pub fn codes(folder: &Path, email: &str) -> Vec<String> {
    let marker = format!("To: {}", email.to_lowercase());
    mails(folder).into_iter().filter(|mail| mail.contains(&marker)).filter_map(|mail| eight_digits(&mail)).collect()
}

/// Returns all mails in the folder, oldest first.
pub fn mails(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return vec![] };
    let mut paths: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "eml"))
        .collect();
    paths.sort();
    paths.into_iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// Returns the group of eight digits in a mail's text, of which there must be at most one.
fn eight_digits(mail: &str) -> Option<String> {
    let (_, text) = mail.split_once("\r\n\r\n")?;
    let mut groups = text.split(|c: char| !c.is_ascii_digit()).filter(|group| group.len() == 8);
    let code = groups.next()?.to_owned();
    assert_eq!(groups.next(), None, "expected one group of eight digits in the mail");
    Some(code)
}

/// Signs in on a new device.
pub async fn sign_in(server: &impl Server, email: &str) -> Person {
    sign_in_as(server, email, json!({})).await
}

/// Signs in with extra fields in the request, such as `device`.
pub async fn sign_in_as(server: &impl Server, email: &str, more: Value) -> Person {
    let (challenge_id, code) = challenge(server, email).await;
    let mut body = json!({ "challenge_id": challenge_id, "email": email, "code": code });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (status, body) = post(server, "/v1/auth/verify", body).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    person(email, &body)
}

/// Returns the `device` that signs in again, or is replaced, with the proof of its identity key for this challenge.
pub fn proved(challenge_id: &str, device: &str, keys: &mut KeySet) -> Value {
    json!({ "id": device, "proof": proof(challenge_id, device, keys) })
}

/// Returns the proof of a device's identity key: the signature over the text, the challenge id and the device id.
pub fn proof(challenge_id: &str, device: &str, keys: &mut KeySet) -> String {
    let bytes = |id: &str| *Uuid::parse_str(id).unwrap().as_bytes();
    let message = [&b"sealwire-device-proof-v1"[..], &bytes(challenge_id), &bytes(device)].concat();
    base64(&keys.sign(&message))
}

/// Signs in again as a device that has published these keys.
pub async fn sign_in_again(server: &impl Server, device: &Person, keys: &mut KeySet) -> Person {
    let (challenge_id, code) = challenge(server, &device.email).await;
    let device_field = proved(&challenge_id, &device.device, keys);
    let body = json!({ "challenge_id": challenge_id, "email": device.email, "code": code, "device": device_field });
    let (status, body) = post(server, "/v1/auth/verify", body).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    person(&device.email, &body)
}

/// Parses the body of a successful `verify`.
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
