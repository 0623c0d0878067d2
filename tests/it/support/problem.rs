//! The protocol's table of error codes, and a check of an error's shape.

use serde_json::Value;

/// Code, HTTP status, retryable.
const TABLE: [(&str, u16, bool); 23] = [
    ("bad_request", 400, false),
    ("unauthorized", 401, false),
    ("invalid_code", 401, false),
    ("too_many_attempts", 429, false),
    ("rate_limited", 429, true),
    ("unknown_op", 400, false),
    ("too_many_in_flight", 429, true),
    ("payload_too_large", 413, false),
    ("unknown_device", 404, false),
    ("session_revoked", 401, false),
    ("forbidden_origin", 403, false),
    ("not_found", 404, false),
    ("device_limit", 409, false),
    ("identity_conflict", 409, false),
    ("id_conflict", 409, false),
    ("devices_mismatch", 409, false),
    ("no_devices", 409, false),
    ("invalid_key", 422, false),
    ("invalid_signature", 422, false),
    ("incomplete_keys", 422, false),
    ("mailbox_full", 429, true),
    ("unavailable", 503, true),
    ("internal", 500, true),
];

/// Asserts that an error has this code and the shape that the protocol specifies. Returns its HTTP status.
pub fn assert_problem(error: &Value, code: &str, what: &str) -> u16 {
    let (_, status, retryable) =
        TABLE.into_iter().find(|(name, ..)| *name == code).expect("the code must be in the table");
    assert_eq!(error["code"], code, "{what}: {error}");
    assert_eq!(error["retryable"], retryable, "{what}: {error}");
    assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{what}: {error}");
    for key in error.as_object().unwrap().keys() {
        let known = ["code", "message", "retryable", "retry_after_ms", "details"];
        assert!(known.contains(&key.as_str()), "{what}: {error}");
    }
    status
}
