//! Converts domain values to events.

use std::time::Duration;

use sealwire_protocol::{
    Codec,
    events::{Event, Feature, MessageEvent, MessageSender, Welcome, WelcomeLimits, WelcomeMailbox},
    messages::MessageContent,
    push::WelcomePush,
    value::{Named, Text},
};

use super::{accounts, keys::keys_status_reply};
use crate::{
    domain::{Envelope, KeysStatus, PendingApproval, Session, Timestamp, envelope::MailboxStatus},
    service::PushStatus,
};

/// Returns the welcome of a connection that was opened at `now`. `heartbeat` is the interval of the server's pings.
#[must_use]
pub fn welcome(
    session: &Session,
    now: Timestamp,
    heartbeat: Duration,
    keys: KeysStatus,
    mailbox: MailboxStatus,
    push: PushStatus,
) -> Event<'static> {
    Event::Welcome(Box::new(Welcome {
        session_id: session.caller.session,
        user_id: session.caller.user,
        device_id: session.caller.device,
        expires_at: session.expires_at,
        server_time: now,
        heartbeat_s: heartbeat.as_secs(),
        limits: WelcomeLimits::default(),
        keys: keys_status_reply(keys),
        mailbox: WelcomeMailbox { waiting: mailbox.waiting, expired_total: mailbox.expired_total },
        features: Feature::ALL.map(Named::Known).into(),
        push: Some(WelcomePush {
            state: push.state.into(),
            vapid_public_key: push.vapid_public_key.as_deref().and_then(Text::parse),
            kinds: push.kinds.into_iter().map(Named::Known).collect(),
        }),
    }))
}

/// Returns the event for the devices that may decide a request.
#[must_use]
pub fn approval_requested(request: PendingApproval) -> Event<'static> {
    Event::DevicesRequested(Box::new(accounts::pending_approval(request)))
}

/// Returns the event that delivers an envelope. `seq` is its sequence number; `None` if the envelope is ephemeral.
#[must_use]
pub fn message(codec: Codec, seq: Option<i64>, envelope: &Envelope) -> Event<'_> {
    Event::Message(MessageEvent {
        seq,
        message_id: envelope.message,
        from: MessageSender { user_id: envelope.from_user, device_id: envelope.from_device },
        kind: envelope.kind,
        content: MessageContent::new(codec, &envelope.content),
        accepted_at: envelope.accepted_at,
        ephemeral: seq.is_none(),
    })
}
