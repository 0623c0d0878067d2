//! Alice locks her account, and links a new device with an approval.

use base64::{Engine, engine::general_purpose::STANDARD};
use rand::RngExt;
use reqwest::Method;
use sealwire::clock::Entropy;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    Device, chapter,
    client::{Encoding, Outcome, Server, Session, ensure},
    say,
};

/// Asks to sign in on a new device of a locked account. Returns the request.
async fn ask(server: &Server, email: &str, name: &str) -> Outcome<Value> {
    let code = server.request_code(email, "sign_in").await?;
    let (status, body) = server.verify(email, code, json!({ "name": name })).await?;
    ensure(status == 202, "a right code alone signs in no new device")?;
    Ok(body["approval"].clone())
}

/// Asks whether a request was decided. Returns the status and body of the response.
async fn poll(server: &Server, request: &Value) -> Outcome<(u16, Value)> {
    let body = json!({ "request_id": request["request_id"], "poll_token": request["poll_token"] });
    server.call(Method::POST, "/v1/auth/approval", "", Some(body)).await
}

pub async fn link_with_approval(server: &Server, alice: &mut Device) -> Outcome {
    chapter(11, "Alice locks her account, and links a tablet with an approval");
    let email = alice.session.email.clone();
    say("She writes down a recovery key, in case that she loses all devices. The server gets only its hash.");
    let recovery_key: [u8; 32] = Entropy::from_system()?.draw(RngExt::random);
    let lock = json!({ "recovery_key_hash": STANDARD.encode(Sha256::digest(recovery_key)) });
    alice.socket.request("account.lock", lock).await?;

    say("Her new tablet enters the right code, and shows a number.");
    let tablet = ask(server, &email, "Alice's tablet").await?;
    let requested = alice.socket.event("devices.requested").await?;
    ensure(requested["request_id"] == tablet["request_id"], "her phone is asked")?;
    ensure(poll(server, &tablet).await?.0 == 202, "the tablet waits")?;
    say("The phone asks whether that is her, and for the number. She types it in.");
    let approve = json!({ "request_id": tablet["request_id"], "approve": true, "number": tablet["number"] });
    alice.socket.request("devices.decide", approve).await?;
    let (status, body) = poll(server, &tablet).await?;
    ensure(status == 201, "the tablet is signed in")?;
    let session = Session::new(&email, &body)?;
    let mut socket = server.connect("Alice's tablet", &session, Encoding::Json).await?;
    ensure(socket.welcome["device_id"] == session.device.as_str(), "and connects")?;
    socket.leave().await?;

    say("Somebody who reads her mail enters a right code too. She denies that request.");
    let thief = ask(server, &email, "Alice's other phone").await?;
    alice.socket.event("devices.requested").await?;
    let deny = json!({ "request_id": thief["request_id"], "approve": false });
    alice.socket.request("devices.decide", deny).await?;
    let (status, refused) = poll(server, &thief).await?;
    ensure(status == 403 && refused["error"]["code"] == "denied", "the thief gets nothing")
}
