//! Mailboxes: sends, acks, repeats, limits and expiry.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use sealwire::{
    domain::{
        Caller, DeviceId, MessageId, Refusal, SessionId, Signal, Timestamp, UserId,
        envelope::{MailPage, MailPageRequest, MailboxBounds, MailboxSize, MailboxStatus, OutgoingEnvelope},
    },
    metrics::Metrics,
    store::{
        AcceptedMessage, AckRequest, BatchOutcome, ConnectionRegistration, MailAnswer, MailRequest, Mailboxes,
        SendRequest, Store, StoreError,
    },
};
use uuid::Uuid;

use super::{add_device, later, mailbox, publish, refusal, start};

const BOUNDS: MailboxBounds = MailboxBounds {
    all: MailboxSize { envelopes: 10_000, bytes: 1 << 26 },
    per_sender: MailboxSize { envelopes: 1000, bytes: 1 << 23 },
    strangers: None,
};

/// How long a device may ack nothing until it is woken.
pub const WAKE_AFTER: Duration = Duration::from_secs(2);

/// Adds a device that has published keys.
pub async fn member(store: &Store, name: &str) -> Caller {
    let caller = add_device(store, name).await;
    publish(store, &caller, [], start()).await.unwrap();
    caller
}

fn send_at(from: &Caller, to: &[&Caller], text: &str, now: Timestamp) -> SendRequest {
    let outgoing = |one: &&Caller| OutgoingEnvelope {
        device: one.device,
        kind: 7,
        content: Bytes::copy_from_slice(text.as_bytes()),
    };
    SendRequest {
        caller: *from,
        epoch: 0,
        message: MessageId(Uuid::new_v4()),
        to: to[0].user,
        ephemeral: false,
        is_urgent: true,
        ttl: Duration::from_mins(1),
        envelopes: to.iter().map(outgoing).collect(),
        skipped: Vec::new(),
        access: None,
        now,
    }
}

pub fn send(from: &Caller, to: &[&Caller], text: &str) -> SendRequest {
    send_at(from, to, text, later(10))
}

/// Sends a message that is kept for two hours.
pub async fn accept_urgent(store: &Store, from: &Caller, to: &Caller, is_urgent: bool, now: Timestamp) {
    let send = SendRequest { is_urgent, ttl: Duration::from_hours(2), ..send_at(from, &[to], "hello", now) };
    accept(store, send).await.unwrap();
}

/// Sends an urgent message that is kept for `ttl`.
pub async fn accept_urgent_for(store: &Store, from: &Caller, to: &Caller, ttl: Duration, now: Timestamp) {
    accept(store, SendRequest { ttl, ..send_at(from, &[to], "hello", now) }).await.unwrap();
}

/// Acks the envelopes with these numbers.
pub async fn ack_at(store: &Store, caller: &Caller, seqs: &[i64], now: Timestamp) {
    let ack = AckRequest { caller: *caller, seqs: seqs.to_vec(), now };
    mail(store, vec![MailRequest::Ack(ack)]).await.answers.remove(0).unwrap();
}

pub fn ack(caller: &Caller, seqs: &[i64]) -> MailRequest {
    MailRequest::Ack(AckRequest { caller: *caller, seqs: seqs.to_vec(), now: later(11) })
}

async fn mail(store: &Store, items: Vec<MailRequest>) -> BatchOutcome<MailAnswer> {
    mail_within(store, items, &BOUNDS).await
}

async fn mail_within(store: &Store, items: Vec<MailRequest>, bounds: &MailboxBounds) -> BatchOutcome<MailAnswer> {
    Mailboxes::new(store.clone(), *bounds, WAKE_AFTER).serve(items).await
}

async fn accept(store: &Store, request: SendRequest) -> Result<AcceptedMessage, StoreError> {
    match mail(store, vec![MailRequest::Send(request)]).await.answers.remove(0)? {
        MailAnswer::Sent(accepted) => Ok(accepted),
        other => panic!("another answer than to a send: {other:?}"),
    }
}

async fn page(store: &Store, caller: &Caller, after: i64, envelopes: u32, bytes: usize, now: Timestamp) -> MailPage {
    let request = MailPageRequest { after, through: i64::MAX, envelopes, bytes };
    store.mail_page(caller.device, request, now).await.unwrap()
}

/// Returns the sequence numbers and texts of all waiting messages.
async fn waiting(store: &Store, caller: &Caller) -> Vec<(i64, String)> {
    let page = page(store, caller, 0, 10_000, usize::MAX, later(20)).await;
    let text = |content: &[u8]| String::from_utf8(content.to_vec()).unwrap();
    page.envelopes.iter().map(|(seq, envelope)| (*seq, text(&envelope.content))).collect()
}

fn numbered(texts: &[(i64, &str)]) -> Vec<(i64, String)> {
    texts.iter().map(|(seq, text)| (*seq, (*text).to_owned())).collect()
}

/// Sends this many messages to a new device. At [`after_expiry`] they have expired.
pub async fn fill(store: &Store, messages: usize) -> DeviceId {
    let (alice, bob) = (member(store, "alice").await, member(store, "bob").await);
    let items = (0..messages).map(|n| MailRequest::Send(send(&alice, &[&bob], &n.to_string()))).collect();
    assert!(mail(store, items).await.answers.iter().all(Result::is_ok));
    bob.device
}

pub fn after_expiry() -> Timestamp {
    later(70)
}

pub async fn messages_in_a_batch_are_numbered_in_order(store: &Store) {
    let (alice, carol) = (member(store, "alice").await, member(store, "carol").await);
    let (phone, laptop) = (member(store, "bob").await, member(store, "bob").await);
    let items = vec![
        MailRequest::Send(send(&alice, &[&laptop, &phone], "one")),
        MailRequest::Send(send(&carol, &[&phone, &laptop], "two")),
        MailRequest::Send(send(&alice, &[&phone, &laptop], "three")),
    ];
    let batch = mail(store, items).await;
    assert!(
        batch
            .answers
            .iter()
            .all(|answer| matches!(answer, Ok(MailAnswer::Sent(AcceptedMessage { duplicate: false, .. }))))
    );
    for device in [&phone, &laptop] {
        assert_eq!(waiting(store, device).await, numbered(&[(1, "one"), (2, "two"), (3, "three")]));
        let signalled: Vec<i64> = batch
            .signals
            .iter()
            .filter(|(to, _)| *to == device.device)
            .map(|(_, signal)| match signal {
                Signal::Mail { seq, envelope: Some(_) } => *seq,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(signalled, [1, 2, 3]);
    }
    let found = page(store, &phone, 0, 1, 1, later(20)).await.envelopes.remove(0).1;
    assert_eq!((found.from_user, found.from_device, found.kind), (alice.user, alice.device, 7));
    assert_eq!(found.accepted_at, later(10));
    assert_eq!(mailbox(store, phone.device).await, MailboxStatus { head: 3, waiting: 3, expired_total: 0 });
    // Acks and sends in one batch. A number that is acked twice counts once; an unknown number does not count.
    let batch = mail(
        store,
        vec![
            ack(&phone, &[1, 1, 9]),
            MailRequest::Send(send(&alice, &[&phone, &laptop], "four")),
            ack(&phone, &[1, 2, 4]),
        ],
    )
    .await;
    let counts: Vec<_> = batch.answers.into_iter().map(Result::unwrap).collect();
    assert!(matches!(counts[0], MailAnswer::Acked(1)) && matches!(counts[2], MailAnswer::Acked(1)), "{counts:?}");
    assert_eq!(waiting(store, &phone).await, numbered(&[(3, "three"), (4, "four")]));
    assert_eq!(mailbox(store, phone.device).await.waiting, 2);
    assert_eq!(mailbox(store, laptop.device).await.waiting, 4);
}

pub async fn messages_and_acks_in_a_batch_are_refused_individually(store: &Store) {
    let (alice, bob) = (member(store, "alice").await, member(store, "bob").await);
    let ended = Caller { session: SessionId(Uuid::new_v4()), ..alice };
    let unknown = Caller { user: UserId(Uuid::new_v4()), ..bob };
    let mut expired = send(&alice, &[&bob], "too late");
    expired.now = start() + Duration::from_hours(1);
    let mut huge = send(&alice, &[&bob], "");
    huge.envelopes[0].content = Bytes::from(vec![7; 3 << 20]);
    let items = vec![
        MailRequest::Send(send(&alice, &[&bob], "one")),
        MailRequest::Send(send(&ended, &[&bob], "never")),
        MailRequest::Send(send(&alice, &[&unknown], "never")),
        MailRequest::Send(send(&alice, &[&bob, &bob], "never")),
        MailRequest::Send(expired),
        ack(&ended, &[]),
        ack(&ended, &[1]),
        // Too large to be committed together with others.
        MailRequest::Send(huge.clone()),
        MailRequest::Send(SendRequest { message: MessageId(Uuid::new_v4()), ..huge }),
        MailRequest::Send(send(&alice, &[&bob], "two")),
    ];
    let batch = mail(store, items).await;
    let outcomes: Vec<Option<Refusal>> =
        batch.answers.into_iter().map(|answer| answer.err().map(|error| refusal::<()>(Err(error)))).collect();
    assert_eq!(outcomes[0], None);
    assert_eq!(outcomes[1], Some(Refusal::SessionRevoked));
    assert_eq!(outcomes[2], Some(Refusal::NotFound));
    assert_eq!(outcomes[3], Some(Refusal::DevicesMismatch { missing: vec![], extra: vec![bob.device] }));
    assert_eq!(outcomes[4..7], [const { Some(Refusal::SessionRevoked) }; 3]);
    assert_eq!(outcomes[7..], [None, None, None]);
    let seqs: Vec<i64> = waiting(store, &bob).await.into_iter().map(|(seq, _)| seq).collect();
    assert_eq!(seqs, [1, 2, 3, 4], "refused messages take no number");
}

pub async fn a_repeated_message_is_a_duplicate_for_a_day(store: &Store) {
    let (alice, bob) = (member(store, "alice").await, member(store, "bob").await);
    let first = send(&alice, &[&bob], "once");
    let accepted = accept(store, first.clone()).await.unwrap();
    assert!(!accepted.duplicate);
    let repeat = SendRequest { now: later(500), ..first.clone() };
    // The repeat is twice in one batch.
    let items = vec![MailRequest::Send(repeat.clone()), MailRequest::Send(repeat.clone())];
    let batch = mail(store, items).await;
    for answer in batch.answers {
        let Ok(MailAnswer::Sent(again)) = answer else { panic!("{answer:?}") };
        assert_eq!(again, AcceptedMessage { duplicate: true, ..accepted.clone() });
    }
    // A repeat signals the message again: the node that accepted it may have crashed before its signal.
    assert!(batch.signals.contains(&(bob.device, Signal::Mail { seq: 1, envelope: None })));
    let mut other = repeat.clone();
    other.envelopes[0].kind = 8;
    assert_eq!(refusal(accept(store, other).await), Refusal::IdConflict);
    assert_eq!(waiting(store, &bob).await, numbered(&[(1, "once")]));
    // A new message that is twice in its first batch.
    let twice = send(&alice, &[&bob], "twice");
    let batch = mail(store, vec![MailRequest::Send(twice.clone()), MailRequest::Send(twice)]).await;
    let duplicates: Vec<bool> = batch
        .answers
        .into_iter()
        .map(|answer| matches!(answer, Ok(MailAnswer::Sent(AcceptedMessage { duplicate: true, .. }))))
        .collect();
    assert_eq!(duplicates, [false, true]);
    assert_eq!(mailbox(store, bob.device).await.head, 2);
    // After a day the id is forgotten, whether or not a sweep has run.
    let day = Duration::from_hours(24);
    let session = renew_for_ten_days(store, &alice).await;
    let late = SendRequest { caller: session, now: first.now + day, ..first };
    assert!(!accept(store, late).await.unwrap().duplicate);
    assert!(store.sweep(later(10) + 2 * day).await.unwrap() >= 2);
}

pub async fn a_repeated_message_lists_all_devices_that_still_lack_it(store: &Store) {
    let alice = member(store, "alice").await;
    let (phone, laptop, tablet) = (member(store, "bob").await, member(store, "bob").await, member(store, "bob").await);
    let space_for_one = MailboxBounds {
        all: MailboxSize { envelopes: 1, bytes: 1000 },
        per_sender: MailboxSize { envelopes: 9, bytes: 1000 },
        strangers: None,
    };
    let undelivered = async |request: &SendRequest| {
        let batch = mail_within(store, vec![MailRequest::Send(request.clone())], &space_for_one).await;
        match batch.answers.into_iter().next() {
            Some(Ok(MailAnswer::Sent(AcceptedMessage { undelivered, .. }))) => undelivered,
            other => panic!("{other:?}"),
        }
    };
    let all = [&phone, &laptop, &tablet];
    undelivered(&send(&alice, &all, "before")).await;
    mail(store, vec![ack(&phone, &[1])]).await;
    let whole = send(&alice, &all, "whole");
    assert_eq!(undelivered(&whole).await, [laptop.device, tablet.device]);
    // A repeat stores nothing for devices that it leaves out, even if they have space now.
    mail(store, vec![ack(&laptop, &[1])]).await;
    let part = |to: &Caller| SendRequest {
        envelopes: whole.envelopes.iter().filter(|one| one.device == to.device).cloned().collect(),
        ..whole.clone()
    };
    assert_eq!(undelivered(&part(&phone)).await, [laptop.device, tablet.device]);
    assert_eq!(undelivered(&part(&laptop)).await, [tablet.device]);
    assert_eq!(undelivered(&part(&phone)).await, [tablet.device]);
    assert_eq!(waiting(store, &laptop).await, numbered(&[(2, "whole")]));
    // A revoked device is not listed.
    store.revoke_device(&tablet, tablet.device, later(12)).await.unwrap();
    assert_eq!(undelivered(&part(&phone)).await, []);
    assert_eq!(undelivered(&whole).await, []);
}

/// Renews the session of the device, and returns it with the new session, which is valid for ten days.
async fn renew_for_ten_days(store: &Store, caller: &Caller) -> Caller {
    let session = sealwire::store::NewSession {
        id: SessionId(Uuid::new_v4()),
        token_hash: *blake3::hash(Uuid::new_v4().as_bytes()).as_bytes(),
        expires_at: start() + Duration::from_hours(240),
    };
    store.renew_session(caller, &session, later(600)).await.unwrap();
    store.present(&session.token_hash, later(601)).await.unwrap();
    Caller { session: session.id, ..*caller }
}

pub async fn mail_pages_are_bounded_in_number_and_bytes(store: &Store) {
    let (alice, bob) = (member(store, "alice").await, member(store, "bob").await);
    let sends = (0..20).map(|n| MailRequest::Send(send(&alice, &[&bob], &format!("{n:010}"))));
    mail(store, sends.collect()).await;
    let seqs = |page: &MailPage| page.envelopes.iter().map(|(seq, _)| *seq).collect::<Vec<_>>();
    let some = page(store, &bob, 3, 5, 1000, later(20)).await;
    assert_eq!((seqs(&some), some.complete), ((4..=8).collect(), false));
    let some = page(store, &bob, 0, 100, 25, later(20)).await;
    assert_eq!(
        (seqs(&some), some.complete),
        (vec![1, 2, 3], false),
        "the message that reaches the byte limit is the last"
    );
    let some = page(store, &bob, 0, 100, 1, later(20)).await;
    assert_eq!((seqs(&some), some.complete), (vec![1], false), "a page has at least one message");
    let some = page(store, &bob, 17, 100, 1000, later(20)).await;
    assert_eq!((seqs(&some), some.complete), (vec![18, 19, 20], true));
    let request = MailPageRequest { after: 4, through: 6, envelopes: 100, bytes: 1000 };
    let some = store.mail_page(bob.device, request, later(20)).await.unwrap();
    assert_eq!((seqs(&some), some.complete), (vec![5, 6], true));
    assert!(page(store, &bob, 0, 100, 1000, later(70)).await.envelopes.is_empty(), "they expire after a minute");
}

pub async fn mailbox_limits_hold_within_a_batch(store: &Store) {
    let (alice, carol, bob) = (member(store, "alice").await, member(store, "carol").await, member(store, "bob").await);
    let bounds = MailboxBounds {
        all: MailboxSize { envelopes: 5, bytes: 1000 },
        per_sender: MailboxSize { envelopes: 3, bytes: 1000 },
        strangers: None,
    };
    let full = |batch: &BatchOutcome<MailAnswer>| -> Vec<bool> {
        let is_full =
            |answer: &Result<MailAnswer, StoreError>| matches!(answer, Err(StoreError::Refused(Refusal::MailboxFull)));
        batch.answers.iter().map(is_full).collect()
    };
    let one = |from: &Caller| MailRequest::Send(send(from, &[&bob], "x"));
    let batch = mail_within(store, vec![one(&alice), one(&alice)], &bounds).await;
    assert_eq!(full(&batch), [false, false]);
    let batch =
        mail_within(store, vec![one(&alice), one(&alice), one(&carol), one(&carol), one(&carol), one(&alice)], &bounds)
            .await;
    assert_eq!(full(&batch), [false, true, false, false, true, true]);
    // An ack in the same batch frees space first.
    let batch = mail_within(store, vec![one(&carol), ack(&bob, &[1])], &bounds).await;
    assert_eq!(full(&batch), [false, false]);
    assert_eq!(mailbox(store, bob.device).await.waiting, 5);
}

pub async fn expired_messages_are_deleted_and_counted(store: &Store) {
    let (alice, bob) = (member(store, "alice").await, member(store, "bob").await);
    let mut items: Vec<_> = (0..450).map(|n| MailRequest::Send(send(&alice, &[&bob], &n.to_string()))).collect();
    let mut long = send(&alice, &[&bob], "long");
    long.ttl = Duration::from_hours(1);
    items.push(MailRequest::Send(long));
    mail(store, items).await;
    mail(store, vec![ack(&bob, &[7])]).await;
    assert_eq!(store.expire_mail(later(69)).await.unwrap(), 0);
    let metrics = Arc::new(Metrics::new());
    assert_eq!(store.clone().with_metrics(metrics.clone()).expire_mail(later(70)).await.unwrap(), 449);
    // Senders to the same mailboxes wait for each transaction, so each deletes at most 200 messages.
    assert!(metrics.exposition().contains("\nsealwire_transaction_seconds_count 3\n"), "200, 200 and 49");
    assert_eq!(mailbox(store, bob.device).await, MailboxStatus { head: 451, waiting: 1, expired_total: 449 });
    assert_eq!(waiting(store, &bob).await, numbered(&[(451, "long")]));
    store.revoke_device(&bob, bob.device, later(80)).await.unwrap();
    assert_eq!(mailbox(store, bob.device).await.waiting, 0);
    assert!(waiting(store, &bob).await.is_empty());
}

pub async fn a_displaced_connection_cannot_send(store: &Store) {
    let (alice, bob) = (member(store, "alice").await, member(store, "bob").await);
    let open = ConnectionRegistration { caller: alice, now: later(1) };
    let epochs: Vec<i64> =
        store.register_connections(vec![open, open]).await.into_iter().map(|one| one.unwrap().epoch).collect();
    let old = SendRequest { epoch: epochs[0], ..send(&alice, &[&bob], "old") };
    let new = SendRequest { epoch: epochs[1], ..send(&alice, &[&bob], "new") };
    assert_eq!(refusal(accept(store, old).await), Refusal::Unavailable);
    accept(store, new).await.unwrap();
    assert_eq!(waiting(store, &bob).await, numbered(&[(1, "new")]));
}

pub async fn parallel_batches_lose_no_message_and_leave_no_gap_in_the_numbers(store: &Store) {
    const SENDERS: usize = 6;
    const ROUNDS: usize = 25;
    let mut devices = Vec::new();
    for _ in 0..3 {
        devices.push(member(store, "bob").await);
    }
    let mut senders = Vec::new();
    for n in 0..SENDERS {
        senders.push(member(store, &format!("sender{n}")).await);
    }
    // Each sender names the devices in an order of its own; acks and sweeps run against the sends.
    let send_all = join_all(senders.iter().enumerate().map(|(n, sender)| {
        let mut to: Vec<Caller> = devices.clone();
        to.rotate_left(n % 3);
        async move {
            for round in 0..ROUNDS {
                let request = send(sender, &to.iter().collect::<Vec<_>>(), &format!("{n} {round}"));
                accept(store, request).await.unwrap();
            }
        }
    }));
    let total = (SENDERS * ROUNDS) as u64;
    let ack_all = join_all(devices[1..].iter().map(|device| async move {
        let mut acked = 0;
        while acked < total {
            let seqs: Vec<i64> = waiting(store, device).await.into_iter().map(|(seq, _)| seq).collect();
            let batch = mail(store, vec![ack(device, &seqs)]).await;
            match batch.answers.into_iter().next().unwrap() {
                Ok(MailAnswer::Acked(count)) => acked += count,
                other => panic!("{other:?}"),
            }
            store.expire_mail(later(10)).await.unwrap();
        }
        assert_eq!(acked, total);
    }));
    futures_util::join!(send_all, ack_all);
    let left = waiting(store, &devices[0]).await;
    assert_eq!(left.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), (1..=total.cast_signed()).collect::<Vec<_>>());
    for n in 0..SENDERS {
        let mine: Vec<&String> =
            left.iter().map(|(_, text)| text).filter(|text| text.starts_with(&format!("{n} "))).collect();
        assert_eq!(
            mine,
            (0..ROUNDS).map(|round| format!("{n} {round}")).collect::<Vec<_>>().iter().collect::<Vec<_>>()
        );
    }
    for device in &devices[1..] {
        let status = mailbox(store, device.device).await;
        assert_eq!((status.head.unsigned_abs(), status.waiting), (total, 0));
    }
}
