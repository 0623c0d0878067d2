//! Signs in, sends a first message, and prints what arrives:
//!
//!     cargo run --example first_message -- http://127.0.0.1:8080 alice@example.org bob@example.org
//!
//! It does not encrypt, so that it shows only what the client library does. The other person has to have published keys.

use std::{error::Error, io};

use sealwire_client::{Client, Event, FileStorage, Outgoing, Server, Session, protocol::keys::PrekeyBundle};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let [_, url, me, friend] = &std::env::args().collect::<Vec<_>>()[..] else {
        return Err("usage: first_message URL ADDRESS FRIEND".into());
    };
    let server = Server::new(url)?;
    let storage = FileStorage::open("device")?;
    let known = Session::load(&storage).await?.filter(|session| !session.has_ended());
    let session = if let Some(session) = known {
        session
    } else {
        let challenge = server.request_code(me).await?;
        let sign_in = server.sign_in(&challenge, &ask("The code in the mail: ")?).await?;
        sign_in.finish(&server, |approval| println!("Enter {} on your other device.", approval.number)).await?
    };
    let (client, mut events) = Client::start(&server, session, storage).await?;
    let friend = client.find_user(friend).await?;
    let claim = client.claim(friend, "hello").await?;
    let mut message = Outgoing::new(client.new_message_id(), friend);
    for bundle in &claim.bundles {
        message = message.device(bundle.device_id, 3, encrypt(bundle, "Hello!"));
    }
    client.send(message).await?;
    claim.used().await?;
    while let Some(event) = events.next().await {
        if let Event::Message(message) = event {
            println!("{} bytes from {}", message.content.len(), message.from.user_id);
        }
    }
    Ok(())
}

/// A real app opens an encrypted session here, with libsignal or another library.
fn encrypt(_: &PrekeyBundle, text: &str) -> Vec<u8> {
    text.into()
}

fn ask(question: &str) -> io::Result<String> {
    println!("{question}");
    io::stdin().lines().next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
}
