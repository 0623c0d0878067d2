//! Sessions: how they are renewed and how they end, with their sockets. Also listing and renaming devices, and finding
//! users.

mod changes;
mod client_disconnects;
mod devices_and_users;
mod ends;
mod failures;
mod listing;
mod renewal;
mod young_devices;

use futures_util::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    Codec, PATIENCE, Person, Server, Socket,
    http::call,
    socket::{Stream, connect_raw},
};

const EMAIL: &str = "alice@example.org";

async fn connect(server: &impl Server, token: &str) -> Socket {
    Socket::connect(server, token, Codec::Json).await
}

/// Returns the id of the token's session, read over HTTP, or `None` if the token is invalid.
async fn session_of(server: &impl Server, token: &str) -> Option<String> {
    let (status, body) = call(server, Method::GET, "/v1/auth/session", Some(token), None).await;
    if status == StatusCode::OK {
        return Some(body["session_id"].as_str().unwrap().to_owned());
    }
    assert_eq!((status.as_u16(), &body["error"]["code"]), (401, &json!("unauthorized")));
    None
}

/// `DELETE /v1/auth/session`
async fn delete_session(server: &impl Server, token: &str) -> StatusCode {
    call(server, Method::DELETE, "/v1/auth/session", Some(token), None).await.0
}

/// Waits for the `session.revoked` event with this reason, then for the close with this code.
async fn assert_ended(socket: &Socket, reason: &str, close: u16) {
    assert_eq!(socket.event("session.revoked").await, json!({ "reason": reason }));
    assert_eq!(socket.close_code().await, close);
}

/// Opens a raw socket, on which a test can check the order of frames. `welcome` and `mailbox.drained` have been read.
async fn open_stream(server: &impl Server, person: &Person) -> Stream {
    let mut stream = connect_raw(server, Some(&person.token), "sealwire.v1.json").await.unwrap();
    let welcome = stream.next().await.unwrap().unwrap();
    assert!(welcome.to_text().unwrap().contains("welcome"));
    let drained = stream.next().await.unwrap().unwrap();
    assert!(drained.to_text().unwrap().contains("mailbox.drained"));
    stream
}

/// Reads all frames until the socket closes, and returns them with the close code.
async fn read_to_close(stream: &mut Stream) -> (Vec<Value>, u16) {
    let mut frames = Vec::new();
    loop {
        match timeout(PATIENCE, stream.next()).await.expect("a frame or the end") {
            Some(Ok(Message::Text(text))) => frames.push(serde_json::from_str(&text).unwrap()),
            Some(Ok(Message::Close(Some(close)))) => return (frames, close.code.into()),
            Some(Ok(_)) => {}
            end => panic!("no close frame: {end:?}, after {frames:?}"),
        }
    }
}
