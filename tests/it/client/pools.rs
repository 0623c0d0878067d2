//! Claims that are repeated, and keys that are restored from a backup.

use std::collections::BTreeMap;

use sealwire::domain::Suite;
use sealwire_client::{
    Code, Event, HeldKeys, MemoryStorage, Options,
    protocol::{
        keys::{KeyKind, PublishKeysRequest},
        value::{Base64Text, Named},
    },
};

use super::{Device, Process, at, network::Network, sign_in};
use crate::support::{KeySet, Server, TestApp, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_killed_in_a_claim_gets_the_same_keys_and_spends_no_others() {
    let app = TestApp::start(&[]);
    let network = Network::start(app.address()).await;
    let bob = Device::join(&app, "bob@example.org").await;
    let session = sign_in(&app, "alice@example.org").await;
    let storage = MemoryStorage::new();
    let server = at(network.address);
    let mut process = Process::new();
    let (client, _events) = process.start(&server, session.clone(), storage.clone(), Options::default()).await;
    client.connected().await.unwrap();

    let left = async || bob.client.keys_status().await.unwrap().one_time;
    network.lose_replies();
    let user = bob.user();
    process.spawn(async move { client.claim(user, "first").await });
    eventually("a key is taken", || async { (left().await == 4).then_some(()) }).await;
    process.kill();

    let alice = Device::start_over(&server, session, storage).await;
    let claim = alice.client.claim(user, "first").await.unwrap();
    let first = claim.bundles[0].one_time_prekey.clone().unwrap();
    assert_eq!((first.key_id, left().await), (1, 4), "the same key, and no other is spent");
    let again = alice.client.claim(user, "first").await.unwrap();
    assert_eq!(again.bundles[0].one_time_prekey, Some(first));
    let other = alice.client.claim(user, "second").await.unwrap();
    assert_eq!(other.bundles[0].one_time_prekey.as_ref().unwrap().key_id, 2);

    claim.used().await.unwrap();
    let next = alice.client.claim(user, "first").await.unwrap();
    assert_eq!(next.bundles[0].one_time_prekey.as_ref().unwrap().key_id, 3, "the id was forgotten");
    assert_eq!(left().await, 2);
}

/// The keys of a publish, as a device holds them.
fn held(request: &PublishKeysRequest) -> HeldKeys {
    let one_time = request.one_time_prekeys.as_ref().unwrap();
    let signed = &request.signed_prekey.as_ref().unwrap().0;
    HeldKeys {
        one_time: one_time.0.iter().map(|key| (key.0.key_id, key.0.public_key.0.clone())).collect(),
        pq_one_time: BTreeMap::new(),
        signed_prekey: Some((signed.key_id, signed.public_key.0.clone())),
        pq_last_resort: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_restored_from_a_backup_withdraws_the_keys_that_it_lacks() {
    let app = TestApp::start(&[]);
    let mut set = KeySet::new(Suite::SignalX3dh, 1);
    let mut publish = |ids: std::ops::RangeInclusive<u32>| -> PublishKeysRequest {
        serde_json::from_value(set.complete(ids)).unwrap()
    };
    let device = Device::start(&at(app.address()), sign_in(&app, "alice@example.org").await).await;
    let backup = publish(1..=5);
    device.client.publish_keys(backup.clone()).await.unwrap();
    let status = device.client.keys_status().await.unwrap();
    assert_eq!(status.digest, Some(Base64Text(held(&backup).digest())), "nothing is missing");

    // Later the device publishes more, and then is restored from the backup.
    device.client.publish_keys(publish(6..=9)).await.unwrap();
    let status = device.client.keys_status().await.unwrap();
    assert_ne!(status.digest, Some(Base64Text(held(&backup).digest())));
    let replacement =
        PublishKeysRequest { replace: Some(true), expect_pool_version: Some(status.pool_version), ..backup.clone() };
    let reply = device.client.publish_keys(replacement.clone()).await.unwrap();
    assert_eq!(reply.one_time.withdrawn, [6, 7, 8, 9]);
    let status = device.client.keys_status().await.unwrap();
    assert_eq!(status.digest, Some(Base64Text(held(&backup).digest())));
    let late = device.client.publish_keys(replacement).await.unwrap_err();
    assert_eq!(late.code(), Some(Code::PoolChanged), "a late repeat withdraws nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_low_pool_is_reported_and_outdated_notices_are_not() {
    let app = TestApp::start(&[]);
    let mut bob = Device::join(&app, "bob@example.org").await;
    let alice = Device::join(&app, "alice@example.org").await;
    for number in 0..5 {
        alice.client.claim(bob.user(), &number.to_string()).await.unwrap().used().await.unwrap();
    }
    let empty = |event| match event {
        Event::PrekeysLow { kind: Named::Known(KeyKind::OneTime), remaining: 0, .. } => Some(()),
        _ => None,
    };
    bob.event("an empty pool", empty).await;
}
