//! A tour of Sealwire: two people with three devices use the whole protocol against a running server.
//!
//!     SEALWIRE__MAILER__URL=file:mail cargo run       # in one terminal
//!     cargo run --example tour -- --mail mail         # in another
//!
//! Without `--mail` it asks for the codes, which a server without settings prints. It shows the frames on the wire, with
//! long values shortened. If a step does not have the expected result, the tour ends with an error.

mod client;
mod keys;
mod lock;
mod messages;
mod packed;
mod sealed;

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use clap::Parser;
use reqwest::Method;
use sealwire::clock::Entropy;
use serde_json::{Value, json};

use client::{Encoding, Outcome, Server, Session, Socket, ensure};
use keys::Keyring;

#[derive(Parser)]
struct Arguments {
    /// URL of the server.
    #[arg(default_value = "http://127.0.0.1:8080")]
    server: String,
    /// Folder to which the server writes its mails, to read the codes from.
    #[arg(long, value_name = "DIR")]
    mail: Option<PathBuf>,
}

/// A device that is signed in and connected, with its keys.
struct Device {
    session: Session,
    socket: Socket,
    keys: Keyring,
    /// The secrets shared with other devices, by device id.
    secrets: BTreeMap<String, [u8; 32]>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { server, mail } = Arguments::parse();
    let server = Server { url: server.trim_end_matches('/').to_owned(), mail };
    match tour(&server).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe tour ends here: {error}");
            ExitCode::FAILURE
        }
    }
}

fn chapter(number: u32, title: &str) {
    println!("\n{number:>3}.  {title}\n");
}

fn say(text: &str) {
    println!("   {text}");
}

async fn tour(server: &Server) -> Outcome {
    let entropy = Entropy::from_system()?;
    // New addresses for each tour, so that one does not use up the limits of another.
    let run = entropy.uuid().simple().to_string();
    let address = |name: &str| format!("{name}-{}@example.org", &run[..8]);

    chapter(1, "Two people sign in");
    say("Alice first. A code comes by mail; redeeming it creates a device with a session.");
    let alice = server.sign_in(&address("alice"), "Alice's phone").await?;
    say("Then Bob.");
    let bob = server.sign_in(&address("bob"), "Bob's phone").await?;

    chapter(2, "Their phones connect and publish keys");
    say(
        "Alice's phone speaks JSON. Its first publish is a complete set: identity key, signed prekey, one-time prekeys.",
    );
    let mut alice = arrive(server, &entropy, "Alice's phone", alice, Encoding::Json, 30).await?;
    say("Bob's phone speaks MessagePack. It publishes only seven one-time prekeys.");
    let mut bob = arrive(server, &entropy, "Bob's phone", bob, Encoding::MsgPack, 7).await?;

    let bundle = claim_once(server, &mut alice, &mut bob).await?;
    messages::first(server, &entropy, &mut alice, &mut bob, &bundle).await?;
    let mut laptop = add_laptop(server, &entropy, &mut alice).await?;
    messages::answer(server, &entropy, &mut alice, &mut laptop, &mut bob).await?;
    run_out(&entropy, &mut alice, &mut bob).await?;
    renew(server, &mut bob).await?;

    chapter(10, "Alice loses her laptop and revokes it");
    let params = json!({ "device_id": laptop.session.device });
    alice.socket.request("devices.revoke", params).await?;
    let told = laptop.socket.event("session.revoked").await?;
    ensure(told["reason"] == "device_revoked", "the laptop is told why")?;
    let changed = alice.socket.event("devices.changed").await?;
    ensure(changed["removed"] == json!([laptop.session.device]), "the phone is notified")?;
    ensure(laptop.socket.close_code().await? == 4502, "a revoked device's socket closes with 4502")?;
    let (status, _) = server.call(Method::GET, "/v1/auth/session", &laptop.session.token, None).await?;
    ensure(status == 401, "a revoked device's token is invalid")?;
    say("Its session, unissued keys, mailbox and socket are gone at once.");

    lock::link_with_approval(server, &mut alice).await?;

    chapter(12, "Bob logs out, and signs in on the same phone again");
    bob.socket.request("session.logout", json!({})).await?;
    let told = bob.socket.event("session.revoked").await?;
    ensure(told["reason"] == "logout", "the event says why")?;
    ensure(bob.socket.close_code().await? == 4500, "the socket closes with 4500")?;
    say("The phone names its device id, so it keeps its keys. A code alone does not suffice for that:");
    let (email, device) = (&bob.session.email, &bob.session.device);
    let code = server.request_code(email, "sign_in").await?;
    let (status, refused) = server.verify(email, code.clone(), json!({ "id": device })).await?;
    ensure(status == 403 && refused["error"]["code"] == "proof_required", "the phone must prove itself")?;
    say("It signs the challenge with its identity key. Bob gets a mail, in case that somebody else reads his mail.");
    let proof = bob.keys.device_proof(&client::text(&code["challenge_id"])?, device)?;
    let (status, session) = server.verify(email, code, json!({ "id": device, "proof": proof })).await?;
    ensure(status == 201, "the code with the proof opens a session")?;
    let again = Session::new(email, &session)?;
    ensure(again.device == bob.session.device, "it is the same device")?;
    bob.socket = server.connect("Bob's phone", &again, Encoding::MsgPack).await?;
    ensure(bob.socket.welcome["keys"]["identity_key"] == bob.keys.identity_key(), "its keys are still there")?;
    ensure(bob.socket.welcome["mailbox"]["waiting"] == 0, "its mailbox is empty because everything was acked")?;

    chapter(13, "Alice deletes her account");
    say("A code confirms it: a phone left unlocked for a minute is not enough.");
    let refused = alice.socket.ask("account.delete", json!({})).await?;
    ensure(refused.is_err_and(|error| error["code"] == "confirmation_required"), "it needs a code")?;
    let params = server.request_code(&alice.session.email, "delete").await?;
    alice.socket.request("account.delete", params).await?;
    let told = alice.socket.event("session.revoked").await?;
    ensure(told["reason"] == "account_deleted", "she is told why")?;
    ensure(alice.socket.close_code().await? == 4506, "her socket closes with 4506")?;
    let answer = bob.socket.ask("users.find", json!({ "email": alice.session.email })).await?;
    ensure(answer.is_err_and(|error| error["code"] == "not_found"), "nobody can find her any more")?;
    say("Bob deletes his account too, so that the tour leaves nothing behind.");
    let params = server.request_code(&bob.session.email, "delete").await?;
    bob.socket.request("account.delete", params).await?;
    ensure(bob.socket.close_code().await? == 4506, "his socket closes with 4506")?;

    println!("\n   That was all of it. docs/protocol.md has the details.\n");
    Ok(())
}

/// Connects a device that has signed in, and publishes its first keys.
async fn arrive(
    server: &Server,
    entropy: &Entropy,
    name: &str,
    session: Session,
    encoding: Encoding,
    one_time: usize,
) -> Outcome<Device> {
    let mut socket = server.connect(name, &session, encoding).await?;
    ensure(socket.welcome["keys"]["suite"].is_null(), "a new device has no keys yet")?;
    let mut keys = Keyring::new(entropy);
    let report = socket.request("keys.publish", keys.complete_set(one_time)).await?;
    ensure(count(&report["one_time"]["accepted"]) == one_time, "all keys are accepted")?;
    ensure(report["status"]["one_time"] == one_time, "all keys can be claimed")?;
    Ok(Device { session, socket, keys, secrets: BTreeMap::new() })
}

async fn claim_once(server: &Server, alice: &mut Device, bob: &mut Device) -> Outcome<Value> {
    chapter(3, "Alice finds Bob and claims his keys");
    let found = alice.socket.request("users.find", json!({ "email": bob.session.email })).await?;
    ensure(found["user_id"] == bob.session.user, "an address identifies a user")?;
    say("A fetch shows his bundle and uses up no key.");
    let fetched = alice.socket.request("keys.fetch", json!({ "user_id": bob.session.user })).await?;
    ensure(fetched["bundles"][0]["one_time"] == "not_requested", "a fetch takes no one-time prekey")?;
    say(
        "A claim takes one one-time prekey, which nobody else will ever get. The claim_id lets Alice repeat the claim safely.",
    );
    let claim = json!({ "user_id": bob.session.user, "claim_id": Entropy::from_system()?.uuid() });
    let claimed = alice.socket.request("keys.claim", claim.clone()).await?;
    let bundle = &claimed["bundles"][0];
    ensure(
        bundle["one_time"] == "claimed" && bundle["one_time_prekey"]["key_id"] == 1,
        "the oldest key is issued first",
    )?;

    chapter(4, "The connection breaks; the claim is repeated");
    alice.socket.leave().await?;
    alice.socket = server.connect("Alice's phone", &alice.session, Encoding::Json).await?;
    let again = alice.socket.request("keys.claim", claim).await?;
    ensure(again == claimed, "the same claim_id returns the same key")?;
    let status = bob.socket.request("keys.status", json!({})).await?;
    ensure(status["one_time"] == 6, "the repeated claim uses up no other key")?;
    say("The claim returned the same key, and six of Bob's seven are left.");
    Ok(bundle.clone())
}

async fn add_laptop(server: &Server, entropy: &Entropy, alice: &mut Device) -> Outcome<Device> {
    chapter(6, "Alice adds a laptop");
    let laptop = server.sign_in(&alice.session.email, "Alice's laptop").await?;
    let changed = alice.socket.event("devices.changed").await?;
    ensure(changed["added"] == json!([laptop.device]), "her phone is notified")?;
    let changed = alice.socket.event("sessions.changed").await?;
    ensure(changed["device_id"] == json!(laptop.device), "her phone learns of the session too")?;
    if server.mail.is_some() {
        let mail = server.wait_for_mail(&alice.session.email, |mail| mail.contains("A device was added")).await?;
        say(&format!("And a mail arrives: {mail}"));
    }
    let laptop = arrive(server, entropy, "Alice's laptop", laptop, Encoding::MsgPack, 30).await?;
    say("Messages to Alice are now encrypted twice: once for each of her devices.");
    Ok(laptop)
}

async fn run_out(entropy: &Entropy, alice: &mut Device, bob: &mut Device) -> Outcome {
    chapter(8, "Bob's one-time prekeys run out, and his phone is notified in time");
    say("Alice claims repeatedly, each time with another claim_id. (More than ten claims would exceed the limit.)");
    alice.socket.quiet = true;
    loop {
        let claim = json!({ "user_id": bob.session.user, "claim_id": entropy.uuid() });
        let claimed = alice.socket.request("keys.claim", claim).await?;
        let bundle = &claimed["bundles"][0];
        client::wire(&format!("Alice's phone ← {} {}", bundle["one_time"], bundle["one_time_prekey"]["key_id"]));
        if bundle["one_time"] == "exhausted" {
            // X3DH works without a one-time prekey, only with less protection for the first message.
            let (alices, hello) = alice.keys.initiate(bundle)?;
            ensure(alices == bob.keys.respond(&hello)?, "a bundle without a one-time prekey works too")?;
            break;
        }
        ensure(bundle["one_time"] == "claimed", "a claim returns a key while there is one")?;
    }
    alice.socket.quiet = false;
    while bob.socket.event("prekeys.low").await?["remaining"] != 0 {}
    say("Bob's phone was notified once of each low level, and refills the pool.");
    let report = bob.socket.request("keys.publish", bob.keys.refill(40)).await?;
    ensure(report["status"]["one_time"] == 40, "the pool is full again")?;
    Ok(())
}

async fn renew(server: &Server, bob: &mut Device) -> Outcome {
    chapter(9, "Bob's session is renewed, and a newer connection displaces the old one");
    let renewed = bob.socket.request("session.renew", json!({})).await?;
    let check = |token: String| async move {
        let (status, session) = server.call(Method::GET, "/v1/auth/session", &token, None).await?;
        Ok::<_, Box<dyn std::error::Error>>((status, session["session_id"].clone()))
    };
    say("The old token works until the new one is first used, so a lost reply locks nobody out.");
    let old = std::mem::replace(&mut bob.session.token, client::text(&renewed["token"])?);
    ensure(check(old.clone()).await?.0 == 200, "the old token still works")?;
    let presented = check(bob.session.token.clone()).await?;
    ensure(presented == (200, renewed["session_id"].clone()), "the new token belongs to the successor")?;
    ensure(check(old).await?.0 == 401, "its first use ended the old session")?;
    bob.socket.request("keys.status", json!({})).await?;
    say(
        "The socket that renewed the session stays open, in the new session. A second connection of the device displaces it.",
    );
    let newer = server.connect("Bob's phone", &bob.session, Encoding::MsgPack).await?;
    let mut older = std::mem::replace(&mut bob.socket, newer);
    ensure(older.close_code().await? == 4503, "the older connection closes with 4503")?;
    Ok(())
}

fn count(list: &Value) -> usize {
    list.as_array().map_or(0, Vec::len)
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes[..8].iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
