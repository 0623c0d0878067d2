//! A tour of Sealwire: two people with four devices use the whole protocol against a running server, with the client
//! library of `crates/client`.
//!
//!     SEALWIRE__MAILER__URL=file:mail cargo run       # in one terminal
//!     cargo run --example tour -- --mail mail         # in another
//!
//! Without `--mail` it asks for the codes, which a server without settings prints. It shows the frames on the wire, with
//! long values shortened. If a step does not have the expected result, the tour ends with an error.

mod device;
mod keys;
mod lock;
mod mails;
mod messages;
mod sealed;

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::Parser;
use sealwire::clock::Entropy;
use sealwire_client::{
    Challenge, Client, Code, CodePurpose, End, Event, MemoryStorage, Server, Session, SignIn,
    protocol::{
        auth::InvalidTokenReason,
        keys::{OneTimeOutcome, PrekeyBundle},
        users::DeleteAccountRequest,
        value::{Base64Text, Named},
    },
};

use device::{Device, wire};
use keys::Keyring;
use mails::Mails;

#[derive(Parser)]
struct Arguments {
    /// URL of the server.
    #[arg(default_value = "http://127.0.0.1:8080")]
    server: String,
    /// Folder to which the server writes its mails, to read the codes from.
    #[arg(long, value_name = "DIR")]
    mail: Option<PathBuf>,
}

/// The result of a step, or the error that ends the tour.
type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// What all steps need.
struct Tour {
    server: Server,
    mails: Mails,
    entropy: Entropy,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { server, mail } = Arguments::parse();
    match tour(&server, mail).await {
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

/// Fails if `holds` is false; `what` says what was expected.
fn ensure(holds: bool, what: &str) -> Outcome {
    if holds { Ok(()) } else { Err(format!("expected, but false: {what}").into()) }
}

impl Tour {
    /// Requests a code to sign in, and waits until it is mailed or entered.
    async fn code(&self, email: &str) -> Outcome<(Challenge, String)> {
        self.code_for(email, CodePurpose::SignIn).await
    }

    async fn code_for(&self, email: &str, purpose: CodePurpose) -> Outcome<(Challenge, String)> {
        let before = self.mails.to(email)?;
        let challenge = self.server.request_code_for(email, purpose).await?;
        let code = self.mails.code(email, &before).await?;
        Ok((challenge, code))
    }

    /// Signs in on a new device by mailed code.
    async fn sign_in(&self, email: &str, name: &str) -> Outcome<Session> {
        let (challenge, code) = self.code(email).await?;
        match self.server.sign_in(&challenge, &code).device_name(name).await? {
            SignIn::Session(session) => Ok(session),
            SignIn::Approval(_) => Err("the account is locked".into()),
        }
    }
}

async fn tour(url: &str, mail: Option<PathBuf>) -> Outcome {
    let entropy = Entropy::from_system()?;
    let tour = Tour { server: Server::new(url)?, mails: Mails { folder: mail }, entropy };
    // New addresses for each tour, so that one does not use up the limits of another.
    let run = tour.entropy.uuid().simple().to_string();
    let address = |name: &str| format!("{name}-{}@example.org", &run[..8]);

    chapter(1, "Two people sign in");
    say("Alice first. A code comes by mail; redeeming it creates a device with a session.");
    let (alice, bob) = (address("alice"), address("bob"));
    let phone = tour.sign_in(&alice, "Alice's phone").await?;
    say("Then Bob.");
    let bobs = tour.sign_in(&bob, "Bob's phone").await?;

    chapter(2, "Their phones connect and publish keys");
    say("The first publish of Alice's phone is a complete set: identity key, signed prekey, one-time prekeys.");
    let mut alice = arrive(&tour, "Alice's phone", &alice, phone, 30).await?;
    say("Bob's phone publishes only seven one-time prekeys.");
    let mut bob = arrive(&tour, "Bob's phone", &bob, bobs, 7).await?;

    let bundle = claim_once(&tour, &mut alice, &bob).await?;
    messages::first(&tour.server, &mut alice, &mut bob, &bundle).await?;
    let mut laptop = add_laptop(&tour, &mut alice).await?;
    messages::answer(&tour.server, &mut alice, &mut laptop, &mut bob).await?;
    run_out(&alice, &mut bob).await?;
    renew(&tour, &mut bob).await?;

    chapter(10, "Alice loses her laptop and revokes it");
    let lost = laptop.client.device_id();
    alice.client.revoke_device(lost).await?;
    let end = laptop.end().await?;
    ensure(end == End::DeviceRevoked && end.must_wipe(), "the laptop is told why, and deletes its data")?;
    alice
        .event(|event| matches!(event, Event::DevicesChanged { removed, .. } if *removed == [lost]).then_some(()))
        .await?;
    let refused = tour.server.check_session(laptop.client.session().token()).await.err();
    ensure(
        refused.is_some_and(|error| error.code() == Some(Code::Unauthorized)),
        "a revoked device's token is invalid",
    )?;
    say("Its session, unissued keys, mailbox and socket are gone at once.");

    lock::link_with_approval(&tour, &mut alice).await?;
    sign_in_again(&tour, &mut bob).await?;
    leave(&tour, &mut alice, &mut bob).await?;

    println!("\n   That was all of it. docs/protocol.md has the details.\n");
    Ok(())
}

/// Connects a device that has signed in, and publishes its first keys.
async fn arrive(tour: &Tour, name: &str, email: &str, session: Session, one_time: usize) -> Outcome<Device> {
    let device = Device::start(&tour.server, name, email, session, Keyring::new(&tour.entropy)).await?;
    let welcome = device.client.connected().await?;
    ensure(welcome.keys.suite.is_none(), "a new device has no keys yet")?;
    let keys = device.secrets().keys.complete_set(one_time);
    let report = device.client.publish_keys(keys).await?;
    ensure(report.one_time.accepted.len() == one_time, "all keys are accepted")?;
    ensure(usize::try_from(report.status.one_time)? == one_time, "all keys can be claimed")?;
    Ok(device)
}

async fn claim_once(tour: &Tour, alice: &mut Device, bob: &Device) -> Outcome<PrekeyBundle> {
    chapter(3, "Alice finds Bob and claims his keys");
    let user = alice.client.find_user(&bob.email).await?;
    ensure(user == bob.client.user_id(), "an address identifies a user")?;
    say("A fetch shows his bundle and uses up no key.");
    let fetched = alice.client.fetch_keys(user, None).await?;
    ensure(fetched.bundles[0].one_time == OneTimeOutcome::NotRequested.into(), "a fetch takes no one-time prekey")?;
    say("A claim takes one one-time prekey, which nobody else will ever get. The claim_id makes it safe to repeat:");
    say("the library stores it under a purpose, here \"hello\", until the app says that it has used the keys.");
    let claim = alice.client.claim(user, "hello").await?;
    let bundle = claim.bundles[0].clone();
    let key = bundle.one_time_prekey.as_ref().map(|key| key.key_id);
    ensure(bundle.one_time == OneTimeOutcome::Claimed.into() && key == Some(1), "the oldest key is issued first")?;

    chapter(4, "Alice's phone restarts; the claim is repeated");
    alice.leave().await;
    alice.come_back(&tour.server, alice.client.session()).await?;
    let again = alice.client.claim(user, "hello").await?;
    ensure(again.bundles == [bundle.clone()], "the same claim_id returns the same key")?;
    again.used().await?;
    let status = bob.client.keys_status().await?;
    ensure(status.one_time == 6, "the repeated claim uses up no other key")?;
    say("The claim returned the same key, and six of Bob's seven are left.");
    Ok(bundle)
}

async fn add_laptop(tour: &Tour, alice: &mut Device) -> Outcome<Device> {
    chapter(6, "Alice adds a laptop");
    let session = tour.sign_in(&alice.email, "Alice's laptop").await?;
    let laptop = session.device_id;
    say("Her phone is notified of the new device and of its session.");
    alice
        .event(|event| matches!(event, Event::DevicesChanged { added, .. } if *added == [laptop]).then_some(()))
        .await?;
    alice
        .event(|event| matches!(event, Event::SessionsChanged { device_id, .. } if *device_id == laptop).then_some(()))
        .await?;
    if tour.mails.folder.is_some() {
        let mail = tour.mails.wait(&alice.email, |mail| mail.contains("A device was added")).await?;
        say(&format!("And a mail arrives: {mail}"));
    }
    let laptop = arrive(tour, "Alice's laptop", &alice.email, session, 30).await?;
    say("Messages to Alice are now encrypted twice: once for each of her devices.");
    Ok(laptop)
}

async fn run_out(alice: &Device, bob: &mut Device) -> Outcome {
    chapter(8, "Bob's one-time prekeys run out, and his phone is notified in time");
    say("Alice claims repeatedly, each time for another purpose. (More than ten claims would exceed the limit.)");
    alice.quiet(true);
    for number in 1.. {
        let claim = alice.client.claim(bob.client.user_id(), &format!("claim {number}")).await?;
        let bundle = claim.bundles[0].clone();
        claim.used().await?;
        let key = bundle.one_time_prekey.as_ref().map(|key| key.key_id);
        wire(&format!("Alice's phone ← {:?} {key:?}", bundle.one_time));
        if bundle.one_time == Named::Known(OneTimeOutcome::Exhausted) {
            // X3DH works without a one-time prekey, only with less protection for the first message.
            let (alices, hello) = alice.secrets().keys.initiate(&bundle)?;
            let bobs = bob.secrets().keys.respond(&hello)?;
            ensure(alices == bobs, "a bundle without a one-time prekey works too")?;
            break;
        }
        ensure(bundle.one_time == OneTimeOutcome::Claimed.into(), "a claim returns a key while there is one")?;
    }
    alice.quiet(false);
    bob.event(|event| matches!(event, Event::PrekeysLow { remaining: 0, .. }).then_some(())).await?;
    say("Bob's phone was notified once of each low level, and refills the pool.");
    let keys = bob.secrets().keys.refill(40);
    let report = bob.client.publish_keys(keys).await?;
    ensure(report.status.one_time == 40, "the pool is full again")
}

async fn renew(tour: &Tour, bob: &mut Device) -> Outcome {
    chapter(9, "Bob's session is renewed, and a newer connection displaces the old one");
    say(
        "The library does this by itself when half of the session's life is over. It stores the new token before it uses it.",
    );
    let old = bob.client.session();
    bob.client.renew_session().await?;
    let new = bob.client.session();
    let presented = tour.server.check_session(new.token()).await?;
    ensure(presented.session_id == new.session_id, "the new token belongs to the successor")?;
    say("The old token works until the new one is first used, so a lost reply locks nobody out.");
    let refused = tour.server.check_session(old.token()).await.err().ok_or("the old token still works")?;
    ensure(
        refused.invalid_token_reason() == Some(InvalidTokenReason::Superseded),
        "its first use ended the old session",
    )?;
    say("The socket that renewed the session stays open, in the new session.");
    ensure(bob.client.devices().await?.len() == 1, "Bob has one device")?;
    say("A second connection of the device displaces it, and the older does not come back.");
    let (newer, _events) = Client::start(&tour.server, new.clone(), MemoryStorage::new()).await?;
    newer.connected().await?;
    ensure(bob.end().await? == End::Displaced, "the older connection has ended")?;
    newer.stop().await;
    bob.come_back(&tour.server, new).await
}

async fn sign_in_again(tour: &Tour, bob: &mut Device) -> Outcome {
    chapter(12, "Bob logs out, and signs in on the same phone again");
    bob.client.log_out().await?;
    let end = bob.end().await?;
    ensure(end == End::LoggedOut && end.must_sign_in(), "the client ends, and says why")?;
    say("The phone names its device id, so it keeps its keys. A code alone does not suffice for that:");
    let device = bob.client.device_id();
    let (challenge, code) = tour.code(&bob.email).await?;
    let sign_in = tour.server.sign_in(&challenge, &code).as_device(device);
    let refused = sign_in.await.err();
    ensure(refused.is_some_and(|error| error.code() == Some(Code::ProofRequired)), "the phone must prove itself")?;
    say("It signs the challenge with its identity key. Bob gets a mail, in case that somebody else reads his mail.");
    let proof = bob.secrets().keys.device_proof(&challenge, device);
    let SignIn::Session(session) = sign_in.proof(&proof).await? else { return Err("the account is locked".into()) };
    ensure(session.device_id == device, "it is the same device")?;
    bob.come_back(&tour.server, session).await?;
    let welcome = bob.client.connected().await?;
    let identity_key = welcome.keys.identity_key.as_ref().and_then(Base64Text::decode);
    ensure(identity_key == Some(bob.secrets().keys.identity_key()), "its keys are still there")?;
    ensure(welcome.mailbox.waiting == 0, "its mailbox is empty because everything was acked")
}

async fn leave(tour: &Tour, alice: &mut Device, bob: &mut Device) -> Outcome {
    chapter(13, "Alice deletes her account");
    say("A code confirms it: a phone left unlocked for a minute is not enough.");
    let refused =
        alice.client.request(DeleteAccountRequest { challenge_id: None, code: None, proof: None }).await.err();
    ensure(refused.is_some_and(|error| error.code() == Some(Code::ConfirmationRequired)), "it needs a code")?;
    let (challenge, code) = tour.code_for(&alice.email, CodePurpose::Delete).await?;
    alice.client.delete_account(&challenge, &code).await?;
    let end = alice.end().await?;
    ensure(end == End::AccountDeleted && end.must_wipe(), "her phone deletes its data")?;
    let refused = bob.client.find_user(&alice.email).await.err();
    ensure(refused.is_some_and(|error| error.code() == Some(Code::NotFound)), "nobody can find her any more")?;
    say("Bob deletes his account too, so that the tour leaves nothing behind.");
    let (challenge, code) = tour.code_for(&bob.email, CodePurpose::Delete).await?;
    bob.client.delete_account(&challenge, &code).await?;
    ensure(bob.end().await? == End::AccountDeleted, "his phone has ended too")
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes[..8].iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
