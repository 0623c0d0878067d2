//! The counters of mailboxes against the rows that they count.

use std::{collections::HashMap, time::Duration};

use futures_util::future::join_all;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sealwire::{
    domain::{
        Caller, Refusal,
        envelope::{MailPageRequest, MailboxBounds, MailboxSize},
    },
    store::{MailAnswer, MailRequest, Mailboxes, Store, StoreError},
};

use super::{
    FreshStore, postgres, sqlite,
    suite::{later, mail},
};
use crate::support::counters::{Database, assert_exact};

/// Each sender may have three envelopes of a mailbox, and so counts as soon as there are four.
const BOUNDS: MailboxBounds = MailboxBounds {
    all: MailboxSize { envelopes: 12, bytes: 400 },
    per_sender: MailboxSize { envelopes: 3, bytes: 60 },
    strangers: Some(MailboxSize { envelopes: 8, bytes: 200 }),
};

async fn both_engines() -> [(FreshStore, Database); 2] {
    let (file, server) = (sqlite().await, postgres().await);
    let (file_rows, server_rows) = (Database::connect(&file.url).await, Database::connect(&server.url).await);
    [(file, file_rows), (server, server_rows)]
}

async fn serve(store: &Store, items: Vec<MailRequest>) -> Vec<Result<MailAnswer, StoreError>> {
    Mailboxes::new(store.clone(), BOUNDS, mail::WAKE_AFTER).serve(items).await.answers
}

fn is_full(answer: &Result<MailAnswer, StoreError>) -> bool {
    matches!(answer, Err(StoreError::Refused(Refusal::MailboxFull)))
}

fn text(rng: &mut StdRng) -> String {
    "x".repeat(rng.random_range(1..=25))
}

/// The numbers of the envelopes in a mailbox.
async fn numbers(store: &Store, device: &Caller) -> Vec<i64> {
    let all = MailPageRequest { after: 0, through: i64::MAX, envelopes: 1000, bytes: usize::MAX };
    let page = store.mail_page(device.device, all, later(0)).await.unwrap();
    page.envelopes.iter().map(|(seq, _)| *seq).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_are_exact_after_any_order_of_sends_acks_expiry_and_revocations() {
    for (fresh, mut rows) in both_engines().await {
        let store = &fresh.store;
        let mut senders = Vec::new();
        for n in 0..5 {
            senders.push(mail::member(store, &format!("sender{n}")).await);
        }
        let mut devices = vec![mail::member(store, "bob").await, mail::member(store, "bob").await];
        let (mut full, mut counted, mut expired) = (0, 0, 0);
        for seed in 0..40 {
            let mut rng = StdRng::seed_from_u64(seed);
            for _ in 0..10 {
                let mut items = Vec::new();
                for _ in 0..rng.random_range(1..6) {
                    if rng.random_bool(0.75) {
                        let to: Vec<&Caller> = devices.iter().collect();
                        let mut send = mail::send(&senders[rng.random_range(0..5)], &to, &text(&mut rng));
                        send.ttl = Duration::from_secs(rng.random_range(60..600));
                        items.push(MailRequest::Send(send));
                    } else {
                        let device = devices[rng.random_range(0..devices.len())];
                        let mut seqs = numbers(store, &device).await;
                        seqs.retain(|_| rng.random_bool(0.5));
                        items.push(mail::ack(&device, &seqs));
                    }
                }
                full += serve(store, items).await.iter().filter(|answer| is_full(answer)).count();
                match rng.random_range(0..20) {
                    // Of what was sent in this step, some has expired.
                    0 => expired += store.expire_mail(later(10 + rng.random_range(60..600))).await.unwrap(),
                    1 => {
                        let seqs = numbers(store, &devices[0]).await;
                        serve(store, vec![mail::ack(&devices[0], &seqs)]).await;
                    }
                    2 if seed % 10 == 9 => {
                        let revoked = devices.remove(0);
                        store.revoke_device(&revoked, revoked.device, later(12)).await.unwrap();
                        devices.push(mail::member(store, "bob").await);
                    }
                    _ => {}
                }
                counted += assert_exact(&mut rows).await;
            }
        }
        assert!(full > 50 && counted > 500 && expired > 10, "{full} refused, {counted} shares, {expired} expired");
        for device in &devices {
            let seqs = numbers(store, device).await;
            serve(store, vec![mail::ack(device, &seqs)]).await;
        }
        assert_eq!(assert_exact(&mut rows).await, 0, "empty mailboxes have no shares");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_are_exact_while_batches_run_at_the_same_time() {
    for (fresh, mut rows) in both_engines().await {
        let store = &fresh.store;
        let mut senders = Vec::new();
        for n in 0..6 {
            senders.push(mail::member(store, &format!("sender{n}")).await);
        }
        let devices = [mail::member(store, "bob").await, mail::member(store, "bob").await];
        let sending = join_all(senders.iter().enumerate().map(|(n, sender)| async move {
            let mut rng = StdRng::seed_from_u64(n as u64);
            let mut stored: HashMap<bool, usize> = HashMap::new();
            for _ in 0..60 {
                let send = mail::send(sender, &[&devices[0], &devices[1]], &text(&mut rng));
                let answer = serve(store, vec![MailRequest::Send(send)]).await.remove(0);
                *stored.entry(is_full(&answer)).or_default() += 1;
                assert!(answer.is_ok() || is_full(&answer), "{answer:?}");
            }
            stored
        }));
        let acking = join_all(devices.iter().enumerate().map(|(n, device)| async move {
            let mut rng = StdRng::seed_from_u64(100 + n as u64);
            for _ in 0..60 {
                let mut seqs = numbers(store, device).await;
                seqs.retain(|_| rng.random_bool(0.3));
                assert!(serve(store, vec![mail::ack(device, &seqs)]).await.remove(0).is_ok());
            }
        }));
        let (stored, _) = futures_util::join!(sending, acking);
        assert_exact(&mut rows).await;
        let of = |is_full: bool| stored.iter().filter_map(|one| one.get(&is_full)).sum::<usize>();
        assert!(of(false) > 20 && of(true) > 20, "{stored:?}");
    }
}

/// A node of the previous version stores and deletes envelopes without changing shares.
#[tokio::test(flavor = "multi_thread")]
async fn shares_that_a_node_of_the_previous_version_has_outdated_are_counted_again() {
    for (fresh, mut rows) in both_engines().await {
        let store = &fresh.store;
        let (alice, carol) = (mail::member(store, "alice").await, mail::member(store, "carol").await);
        let bob = mail::member(store, "bob").await;
        let one = |from: &Caller| MailRequest::Send(mail::send(from, &[&bob], "x"));
        let answers = serve(store, vec![one(&alice), one(&alice), one(&carol), one(&carol)]).await;
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(assert_exact(&mut rows).await, 2, "both are counted");
        // It deletes both envelopes of one, and then stores one of the other.
        rows.run("DELETE FROM messages WHERE seq <= 2").await;
        rows.run("UPDATE mailboxes SET count = 2, bytes = 2, stranger_count = 2, stranger_bytes = 2 WHERE count = 4")
            .await;
        assert!(serve(store, vec![one(&alice)]).await[0].is_ok());
        assert_exact(&mut rows).await;
        rows.run(
            "INSERT INTO messages (device_id, seq, message_id, sender_user, sender_device, type, content, accepted_at, \
            expires_at) SELECT device_id, 6, message_id, sender_user, sender_device, type, content, accepted_at, expires_at \
            FROM messages WHERE seq = 3",
        )
        .await;
        rows.run("UPDATE mailboxes SET count = 4, bytes = 4, next_seq = 7 WHERE count = 3").await;
        let answers = serve(store, vec![one(&carol), one(&alice), one(&alice), one(&alice)]).await;
        assert_eq!(
            answers.iter().map(is_full).collect::<Vec<_>>(),
            [true, false, false, true],
            "carol has three already"
        );
        assert_eq!(assert_exact(&mut rows).await, 2);
    }
}
