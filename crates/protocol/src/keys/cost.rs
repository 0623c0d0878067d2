//! What requests cost that cause more work than an ordinary one.

use serde::{Deserialize, de::IgnoredAny};

use super::KeysStatusRequest;
use crate::{
    codec::Codec,
    frame::{Op, RequestOutline},
    limits::{BLOCKS_LIST_COST, DIGEST_COST},
};

/// The cost of an ordinary request.
const ORDINARY: u32 = 10;

/// The lists of devices of `keys.fetch` and `keys.claim`, counted without decoding them.
#[derive(Deserialize)]
struct NamedDevices {
    device_ids: Option<Vec<IgnoredAny>>,
}

/// The signed keys of `keys.publish`, counted without decoding them.
#[derive(Deserialize)]
struct Signatures {
    signed_prekey: Option<IgnoredAny>,
    pq_last_resort: Option<IgnoredAny>,
    pq_one_time: Option<Vec<IgnoredAny>>,
}

/// Returns the cost of a request in tenths of an ordinary one: `keys.fetch` and `keys.claim` cost one and a tenth for each
/// named device, `keys.publish` one and a tenth for each signature, a digest [`DIGEST_COST`], and `blocks.list`
/// [`BLOCKS_LIST_COST`]. Parameters that cannot be decoded cost nothing more.
#[must_use]
pub fn cost_in_tenths(codec: Codec, op: Op, request: &RequestOutline, frame: &[u8]) -> u32 {
    let tenths = match op {
        Op::KeysFetch | Op::KeysClaim => {
            let params = request.params::<NamedDevices>(codec, frame);
            params.ok().and_then(|named| named.device_ids).map_or(0, |devices| devices.len())
        }
        Op::KeysPublish => request.params::<Signatures>(codec, frame).map_or(0, |keys| {
            usize::from(keys.signed_prekey.is_some())
                + usize::from(keys.pq_last_resort.is_some())
                + keys.pq_one_time.map_or(0, |keys| keys.len())
        }),
        Op::KeysStatus => match request.params(codec, frame) {
            Ok(KeysStatusRequest { digest: Some(true) }) => return DIGEST_COST * ORDINARY,
            _ => 0,
        },
        Op::BlocksList => return BLOCKS_LIST_COST * ORDINARY,
        _ => 0,
    };
    ORDINARY.saturating_add(u32::try_from(tenths).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(request: &str) -> u32 {
        let outline = RequestOutline::decode(Codec::Json, request.as_bytes()).unwrap();
        cost_in_tenths(Codec::Json, outline.op.unwrap(), &outline, request.as_bytes())
    }

    #[test]
    fn requests_cost_what_they_cause() {
        for (op, params, tenths) in [
            ("keys.status", "{}", 10),
            ("keys.status", r#"{"digest":true}"#, 500),
            ("keys.fetch", r#"{"user_id":"x"}"#, 10),
            ("keys.fetch", r#"{"device_ids":["a","b","c"]}"#, 13),
            ("keys.claim", r#"{"device_ids":[1,2]}"#, 12),
            ("keys.claim", r#"{"device_ids":7}"#, 10),
            ("keys.publish", r#"{"signed_prekey":{},"pq_last_resort":null,"pq_one_time":[{},{}]}"#, 13),
            ("keys.publish", r#"{"one_time_prekeys":[{},{},{}]}"#, 10),
            ("blocks.list", "{}", 100),
            ("blocks.add", "{}", 10),
            ("messages.send", r#"{"device_ids":[1,2]}"#, 10),
        ] {
            assert_eq!(cost(&format!(r#"{{"id":1,"op":"{op}","params":{params}}}"#)), tenths, "{op} {params}");
        }
    }
}
