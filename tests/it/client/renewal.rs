//! Sessions are renewed in time by the server's clock, whatever the client's clock says. The clock of these servers stands
//! in June 2026, months from that of the machine that runs the client.

use std::time::Duration;

use sealwire_client::{Event, Session};

use super::{Device, at, network::Network};
use crate::support::{Server, TestApp, eventually};

const DAY: Duration = Duration::from_hours(24);

async fn renewed(device: &mut Device) -> Session {
    device
        .event("a renewal", |event| match event {
            Event::SessionRenewed(session) => Some(session),
            _ => None,
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_renewed_when_half_of_its_life_is_over() {
    let app = TestApp::with_clock(&[]);
    let network = Network::start(app.address()).await;
    let mut alice = Device::join_through(&app, network.address, "alice@example.org").await;
    let first = alice.client.session();

    app.advance(14 * DAY);
    network.cut();
    // A request is answered on the new connection, after a renewal if one was due.
    let welcome = alice.event("the second welcome", |event| match event {
        Event::Connected(welcome) if welcome.expires_at.since(welcome.server_time) < 17 * DAY => Some(welcome),
        _ => None,
    });
    welcome.await;
    alice.client.devices().await.unwrap();
    assert_eq!(alice.client.session().token(), first.token(), "not too early");

    app.advance(2 * DAY);
    network.cut();
    let second = renewed(&mut alice).await;
    assert_ne!(second.token(), first.token());
    assert_eq!(second.expires_at.since(first.expires_at), 16 * DAY);
    assert_eq!(Session::load(&alice.storage).await.unwrap().unwrap().token(), second.token(), "stored");
    // The new token is presented once it is stored, which ends the old one.
    eventually("the old token is not valid", || async { at(app.address()).check_session(first.token()).await.err() })
        .await;

    // It goes on so, over restarts of the client.
    alice.client.stop().await;
    let stored = Session::load(&alice.storage).await.unwrap().unwrap();
    app.advance(16 * DAY);
    let mut alice = Device::start_over(&at(app.address()), stored, alice.storage.clone()).await;
    let third = renewed(&mut alice).await;
    assert_ne!(third.token(), second.token());
    assert_eq!(alice.client.session().token(), third.token());

    // An app that passes the session of its first sign-in, which was renewed since, gets the stored one.
    alice.client.stop().await;
    let alice = Device::start_over(&at(app.address()), first, alice.storage.clone()).await;
    alice.client.connected().await.unwrap();
    assert_eq!(alice.client.session().token(), third.token());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_could_not_be_stored_is_not_used() {
    use sealwire_client::{Client, MemoryStorage, Record, Storage};

    /// Refuses to store a second session.
    #[derive(Clone, Default)]
    struct Full {
        memory: MemoryStorage,
        full: std::sync::Arc<std::sync::atomic::AtomicBool>,
    }

    impl Storage for Full {
        type Error = std::io::Error;

        async fn load(&self) -> std::io::Result<Vec<Record>> {
            self.memory.load().await.map_err(|never| match never {})
        }

        async fn save(&self, record: Record) -> std::io::Result<()> {
            if self.full.load(std::sync::atomic::Ordering::SeqCst) {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            self.memory.save(record).await.map_err(|never| match never {})
        }

        async fn delete(&self, key: String) -> std::io::Result<()> {
            self.memory.delete(key).await.map_err(|never| match never {})
        }
    }

    let app = TestApp::start(&[]);
    let server = at(app.address());
    let session = super::sign_in(&app, "alice@example.org").await;
    let storage = Full::default();
    let (client, _events) = Client::start(&server, session.clone(), storage.clone()).await.unwrap();
    client.connected().await.unwrap();
    storage.full.store(true, std::sync::atomic::Ordering::SeqCst);
    let error = client.renew_session().await.unwrap_err();
    assert!(error.retryable() && error.to_string().contains("storage"), "{error}");
    assert_eq!(client.session().token(), session.token());
    client.stop().await;
    server.check_session(session.token()).await.unwrap();
}
