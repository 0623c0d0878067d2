//! The chapters in which messages are sent.

use sealwire_client::{Code, Server, protocol::keys::PrekeyBundle};

use crate::{
    Outcome, chapter,
    device::{Device, wire},
    ensure, hex, say,
};

/// Alice sends her first message, with the bundle that she has claimed.
pub async fn first(server: &Server, alice: &mut Device, bob: &mut Device, bundle: &PrekeyBundle) -> Outcome {
    chapter(5, "Alice's first message waits for Bob, and both agree on a secret that the server does not know");
    bob.leave().await;
    say("Bob's phone is offline. Alice verifies the prekey's signature, runs X3DH and encrypts her message.");
    let hello = alice.secrets().agree(bundle)?;
    say("Before the ciphertext she puts what Bob needs for his side, which is public:");
    wire(&serde_json::to_string(&hello)?);
    let phone = bob.client.device_id();
    let message = alice.secrets().seal(alice.message(bob), phone, Some(&hello), "Hello Bob, this is Alice.")?;
    let sent = alice.client.send(message.clone()).await?;
    ensure(!sent.duplicate && sent.undelivered.is_empty(), "it is stored for Bob's phone")?;
    say("The reply means that it is on disk. If the reply is lost, the library sends again with the same message_id:");
    let again = alice.client.send(message).await?;
    ensure(again.duplicate && again.accepted_at == sent.accepted_at, "the server recognizes it")?;

    say("Bob's phone reconnects. It gets the waiting messages, then an event that there are no more.");
    let read = bob.find_waiting(server).await?;
    ensure(read == "Hello Bob, this is Alice.", "the message is what Alice wrote")?;
    let alices = alice.secrets().shared[&phone];
    let bobs = bob.secrets().shared[&alice.client.device_id()];
    ensure(alices == bobs, "both have derived the same secret")?;
    say(&format!("Alice's secret begins with {}, Bob's with {}.", hex(&alices), hex(&bobs)));
    ensure(bob.secrets().keys.respond(&hello).is_err(), "the private half of the one-time prekey is gone")
}

/// Bob answers, after Alice has added a laptop that he does not know about.
pub async fn answer(server: &Server, alice: &mut Device, laptop: &mut Device, bob: &mut Device) -> Outcome {
    chapter(7, "Bob answers, and reaches a device that he did not know about");
    laptop.leave().await;
    say("The laptop is offline. Bob's phone encrypts only for Alice's phone.");
    let words = "Hello Alice. Lunch?";
    let message = bob.secrets().seal(bob.message(alice), alice.client.device_id(), None, words)?;
    let refused = bob.client.send(message.clone()).await.err().ok_or("a message that does not name all devices")?;
    ensure(refused.code() == Some(Code::DevicesMismatch), "a message must name all devices of its recipient")?;
    let (missing, _) = refused.mismatch().ok_or("the server does not name the missing devices")?;
    ensure(missing == [laptop.client.device_id()], "the server names the missing one")?;

    say("Nothing was stored. Bob's phone claims the laptop's keys, encrypts for it too, and sends again.");
    let claim = bob.client.claim(alice.client.user_id(), "Alice's laptop").devices(missing.iter().copied()).await?;
    let hello = bob.secrets().agree(&claim.bundles[0])?;
    claim.used().await?;
    let message = bob.secrets().seal(message, laptop.client.device_id(), Some(&hello), words)?;
    bob.client.send(message).await?;
    ensure(alice.read().await? == words, "the phone, which is connected, gets it at once")?;
    say("The laptop reconnects.");
    ensure(laptop.find_waiting(server).await? == words, "the laptop gets it when it connects")?;

    say("Alice begins to type. That matters only now, so the message is ephemeral: never stored, never acked.");
    let typing = alice.secrets().seal(alice.message(bob), bob.client.device_id(), None, "(typing)")?;
    alice.client.send_ephemeral(&typing).await?;
    ensure(bob.read().await? == "(typing)", "a connected device gets it")
}
