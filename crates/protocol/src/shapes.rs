//! Tests that every type encodes to fixed bytes and decodes from them, in both encodings. The texts are compact forms
//! of the examples in `docs/protocol.md`. The order of fields matters.

#[allow(dead_code, reason = "the test that writes the documents uses the rest")]
#[path = "../../../tests/it/api_documents/json.rs"]
mod json;

use std::{any::type_name, fs, path::Path};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Codec,
    access::{AddBlockRequest, ListBlocksReply, ListBlocksRequest, RemoveBlockRequest, SetAccessRequest},
    approvals::{AccountStatusReply, AccountStatusRequest, DecideRequest, LockAccountRequest, UnlockAccountRequest},
    auth::{
        CodePurpose, EndSessionRequest, ListSessionsReply, OtpReply, OtpRequest, RenewSessionReply, SessionReply,
        VerifyRequest,
    },
    codec::DecodeError,
    devices::{ListDevicesReply, RenameDeviceRequest, RevokeDeviceRequest},
    error::{ErrorBody, HttpErrorBody},
    events::Event,
    frame::{EmptyReply, Op, ReplyFrame, RequestFrame, RequestId, RequestOutline, ServerOutline, SocketRequest},
    health::HealthReply,
    keys::{
        BundlesReply, ClaimKeysRequest, FetchKeysRequest, KeysStatusReply, KeysStatusRequest, PublishKeysReply,
        PublishKeysRequest,
    },
    messages::{AckMessagesReply, AckMessagesRequest, SendMessageReply, SendMessageRequest},
    push::{
        ConfirmPushReply, ConfirmPushRequest, RegisterPushReply, RegisterPushRequest, RemovePushRequest,
        TestPushRequest,
    },
    users::{ChangeEmailReply, ChangeEmailRequest, FindUserReply, FindUserRequest},
    value::{Object, Text},
};
use json::Json;

/// Encodes the value of a JSON text.
fn bytes(codec: Codec, text: &str) -> Vec<u8> {
    codec.encode(&Json::parse(text)).unwrap()
}

/// Checks, in both encodings, that the value of the text decodes as `T` and encodes to the same bytes, and that it fits
/// the schema of `T`.
fn check<T: Serialize + DeserializeOwned>(text: &str) {
    let name = type_name::<T>().split('<').next().and_then(|path| path.rsplit("::").next()).unwrap();
    // The schemas of replies depend on the op; the result and the error are checked alone.
    if name != "ReplyFrame" {
        fits_schema(&format!("#/components/schemas/{name}"), text);
    }
    for codec in Codec::ALL {
        let expected = bytes(codec, text);
        let value: T = codec.decode(&expected).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(codec.encode(&value).unwrap(), expected, "{codec:?}: {text}");
    }
}

/// Checks a value against a schema in `docs/asyncapi.json`.
fn fits_schema(pointer: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/asyncapi.json");
    let document = Json::parse(&fs::read_to_string(path).unwrap());
    json::check(&document, document.follow(pointer), &Json::parse(text)).unwrap_or_else(|error| panic!("{error}"));
}

/// Checks the parameters of an op, alone and in a request frame.
fn check_request<T: Serialize + DeserializeOwned + SocketRequest>(op: Op, text: &str) {
    check::<T>(text);
    assert_eq!(T::OP, op);
    let id = RequestId::MAX;
    for codec in Codec::ALL {
        let params: T = codec.decode(&bytes(codec, text)).unwrap();
        let frame = codec.encode(&RequestFrame::new(id, &params)).unwrap();
        let expected = format!(r#"{{"id":{id},"op":"{}","params":{text}}}"#, op.name());
        assert_eq!(frame, bytes(codec, &expected));
        let outline = RequestOutline::decode(codec, &frame).unwrap();
        assert_eq!((outline.id, outline.op), (id, Ok(op)));
        let again: T = outline.params(codec, &frame).unwrap();
        assert_eq!(codec.encode(&again).unwrap(), bytes(codec, text));
    }
}

fn check_reply<T: Serialize + DeserializeOwned>(result: &str) {
    check::<T>(result);
    check::<ReplyFrame<T>>(&format!(r#"{{"id":7,"result":{result}}}"#));
}

const ID: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8";
const OTHER: &str = "9c1d7e52-7a0f-4b3e-8c61-2f4f5a6b7c8d";
const TIME: &str = "2026-06-01T12:00:00.000000Z";

#[test]
fn http_requests_encode_as_documented() {
    check::<OtpRequest>(r#"{"email":"alice@example.org"}"#);
    for purpose in CodePurpose::ALL {
        check::<OtpRequest>(&format!(r#"{{"email":"alice@example.org","purpose":"{}"}}"#, purpose.name()));
    }
    check::<OtpRequest>(r#"{"email":"alice@example.org","proof":{"salt":"AAAA","nonce":"AQ"}}"#);
    check::<VerifyRequest>(&format!(r#"{{"challenge_id":"{ID}","email":"a@b.example","code":"1234 5678"}}"#));
    check::<VerifyRequest>(&format!(
        r#"{{"challenge_id":"{ID}","email":"a@b.example","code":"1","proof":{{"salt":"AAAA","nonce":"AQ"}}}}"#
    ));
    check::<VerifyRequest>(&format!(
        r#"{{"challenge_id":"{ID}","email":"a@b.example","code":"1","device":{{"name":"Phone","registration_id":4242}},"replace_device_id":"{OTHER}"}}"#
    ));
    check::<VerifyRequest>(&format!(
        r#"{{"challenge_id":"{ID}","email":"a@b.example","code":"1","device":{{"id":"{OTHER}"}}}}"#
    ));
}

#[test]
fn http_responses_encode_as_documented() {
    check::<OtpReply>(&format!(r#"{{"challenge_id":"{ID}","expires_in_s":600,"resend_in_s":30}}"#));
    let session = format!(r#""user_id":"{ID}","device_id":"{ID}","session_id":"{OTHER}""#);
    check::<SessionReply>(&format!(r#"{{{session},"token":"t","expires_at":"{TIME}"}}"#));
    check::<SessionReply>(&format!(r#"{{{session},"expires_at":"{TIME}"}}"#));
    for status in ["ok", "ready", "degraded", "not_ready", "of a newer server"] {
        check::<HealthReply>(&format!(r#"{{"status":"{status}","reasons":["draining"]}}"#));
    }
    check::<HttpErrorBody>(r#"{"error":{"code":"not_found","message":"not found","retryable":false}}"#);
}

#[test]
fn errors_encode_as_documented() {
    let device = format!(r#"{{"device_id":"{ID}","name":"Phone","last_seen":"{TIME}"}}"#);
    let unnamed = format!(r#"{{"device_id":"{ID}","name":null,"last_seen":null}}"#);
    for rest in [
        String::new(),
        r#","retry_after_ms":1740250"#.to_owned(),
        r#","details":{"field":"signed_prekey","key_id":1}"#.to_owned(),
        r#","details":{"field":"identity_key","key_id":null}"#.to_owned(),
        r#","details":{"key_id":7}"#.to_owned(),
        format!(r#","details":{{"allowed_at":"{TIME}"}}"#),
        r#","details":{"reason":"device_revoked"}"#.to_owned(),
        r#","details":{"reason":"of a newer server"}"#.to_owned(),
        format!(r#","details":{{"devices":[{device},{unnamed}]}}"#),
        format!(r#","details":{{"missing":["{ID}"],"extra":["{OTHER}"]}}"#),
    ] {
        let error = format!(r#"{{"code":"rate_limited","message":"wait","retryable":true{rest}}}"#);
        check::<ErrorBody>(&error);
        check::<ReplyFrame<EmptyReply>>(&format!(r#"{{"id":1,"error":{error}}}"#));
    }
    check::<ErrorBody>(r#"{"code":"of a newer server","message":"","retryable":true}"#);
}

#[test]
fn a_reply_has_either_a_result_or_an_error() {
    let error = r#""error":{"code":"internal","message":"","retryable":true}"#;
    for wrong in [r#"{"id":1}"#, r#"{"id":0,"result":{}}"#, &format!(r#"{{"id":1,"result":{{}},{error}}}"#)] {
        assert!(Codec::Json.decode::<ReplyFrame<EmptyReply>>(wrong.as_bytes()).is_err(), "{wrong}");
    }
    let newer = format!(r#"{{"x":1,{error},"id":1}}"#);
    assert!(Codec::Json.decode::<ReplyFrame<EmptyReply>>(newer.as_bytes()).unwrap().result.is_err());
}

#[test]
fn ops_on_sessions_devices_and_users_encode_as_documented() {
    for (op, has_no_params) in [
        (Op::SessionRenew, check_request::<crate::auth::RenewSessionRequest> as fn(Op, &str)),
        (Op::SessionLogout, check_request::<crate::auth::LogoutRequest>),
        (Op::DevicesList, check_request::<crate::devices::ListDevicesRequest>),
        (Op::SessionsList, check_request::<crate::auth::ListSessionsRequest>),
        (Op::AccountDelete, check_request::<crate::users::DeleteAccountRequest>),
        (Op::KeysStatus, check_request::<KeysStatusRequest>),
    ] {
        has_no_params(op, "{}");
    }
    check_reply::<EmptyReply>("{}");
    check_reply::<RenewSessionReply>(&format!(r#"{{"token":"t","expires_at":"{TIME}","session_id":"{ID}"}}"#));
    check_reply::<ListDevicesReply>(&format!(
        r#"{{"devices":[{{"device_id":"{ID}","name":null,"registration_id":4242,"created_at":"{TIME}","last_seen":null,"current":true}},{{"device_id":"{OTHER}","name":"Laptop","registration_id":1,"created_at":"{TIME}","last_seen":"{TIME}","current":false}}]}}"#
    ));
    check_reply::<ListSessionsReply>(&format!(
        r#"{{"sessions":[{{"session_id":"{ID}","device_id":"{OTHER}","created_at":"{TIME}","expires_at":"{TIME}","last_seen":null,"current":true}},{{"session_id":"{ID}","device_id":"{OTHER}","created_at":"{TIME}","expires_at":"{TIME}","last_seen":"{TIME}","current":false}}]}}"#
    ));
    check_request::<EndSessionRequest>(Op::SessionsEnd, &format!(r#"{{"session_id":"{ID}"}}"#));
    let code = format!(r#""challenge_id":"{ID}","code":"1234 5678""#);
    check_request::<crate::users::DeleteAccountRequest>(Op::AccountDelete, &format!("{{{code}}}"));
    let email = r#""email":"bob@example.org""#;
    check_request::<ChangeEmailRequest>(Op::AccountChangeEmail, &format!("{{{email}}}"));
    check_request::<ChangeEmailRequest>(Op::AccountChangeEmail, &format!("{{{email},{code}}}"));
    check_reply::<ChangeEmailReply>("{}");
    check_reply::<ChangeEmailReply>(&format!(
        r#"{{"approval":{{"request_id":"{ID}","number":"07","decides_at":"{TIME}"}}}}"#
    ));
    check_request::<RenameDeviceRequest>(Op::DevicesRename, r#"{"name":"Laptop"}"#);
    check_request::<RenameDeviceRequest>(Op::DevicesRename, &format!(r#"{{"device_id":"{ID}","name":"Laptop"}}"#));
    check_request::<RevokeDeviceRequest>(Op::DevicesRevoke, &format!(r#"{{"device_id":"{ID}"}}"#));
    check_request::<FindUserRequest>(Op::UsersFind, r#"{"email":"bob@example.org"}"#);
    check_reply::<FindUserReply>(&format!(r#"{{"user_id":"{ID}"}}"#));
}

#[test]
fn ops_on_access_and_blocks_encode_as_documented() {
    check_request::<SetAccessRequest>(Op::AccessSet, r#"{"strangers":"allow"}"#);
    check_request::<SetAccessRequest>(
        Op::AccessSet,
        r#"{"key":"8PHy8/T19vf4+fr7/P3+/w==","strangers":"refuse","sealed":true}"#,
    );
    check_request::<AddBlockRequest>(Op::BlocksAdd, &format!(r#"{{"user_id":"{ID}"}}"#));
    check_request::<RemoveBlockRequest>(Op::BlocksRemove, &format!(r#"{{"user_id":"{ID}"}}"#));
    check_request::<ListBlocksRequest>(Op::BlocksList, "{}");
    check_reply::<ListBlocksReply>(r#"{"user_ids":[]}"#);
    check_reply::<ListBlocksReply>(&format!(r#"{{"user_ids":["{ID}","{OTHER}"]}}"#));
}

const STATUS: &str = r#"{"suite":"signal-x3dh","identity_key":"BQ==","signed_prekey":{"key_id":1,"expires_at":"2026-06-15T12:00:00.000000Z"},"pq_last_resort":{"key_id":2},"one_time":1,"pq_one_time":0,"threshold":20,"pool_version":1}"#;
const NO_KEYS: &str = r#"{"suite":null,"identity_key":null,"signed_prekey":null,"pq_last_resort":null,"one_time":0,"pq_one_time":0,"threshold":20,"pool_version":0}"#;

#[test]
fn locks_and_approvals_encode_as_documented() {
    check_request::<AccountStatusRequest>(Op::AccountStatus, "{}");
    check_request::<UnlockAccountRequest>(Op::AccountUnlock, "{}");
    check_request::<UnlockAccountRequest>(Op::AccountUnlock, r#"{"recovery_key":"AA=="}"#);
    check_request::<LockAccountRequest>(Op::AccountLock, r#"{"recovery_key_hash":"AA==","wait_s":86400}"#);
    check_request::<DecideRequest>(Op::DevicesDecide, &format!(r#"{{"request_id":"{ID}","approve":false}}"#));
    check_request::<DecideRequest>(
        Op::DevicesDecide,
        &format!(r#"{{"request_id":"{ID}","approve":true,"number":"07","replace_device_id":"{OTHER}"}}"#),
    );
    let pending = format!(
        r#"{{"request_id":"{ID}","kind":"device","device_name":null,"client_network":"203.0.113.0/24","created_at":"{TIME}","decides_at":"{TIME}"}}"#
    );
    check_reply::<AccountStatusReply>(r#"{"locked":false,"wait_s":null,"pending":[]}"#);
    check_reply::<AccountStatusReply>(&format!(r#"{{"locked":true,"wait_s":86400,"pending":[{pending}]}}"#));
}

#[test]
fn ops_on_keys_encode_as_documented() {
    check_request::<PublishKeysRequest>(Op::KeysPublish, "{}");
    check_request::<PublishKeysRequest>(
        Op::KeysPublish,
        r#"{"suite":"signal-pqxdh","identity_key":"BTI=","signed_prekey":{"key_id":1,"public_key":"BYM=","signature":"4NeQ","expires_at":"2026-06-15T12:00:00.000000Z"},"one_time_prekeys":[{"key_id":2147483647,"public_key":"BRA="}],"pq_last_resort":{"key_id":1,"public_key":"CA==","signature":"AA=="},"pq_one_time":[{"key_id":0,"public_key":"Cg==","signature":"/+8="}]}"#,
    );
    let report =
        r#"{"accepted":[1],"duplicate":[2],"conflict":[3],"already_issued":[4],"over_cap":[5],"withdrawn":[6]}"#;
    let nothing = r#"{"accepted":[],"duplicate":[],"conflict":[],"already_issued":[],"over_cap":[],"withdrawn":[]}"#;
    check_reply::<PublishKeysReply>(&format!(r#"{{"one_time":{report},"pq_one_time":{nothing},"status":{STATUS}}}"#));
    check_request::<PublishKeysRequest>(Op::KeysPublish, r#"{"replace":true,"expect_pool_version":7}"#);
    check_request::<KeysStatusRequest>(Op::KeysStatus, r#"{"digest":true}"#);
    check_reply::<KeysStatusReply>(&format!(r#"{},"digest":"47DE"}}"#, &STATUS[..STATUS.len() - 1]));
    check_reply::<KeysStatusReply>(STATUS);
    check_reply::<KeysStatusReply>(NO_KEYS);
    check_request::<FetchKeysRequest>(Op::KeysFetch, &format!(r#"{{"user_id":"{ID}"}}"#));
    check_request::<FetchKeysRequest>(Op::KeysFetch, &format!(r#"{{"user_id":"{ID}","device_ids":["{OTHER}"]}}"#));
    check_request::<ClaimKeysRequest>(
        Op::KeysClaim,
        &format!(r#"{{"user_id":"{ID}","device_ids":[],"access":"8PHy8/T19vf4+fr7/P3+/w==","claim_id":"{OTHER}"}}"#),
    );
    let bundle = |suite: &str, rest: &str| {
        format!(
            r#"{{"device_id":"{ID}","registration_id":4242,"suite":"{suite}","identity_key":"BTI=","signed_prekey":{{"key_id":1,"public_key":"BYM=","signature":"4NeQ","expires_at":"{TIME}"}},{rest}}}"#
        )
    };
    let claimed = r#""one_time_prekey":{"key_id":1,"public_key":"BRA="},"one_time":"claimed","pq_prekey":null"#;
    let pq = r#""pq_prekey":{"key_id":3,"public_key":"CA==","signature":"AA==","last_resort":true}"#;
    let mut bundles = vec![bundle("signal-x3dh", claimed), bundle("of a newer server", claimed)];
    for outcome in ["exhausted", "limited", "not_requested", "of a newer server"] {
        bundles.push(bundle("signal-pqxdh", &format!(r#""one_time_prekey":null,"one_time":"{outcome}",{pq}"#)));
    }
    let reasons = ["no_keys", "signed_prekey_expired", "revoked", "unknown_device", "of a newer server"];
    let unavailable = reasons.map(|reason| format!(r#"{{"device_id":"{OTHER}","reason":"{reason}"}}"#)).join(",");
    check_reply::<BundlesReply>(&format!(r#"{{"bundles":[{}],"unavailable":[{unavailable}]}}"#, bundles.join(",")));
}

#[test]
fn ops_on_messages_encode_as_documented() {
    check_request::<AckMessagesRequest>(Op::MessagesAck, r#"{"seqs":[12,9007199254740991]}"#);
    check_reply::<AckMessagesReply>(r#"{"acked":2}"#);
    check_reply::<SendMessageReply>(&format!(
        r#"{{"accepted_at":"{TIME}","duplicate":false,"stored":0,"undelivered":[]}}"#
    ));
    check_reply::<SendMessageReply>(&format!(
        r#"{{"accepted_at":"{TIME}","duplicate":true,"stored":1,"undelivered":[{{"device_id":"{ID}","reason":"mailbox_full"}}]}}"#
    ));
}

#[test]
fn ops_on_push_targets_encode_as_documented() {
    check_request::<RegisterPushRequest>(
        Op::PushRegister,
        r#"{"kind":"webpush","endpoint":"https://push.example/x","p256dh":"BA1H","auth":"BTBZ"}"#,
    );
    check_request::<RegisterPushRequest>(
        Op::PushRegister,
        r#"{"kind":"apns","token":"00ff","topic":"org.example.app","sandbox":true}"#,
    );
    check_request::<RegisterPushRequest>(Op::PushRegister, r#"{"kind":"fcm","token":"a:b"}"#);
    check_reply::<RegisterPushReply>(r#"{"state":"unconfirmed"}"#);
    check_request::<ConfirmPushRequest>(Op::PushConfirm, r#"{"nonce":"3q2-7wAAAAAAAAAAAAAAAA"}"#);
    check_reply::<ConfirmPushReply>(r#"{"state":"active"}"#);
    check_request::<TestPushRequest>(Op::PushTest, "{}");
    check_request::<RemovePushRequest>(Op::PushRemove, "{}");
}

/// Replaces the text `"aGk="` in a MessagePack frame by a `bin` with the decoded bytes.
fn with_bin(pack: &[u8]) -> Vec<u8> {
    let at = pack.windows(5).position(|window| window == b"\xa4aGk=").unwrap();
    [&pack[..at], b"\xc4\x02hi", &pack[at + 5..]].concat()
}

#[test]
fn content_is_text_in_json_and_bytes_in_messagepack() {
    let from = format!(r#"{{"user_id":"{ID}","device_id":"{OTHER}"}}"#);
    for text in [
        format!(r#"{{"message_id":"{ID}","to":"{ID}","messages":[{{"device_id":"{ID}","type":3,"content":"aGk="}}]}}"#),
        format!(
            r#"{{"message_id":"{ID}","to":"{ID}","ephemeral":true,"ttl_s":60,"urgent":false,"messages":[{{"device_id":"{ID}","type":255,"content":"aGk="}}]}}"#
        ),
    ] {
        for (codec, bytes) in
            [(Codec::Json, text.clone().into_bytes()), (Codec::MsgPack, with_bin(&bytes(Codec::MsgPack, &text)))]
        {
            let request: SendMessageRequest<'_> = codec.decode(&bytes).unwrap();
            assert_eq!(codec.encode(&request).unwrap(), bytes, "{codec:?}: {text}");
            assert_eq!(request.messages.0[0].0.content.as_bytes(), b"hi");
        }
    }
    for (seq, ephemeral) in [("12", "false"), ("null", "true")] {
        let text = format!(
            r#"{{"event":"message","data":{{"seq":{seq},"message_id":"{ID}","from":{from},"type":3,"content":"aGk=","accepted_at":"{TIME}","ephemeral":{ephemeral}}}}}"#
        );
        for (codec, bytes) in
            [(Codec::Json, text.clone().into_bytes()), (Codec::MsgPack, with_bin(&bytes(Codec::MsgPack, &text)))]
        {
            let event: Event<'_> = codec.decode(&bytes).unwrap();
            assert_eq!(codec.encode(&event).unwrap(), bytes, "{codec:?}: {text}");
            let Event::Message(message) = event else { panic!("{event:?}") };
            assert_eq!(message.content.read(codec, &bytes).unwrap(), &b"hi"[..]);
        }
    }
}

#[test]
fn events_encode_as_documented() {
    let welcome = |keys: &str| {
        format!(
            r#"{{"event":"welcome","data":{{"session_id":"{ID}","user_id":"{ID}","device_id":"{OTHER}","expires_at":"{TIME}","server_time":"{TIME}","heartbeat_s":25,"limits":{{"frame_bytes":524288,"content_bytes":32768,"in_flight":64}},"keys":{keys},"mailbox":{{"waiting":0,"expired_total":0}},"features":["replace","of a newer server"],"push":{{"state":"active","vapid_public_key":"BA1H","kinds":["webpush","of a newer server"]}}}}}}"#
        )
    };
    let low = |kind: &str| {
        format!(r#"{{"event":"prekeys.low","data":{{"kind":"{kind}","remaining":5,"threshold":20,"pool_version":1}}}}"#)
    };
    let revoked = |reason: &str| format!(r#"{{"event":"session.revoked","data":{{"reason":"{reason}"}}}}"#);
    let expiring = format!(r#"{{"event":"signed_prekey.expiring","data":{{"key_id":1,"expires_at":"{TIME}"}}}}"#);
    let changed = format!(r#"{{"event":"devices.changed","data":{{"added":["{ID}"],"removed":[]}}}}"#);
    let sessions =
        format!(r#"{{"event":"sessions.changed","data":{{"device_id":"{OTHER}","opened":["{ID}"],"ended":[]}}}}"#);
    let requested = format!(
        r#"{{"event":"devices.requested","data":{{"request_id":"{ID}","kind":"change_email","device_name":"a","client_network":null,"created_at":"{TIME}","decides_at":"{TIME}"}}}}"#
    );
    let mut all = vec![welcome(STATUS), welcome(NO_KEYS), expiring, changed, sessions, requested];
    all.extend(["one_time", "pq_one_time", "of a newer server"].map(low));
    all.extend(["logout", "expired", "device_revoked", "account_deleted", "of a newer server"].map(revoked));
    all.push(r#"{"event":"mailbox.drained","data":{}}"#.to_owned());
    all.push(
        r#"{"event":"refused","data":{"code":"unauthorized","message":"m","retryable":false,"details":{"reason":"expired"}}}"#
            .to_owned(),
    );
    all.push(r#"{"event":"server.draining","data":{"reconnect_in_ms":3120}}"#.to_owned());
    let mut names = std::collections::BTreeSet::from(["message".to_owned()]);
    for text in all {
        for codec in Codec::ALL {
            let expected = bytes(codec, &text);
            let Ok(ServerOutline::Event(name)) = ServerOutline::decode(codec, &expected) else { panic!("{text}") };
            fits_schema(&format!("#/components/messages/{name}/payload"), &text);
            names.insert(name);
            let event: Event<'_> = codec.decode(&expected).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert_eq!(codec.encode(&event).unwrap(), expected, "{codec:?}: {text}");
        }
    }
    assert_eq!(names, Event::NAMES.map(str::to_owned).into());
}

#[test]
fn a_client_distinguishes_replies_from_events() {
    for (text, outline) in [
        (r#"{"id":7,"result":{}}"#, Ok(ServerOutline::Reply(RequestId::new(7).unwrap()))),
        (r#"{"data":[],"event":"of a newer server"}"#, Ok(ServerOutline::Event("of a newer server".to_owned()))),
        (r#"{"id":7,"event":"welcome"}"#, Err(DecodeError::Malformed)),
        ("{}", Err(DecodeError::Malformed)),
    ] {
        for codec in Codec::ALL {
            assert_eq!(ServerOutline::decode(codec, &bytes(codec, text)), outline, "{text}");
        }
    }
}

#[test]
fn requests_are_read_strictly() {
    let refused = |text: &str| Codec::Json.decode::<Object<VerifyRequest>>(text.as_bytes()).map(|_| ()).unwrap_err();
    let missing = DecodeError::MissingField { path: "challenge_id".to_owned() };
    assert_eq!(refused(r#"{"email":"a@b.example","code":"1"}"#), missing);
    assert_eq!(refused("[]"), DecodeError::Malformed);
    let table = [
        (format!(r#"{{"challenge_id":"{}","email":"a","code":"1"}}"#, ID.replace('-', "")), "challenge_id"),
        (format!(r#"{{"challenge_id":"{ID}","email":"a\u0000","code":"1"}}"#), "email"),
        (format!(r#"{{"challenge_id":"{ID}","email":"a","code":1}}"#), "code"),
        (format!(r#"{{"challenge_id":"{ID}","email":"a","code":"1","device":[]}}"#), "device"),
    ];
    for (wrong, field) in table {
        let DecodeError::InvalidField { path, .. } = refused(&wrong) else { panic!("{wrong}") };
        assert_eq!(path, field, "{wrong}");
    }
    let twice = format!(r#"{{"challenge_id":"{ID}","email":"a","email":"a","code":"1"}}"#);
    assert_eq!(refused(&twice), DecodeError::Malformed);
    assert!(Text::parse("a\0").is_none());
    // A bin for a list, and a number as the name of a field.
    for wrong in [&b"\x81\xa4seqs\xc4\x01\x01"[..], b"\x81\x00\x91\x01"] {
        assert!(Codec::MsgPack.decode::<Object<AckMessagesRequest>>(wrong).is_err(), "{wrong:x?}");
    }
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::arbitrary::any::<u8>(), 0..300)) {
        for codec in Codec::ALL {
            let _ = codec.decode::<PublishKeysRequest>(&bytes);
            let _ = codec.decode::<ClaimKeysRequest>(&bytes);
            let _ = codec.decode::<SendMessageRequest<'_>>(&bytes);
            let _ = codec.decode::<AckMessagesRequest>(&bytes);
            let _ = codec.decode::<VerifyRequest>(&bytes);
            let _ = codec.decode::<Event<'_>>(&bytes);
            let _ = codec.decode::<ReplyFrame<BundlesReply>>(&bytes);
        }
    }
}
