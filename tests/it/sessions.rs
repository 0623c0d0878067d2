//! What becomes of sessions, devices and accounts, and of the sockets that are open in their name.

mod ends;
mod hang_up;
mod people;
mod renewal;

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

/// The id of a token's session, as HTTP tells it; `None` where the token is none.
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

/// Waits for the end of a session: the event with its reason, and the close.
async fn assert_ended(socket: &Socket, reason: &str, close: u16) {
    assert_eq!(socket.event("session.revoked").await, json!({ "reason": reason }));
    assert_eq!(socket.close_code().await, close);
}

/// Opens a socket of which the order of frames will be looked at. The welcome and the word that no mail waits have been read.
async fn connect_in_order(server: &impl Server, person: &Person) -> Stream {
    let mut stream = connect_raw(server, Some(&person.token), "sealwire.v1.json").await.unwrap();
    let welcome = stream.next().await.unwrap().unwrap();
    assert!(welcome.to_text().unwrap().contains("welcome"));
    let drained = stream.next().await.unwrap().unwrap();
    assert!(drained.to_text().unwrap().contains("mailbox.drained"));
    stream
}

/// Reads all frames until the socket closes, and gives them with the close code.
async fn rest(stream: &mut Stream) -> (Vec<Value>, u16) {
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
