//! Converts requests and replies about messages.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use sealwire_protocol::{
    Code, Codec,
    limits::{MAX_CONTENT, MAX_INTEGER, MAX_MESSAGES_PER_SEND, MAX_SEQS_PER_ACK, TTL_DEFAULT, TTL_SECONDS},
    messages::{AckMessagesRequest, DeviceMessage, SendMessageReply, SendMessageRequest, UndeliveredDevice},
    value::{List, Object},
};

use super::{EdgeError, access::shown_key};
use crate::{
    domain::envelope::OutgoingEnvelope,
    service::{AcceptedMessage, Message},
};

/// The encoding of content, for errors.
const CONTENT_FORM: &str = "base64 text in JSON, bin in MessagePack";

/// Converts a send. `frame` is the frame from which the request was decoded with `codec`.
///
/// # Errors
/// - `bad_request` if there are too many messages or skipped devices, `ttl_s` is out of range, a device is both in
///   `messages` and in `skip`, or content is empty or not encoded as the codec requires
/// - `payload_too_large` if content has more than [`MAX_CONTENT`] bytes
pub fn message(request: SendMessageRequest<'_>, codec: Codec, frame: &[u8]) -> Result<Message, EdgeError> {
    let SendMessageRequest { message_id, to, ephemeral, ttl_s, urgent, messages: List(messages), skip, access } =
        request;
    let ttl = ttl(ttl_s)?;
    if messages.len() > MAX_MESSAGES_PER_SEND {
        return Err(EdgeError::invalid("messages", "at most 100 messages"));
    }
    let outgoing = |(index, Object(message))| {
        outgoing(message, codec, frame)
            .map_err(|expected| EdgeError::invalid(format!("messages[{index}].content"), expected))
    };
    let envelopes: Vec<OutgoingEnvelope> = messages.into_iter().enumerate().map(outgoing).collect::<Result<_, _>>()?;
    let skipped = skip.map_or_else(Vec::new, |List(devices)| devices);
    if skipped.len() > MAX_MESSAGES_PER_SEND {
        return Err(EdgeError::invalid("skip", "at most 100 devices"));
    }
    if let Some(index) = skipped.iter().position(|skipped| envelopes.iter().any(|one| one.device == *skipped)) {
        return Err(EdgeError::invalid(format!("skip[{index}]"), "a device that is not in messages"));
    }
    if envelopes.iter().any(|outgoing| outgoing.content.len() > MAX_CONTENT) {
        return Err(EdgeError::PayloadTooLarge);
    }
    let (ephemeral, access) = (ephemeral.unwrap_or(false), shown_key(access));
    let is_urgent = urgent.unwrap_or(true);
    Ok(Message { id: message_id, to, ephemeral, is_urgent, ttl, envelopes, skipped, access })
}

fn ttl(seconds: Option<u64>) -> Result<Duration, EdgeError> {
    match seconds {
        None => Ok(TTL_DEFAULT),
        Some(seconds) if TTL_SECONDS.contains(&seconds) => Ok(Duration::from_secs(seconds)),
        Some(_) => Err(EdgeError::invalid("ttl_s", "60 to 2592000 seconds")),
    }
}

/// Converts the message for one device. The error says what its content should be.
fn outgoing(message: DeviceMessage<'_>, codec: Codec, frame: &[u8]) -> Result<OutgoingEnvelope, &'static str> {
    let content: Bytes = match message.content.read(codec, frame).map_err(|_| CONTENT_FORM)? {
        // A slice of the frame, which the envelope may outlive.
        Cow::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
        Cow::Owned(bytes) => bytes.into(),
    };
    if content.is_empty() {
        return Err("at least one byte");
    }
    Ok(OutgoingEnvelope { device: message.device_id, kind: message.kind, content })
}

/// Returns the reply to a send.
#[must_use]
pub fn send_reply(accepted: AcceptedMessage) -> SendMessageReply {
    let full = |device_id| UndeliveredDevice { device_id, reason: Code::MailboxFull.into() };
    SendMessageReply {
        accepted_at: accepted.accepted_at,
        duplicate: accepted.duplicate,
        stored: accepted.stored,
        undelivered: accepted.undelivered.into_iter().map(full).collect(),
    }
}

/// Returns the sequence numbers of the acked envelopes, sorted.
///
/// # Errors
/// `bad_request` if there are more than [`MAX_SEQS_PER_ACK`], or one is greater than [`MAX_INTEGER`].
pub fn acked_seqs(request: AckMessagesRequest) -> Result<Vec<i64>, EdgeError> {
    let List(seqs) = request.seqs;
    if seqs.len() > MAX_SEQS_PER_ACK {
        return Err(EdgeError::invalid("seqs", "at most 1000 numbers"));
    }
    let number = |(index, seq): (usize, u64)| {
        let number = i64::try_from(seq).ok().filter(|seq| *seq <= MAX_INTEGER);
        number.ok_or_else(|| EdgeError::invalid(format!("seqs[{index}]"), "at most 2^53 - 1"))
    };
    let mut numbers: Vec<i64> = seqs.into_iter().enumerate().map(number).collect::<Result<_, _>>()?;
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use sealwire_protocol::{
        ids::{DeviceId, MessageId, UserId},
        messages::MessageContent,
    };
    use uuid::Uuid;

    use super::*;

    fn request(contents: &[&[u8]], ttl_s: Option<u64>) -> SendMessageRequest<'static> {
        let device = |content: &&[u8]| {
            let content = MessageContent::Text(content.to_vec().into());
            Object(DeviceMessage { device_id: DeviceId(Uuid::nil()), kind: 255, content })
        };
        SendMessageRequest {
            message_id: MessageId(Uuid::nil()),
            to: UserId(Uuid::nil()),
            ephemeral: None,
            ttl_s,
            urgent: None,
            messages: List(contents.iter().map(device).collect()),
            skip: None,
            access: None,
        }
    }

    fn parsed(contents: &[&[u8]], ttl_s: Option<u64>) -> Result<usize, String> {
        let message = message(request(contents, ttl_s), Codec::Json, b"");
        message.map(|message| message.envelopes.len()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_size_and_ttl_of_a_message_are_bounded() {
        let too_many = "`messages`: expected at most 100 messages".to_owned();
        assert_eq!(parsed(&[&b"hi"[..]; 100], Some(60)), Ok(100));
        assert_eq!(parsed(&[&b"hi"[..]; 101], None), Err(too_many));
        assert_eq!(parsed(&[b""], None), Err("`messages[0].content`: expected at least one byte".to_owned()));
        assert_eq!(parsed(&[&vec![7; MAX_CONTENT]], None), Ok(1));
        assert_eq!(parsed(&[&vec![7; MAX_CONTENT + 1]], None), Err(EdgeError::PayloadTooLarge.to_string()));
        for ttl in [0, 59, 2_592_001] {
            assert_eq!(parsed(&[b"hi"], Some(ttl)), Err("`ttl_s`: expected 60 to 2592000 seconds".to_owned()));
        }
        let other_encoding = message(request(&[b"hi"], None), Codec::MsgPack, b"").map(|_| ());
        assert_eq!(other_encoding, Err(EdgeError::invalid("messages[0].content", CONTENT_FORM)));
    }

    #[test]
    fn acks_are_sorted_and_bounded() {
        let seqs = |seqs: Vec<u64>| acked_seqs(AckMessagesRequest { seqs: List(seqs) });
        assert_eq!(seqs(vec![3, 1, 2]), Ok(vec![1, 2, 3]));
        assert!(seqs(vec![1 << 53]).is_err() && seqs(vec![u64::MAX]).is_err());
        assert_eq!(seqs(vec![(1 << 53) - 1]), Ok(vec![MAX_INTEGER]));
        assert!(seqs(vec![1; 1000]).is_ok() && seqs(vec![1; 1001]).is_err());
    }
}
