//! Devices that send and receive messages.

use sealwire::domain::Suite;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Codec, KeySet, Person, Server, Socket, keys::base64, sign_in};

/// A connected device with published keys, so that others can send to it.
pub struct Member {
    pub person: Person,
    pub socket: Socket,
}

impl Member {
    /// Signs in on a new device, connects and publishes keys.
    pub async fn join(server: &impl Server, email: &str, codec: Codec) -> Self {
        let person = sign_in(server, email).await;
        let socket = Socket::connect(server, &person.token, codec).await;
        publish(&socket).await;
        Self { person, socket }
    }

    /// Replaces the socket with a new connection.
    pub async fn reconnect(&mut self, server: &impl Server, codec: Codec) {
        self.socket = Socket::connect(server, &self.person.token, codec).await;
    }

    /// Sends a text to each of these devices of one user; the message must be accepted.
    pub async fn send(&self, to: &[&Person], text: &str) -> Value {
        self.socket.request("messages.send", message(to, text)).await
    }

    /// Waits for the next message, asserts that it has this text, and acks it.
    pub async fn receives(&self, text: &str) -> Value {
        let message = self.socket.event("message").await;
        assert_eq!(message["content"], content(text), "{message}");
        self.ack(&[&message]).await;
        message
    }

    /// Acks messages, all of which must still be in the mailbox.
    pub async fn ack(&self, messages: &[&Value]) {
        let seqs: Vec<&Value> = messages.iter().map(|message| &message["seq"]).collect();
        let acked = self.socket.request("messages.ack", json!({ "seqs": seqs })).await;
        assert_eq!(acked, json!({ "acked": seqs.len() }));
    }
}

/// Publishes a complete key set of random keys, without one-time keys.
pub async fn publish(socket: &Socket) {
    let seed = Uuid::new_v4().as_u64_pair().0;
    socket.request("keys.publish", KeySet::new(Suite::SignalX3dh, seed).complete([])).await;
}

/// Returns the parameters of `messages.send` for a text to these devices, all of one user.
pub fn message(to: &[&Person], text: &str) -> Value {
    let messages: Vec<Value> =
        to.iter().map(|one| json!({ "device_id": one.device, "type": 3, "content": content(text) })).collect();
    json!({ "message_id": Uuid::new_v4(), "to": to[0].user, "messages": messages })
}

/// Encodes a text as the content of a message.
pub fn content(text: &str) -> String {
    base64(text.as_bytes())
}
