//! The chapters in which messages are sent.

use base64::{Engine, engine::general_purpose::STANDARD};
use sealwire::clock::Entropy;
use serde_json::{Value, json};

use crate::{
    Device, chapter,
    client::{self, Encoding, Outcome, Server, ensure, text},
    count, hex, say, sealed,
};

impl Device {
    /// Runs X3DH with the device that published this bundle. Returns what that device needs for its side.
    fn agree(&mut self, bundle: &Value) -> Outcome<Value> {
        let (secret, hello) = self.keys.initiate(bundle)?;
        self.secrets.insert(text(&bundle["device_id"])?, secret);
        Ok(hello)
    }

    /// The ciphertext of a message for one device. The first message includes `hello`.
    fn seal(&self, entropy: &Entropy, id: &str, device: &str, hello: Option<&Value>, text: &str) -> Outcome<Value> {
        let secret = self.secrets.get(device).ok_or("no secret is shared with that device")?;
        let sealed = sealed::seal(secret, entropy, &format!("{} {id}", self.session.device), text)?;
        let (kind, content) = match hello {
            Some(hello) => (sealed::FIRST, sealed::with_hello(hello, &sealed)),
            None => (sealed::LATER, sealed),
        };
        Ok(json!({ "device_id": device, "type": kind, "content": STANDARD.encode(content) }))
    }

    /// Reads the next message, and acks it unless it is ephemeral. Returns its text.
    async fn read(&mut self) -> Outcome<String> {
        let message = self.socket.event("message").await?;
        let from = text(&message["from"]["device_id"])?;
        let content = STANDARD.decode(text(&message["content"])?)?;
        let sealed = if message["type"] == sealed::FIRST {
            let (hello, sealed) = sealed::split_hello(&content)?;
            self.secrets.insert(from.clone(), self.keys.respond(&hello)?);
            sealed
        } else {
            &content
        };
        let secret = self.secrets.get(&from).ok_or("no secret is shared with that device")?;
        let read = sealed::open(secret, &format!("{from} {}", text(&message["message_id"])?), sealed)?;
        say(&format!("{} reads: {read}", self.socket.name));
        if message["ephemeral"] == true {
            ensure(message["seq"].is_null(), "an ephemeral message has no seq and is not acked")?;
        } else {
            let acked = self.socket.request("messages.ack", json!({ "seqs": [message["seq"]] })).await?;
            ensure(acked["acked"] == 1, "an ack removes the message from the mailbox")?;
        }
        Ok(read)
    }

    /// Reconnects and reads the one waiting message.
    async fn find_waiting(&mut self, server: &Server, encoding: Encoding) -> Outcome<String> {
        self.socket = server.connect(&self.socket.name, &self.session, encoding).await?;
        ensure(self.socket.welcome["mailbox"]["waiting"] == 1, "the welcome has the number of waiting messages")?;
        let read = self.read().await?;
        self.socket.event("mailbox.drained").await?;
        Ok(read)
    }
}

/// Alice sends her first message, with the bundle that she has claimed.
pub async fn first(
    server: &Server,
    entropy: &Entropy,
    alice: &mut Device,
    bob: &mut Device,
    bundle: &Value,
) -> Outcome {
    chapter(5, "Alice's first message waits for Bob, and both agree on a secret that the server does not know");
    bob.socket.leave().await?;
    say("Bob's phone is offline. Alice verifies the prekey's signature, runs X3DH and encrypts her message.");
    let hello = alice.agree(bundle)?;
    say("Before the ciphertext she puts what Bob needs for his side, which is public:");
    client::wire(&hello.to_string());
    let id = entropy.uuid().to_string();
    let ciphertext = alice.seal(entropy, &id, &bob.session.device, Some(&hello), "Hello Bob, this is Alice.")?;
    let message = json!({ "message_id": id, "to": bob.session.user, "messages": [ciphertext] });
    let sent = alice.socket.request("messages.send", message.clone()).await?;
    ensure(sent["duplicate"] == false && count(&sent["undelivered"]) == 0, "it is stored for Bob's phone")?;
    say("The reply means that it is on disk. If the reply is lost, Alice sends again with the same message_id:");
    let again = alice.socket.request("messages.send", message).await?;
    ensure(again["duplicate"] == true && again["accepted_at"] == sent["accepted_at"], "the server recognizes it")?;

    say("Bob's phone reconnects. It gets the waiting messages, then an event that there are no more.");
    let read = bob.find_waiting(server, Encoding::MsgPack).await?;
    ensure(read == "Hello Bob, this is Alice.", "the message is what Alice wrote")?;
    let (alices, bobs) = (&alice.secrets[&bob.session.device], &bob.secrets[&alice.session.device]);
    ensure(alices == bobs, "both have derived the same secret")?;
    say(&format!("Alice's secret begins with {}, Bob's with {}.", hex(alices), hex(bobs)));
    ensure(bob.keys.respond(&hello).is_err(), "the private half of the one-time prekey is gone")?;
    Ok(())
}

/// Bob answers, after Alice has added a laptop that he does not know about.
pub async fn answer(
    server: &Server,
    entropy: &Entropy,
    alice: &mut Device,
    laptop: &mut Device,
    bob: &mut Device,
) -> Outcome {
    chapter(7, "Bob answers, and reaches a device that he did not know about");
    laptop.socket.leave().await?;
    say("The laptop is offline. Bob's phone encrypts only for Alice's phone.");
    let (id, words) = (entropy.uuid().to_string(), "Hello Alice. Lunch?");
    let for_phone = bob.seal(entropy, &id, &alice.session.device, None, words)?;
    let message = json!({ "message_id": id, "to": alice.session.user, "messages": [for_phone] });
    let refused = bob
        .socket
        .ask("messages.send", message)
        .await?
        .err()
        .ok_or("a message that does not name all devices was accepted")?;
    ensure(refused["code"] == "devices_mismatch", "a message must name all devices of its recipient")?;
    ensure(refused["details"]["missing"] == json!([laptop.session.device]), "the server names the missing one")?;
    say("Nothing was stored. Bob's phone claims the laptop's keys, encrypts for it too, and sends again.");
    let missing = &refused["details"]["missing"];
    let claim = json!({ "user_id": alice.session.user, "claim_id": entropy.uuid(), "device_ids": missing });
    let claimed = bob.socket.request("keys.claim", claim).await?;
    let hello = bob.agree(&claimed["bundles"][0])?;
    let for_laptop = bob.seal(entropy, &id, &laptop.session.device, Some(&hello), words)?;
    let message = json!({ "message_id": id, "to": alice.session.user, "messages": [for_phone, for_laptop] });
    bob.socket.request("messages.send", message).await?;
    ensure(alice.read().await? == words, "the phone, which is connected, gets it at once")?;
    say("The laptop reconnects.");
    ensure(laptop.find_waiting(server, Encoding::MsgPack).await? == words, "the laptop gets it when it connects")?;

    say("Alice begins to type. That matters only now, so the message is ephemeral: never stored, never acked.");
    let id = entropy.uuid().to_string();
    let typing = alice.seal(entropy, &id, &bob.session.device, None, "(typing)")?;
    let message = json!({ "message_id": id, "to": bob.session.user, "messages": [typing], "ephemeral": true });
    alice.socket.request("messages.send", message).await?;
    ensure(bob.read().await? == "(typing)", "a connected device gets it")?;
    Ok(())
}
