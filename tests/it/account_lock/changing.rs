//! Who may lock and unlock an account, and what its status shows.

use std::time::Duration;

use serde_json::{Value, json};

use super::{EMAIL, RECOVERY_KEY, WEEK_S, ask, hash_of, locked_account, published_device, right_code};
use crate::support::{
    Codec, Server, Socket, TestApp, code, eventually,
    http::{mails, post, sign_in_again},
    keys::base64,
};

async fn lock_of(socket: &Socket) -> Value {
    let status = socket.request("account.status", json!({})).await;
    json!([status["locked"], status["wait_s"]])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_locked_and_unlocked_and_each_time_mailed_once() {
    let app = TestApp::start(&[]);
    let phone = published_device(&app, EMAIL).await;
    assert_eq!(
        phone.socket.request("account.status", json!({})).await,
        json!({ "locked": false, "wait_s": null, "pending": [] })
    );
    assert_eq!(phone.socket.request("account.unlock", json!({})).await, json!({}), "it is not locked");
    let lock = json!({ "recovery_key_hash": hash_of(&RECOVERY_KEY) });
    for _ in 0..2 {
        assert_eq!(phone.socket.request("account.lock", lock.clone()).await, json!({}), "a repeat changes nothing");
    }
    assert_eq!(lock_of(&phone.socket).await, json!([true, WEEK_S]));
    let unlock = json!({ "recovery_key": base64(&RECOVERY_KEY) });
    for _ in 0..2 {
        assert_eq!(phone.socket.request("account.unlock", unlock.clone()).await, json!({}));
    }
    assert_eq!(lock_of(&phone.socket).await, json!([false, null]));
    let mailed = |what: &str| mails(app.mail()).iter().filter(|mail| mail.contains(what)).count();
    eventually("the mails", || async {
        (mailed("Subject: Your account was locked") >= 1 && mailed("Subject: Your account was unlocked") >= 1)
            .then_some(())
    })
    .await;
    assert_eq!((mailed("Subject: Your account was locked"), mailed("Subject: Your account was unlocked")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_changes_the_lock_ten_times_an_hour_and_every_change_is_mailed() {
    let app = TestApp::with_clock(&[]);
    let [thief, owner] = [published_device(&app, EMAIL).await, published_device(&app, EMAIL).await];
    let lock = json!({ "recovery_key_hash": hash_of(&RECOVERY_KEY) });
    let unlock = json!({ "recovery_key": base64(&RECOVERY_KEY) });
    for _ in 0..5 {
        for (op, params) in [("account.lock", &lock), ("account.unlock", &unlock)] {
            // What changes nothing counts nothing.
            for _ in 0..3 {
                thief.socket.request(op, params.clone()).await;
            }
        }
    }
    let refused = thief.socket.refused("account.lock", lock.clone()).await;
    assert_eq!((code(&refused), &refused["retry_after_ms"]), ("rate_limited", &json!(3_600_000)));
    assert_eq!(lock_of(&owner.socket).await, json!([false, null]));
    owner.socket.request("account.lock", lock.clone()).await;
    let wrong = json!({ "recovery_key": base64(&[1; 32]) });
    for _ in 0..12 {
        assert_eq!(code(&owner.socket.refused("account.unlock", wrong.clone()).await), "invalid_code", "not counted");
    }
    app.advance(Duration::from_hours(1));
    thief.socket.request("account.unlock", unlock).await;
    let mailed = |what: &str| mails(app.mail()).iter().filter(|mail| mail.contains(what)).count();
    eventually("all twelve changes are mailed", || async {
        let counts = (mailed("Subject: Your account was locked"), mailed("Subject: Your account was unlocked"));
        (counts == (6, 6)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_lock_names_the_field() {
    let app = TestApp::start(&[]);
    let phone = published_device(&app, EMAIL).await;
    let hash = hash_of(&RECOVERY_KEY);
    for (params, path) in [
        (json!({}), "recovery_key_hash"),
        (json!({ "recovery_key_hash": "*" }), "recovery_key_hash"),
        (json!({ "recovery_key_hash": base64(&[1; 31]) }), "recovery_key_hash"),
        (json!({ "recovery_key_hash": hash, "wait_s": 86399 }), "wait_s"),
        (json!({ "recovery_key_hash": hash, "wait_s": 2_592_001 }), "wait_s"),
        (json!({ "recovery_key_hash": hash, "recovery_key": 5 }), "recovery_key"),
    ] {
        let error = phone.socket.refused("account.lock", params).await;
        assert_eq!((code(&error), &error["details"]["path"]), ("bad_request", &json!(path)));
    }
    assert_eq!(lock_of(&phone.socket).await, json!([false, null]));
    for wait_s in [86_400, 2_592_000] {
        phone
            .socket
            .request(
                "account.lock",
                json!({ "recovery_key_hash": hash, "wait_s": wait_s, "recovery_key": base64(&RECOVERY_KEY) }),
            )
            .await;
        assert_eq!(lock_of(&phone.socket).await, json!([true, wait_s]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_account_is_changed_by_a_device_older_than_its_wait_or_with_the_recovery_key() {
    let app = TestApp::with_clock(&[]);
    let phone = locked_account(&app, EMAIL).await;
    let other = [9; 32];
    let lock_anew =
        |key: Option<&[u8]>| json!({ "recovery_key_hash": hash_of(&other), "recovery_key": key.map(base64) });
    let too_new = phone.socket.refused("account.unlock", json!({})).await;
    assert_eq!(
        (code(&too_new), &too_new["details"]["allowed_at"]),
        ("device_too_new", &json!("2026-06-08T12:00:00.000000Z"))
    );
    assert_eq!((&too_new["retryable"], &too_new["retry_after_ms"]), (&json!(true), &json!(WEEK_S * 1000)));
    assert_eq!(code(&phone.socket.refused("account.lock", lock_anew(None)).await), "device_too_new");
    for wrong in [json!(base64(&other)), json!("*"), json!("")] {
        let error = phone.socket.refused("account.unlock", json!({ "recovery_key": wrong })).await;
        assert_eq!((code(&error), &error["retryable"]), ("invalid_code", &json!(false)));
    }
    assert_eq!(code(&phone.socket.refused("account.lock", lock_anew(Some(&other))).await), "invalid_code");
    phone.socket.request("account.lock", lock_anew(Some(&RECOVERY_KEY))).await;
    assert_eq!(
        code(&phone.socket.refused("account.unlock", json!({ "recovery_key": base64(&RECOVERY_KEY) })).await),
        "invalid_code"
    );

    app.advance(Duration::from_millis(WEEK_S * 1000 - 1));
    assert_eq!(code(&phone.socket.refused("account.unlock", json!({})).await), "device_too_new");
    app.advance(Duration::from_millis(1));
    phone.socket.request("account.unlock", json!({})).await;
    assert_eq!(lock_of(&phone.socket).await, json!([false, null]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_young_device_cannot_lock_an_unlocked_account_while_there_is_an_old_one() {
    let app = TestApp::with_clock(&[]);
    let old = published_device(&app, EMAIL).await;
    app.advance(Duration::from_hours(72));
    let young = published_device(&app, EMAIL).await;
    let lock = json!({ "recovery_key_hash": hash_of(&RECOVERY_KEY) });
    assert_eq!(code(&young.socket.refused("account.lock", lock.clone()).await), "device_too_new");
    assert_eq!(lock_of(&old.socket).await, json!([false, null]));
    old.socket.request("account.lock", lock).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_device_signs_in_again_under_a_lock_with_its_proof_alone() {
    let app = TestApp::start(&[]);
    let mut phone = locked_account(&app, EMAIL).await;
    let again = sign_in_again(&app, &phone.person, &mut phone.keys).await;
    assert_eq!(again.device, phone.person.device);
    let refused = post(
        &app,
        "/v1/auth/verify",
        right_code(&app, EMAIL, json!({ "device": { "id": phone.person.device } })).await,
    )
    .await;
    assert_eq!((refused.0.as_u16(), code(&refused.1["error"])), (403, "proof_required"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_made_before_an_unlock_stays_pending() {
    let app = TestApp::start(&[]);
    let phone = locked_account(&app, EMAIL).await;
    let body = right_code(&app, EMAIL, json!({})).await;
    let approval = super::expect_waiting(&post(&app, "/v1/auth/verify", body.clone()).await);
    phone.socket.request("account.unlock", json!({ "recovery_key": base64(&RECOVERY_KEY) })).await;
    super::assert_pending(&app, &approval).await;
    assert_eq!(super::expect_waiting(&post(&app, "/v1/auth/verify", body).await), approval, "a code signs in once");
    phone.socket.request("devices.decide", super::approving(&approval)).await;
    let tablet = super::collect(&app, EMAIL, &approval).await;
    Socket::connect(&app, &tablet.token, Codec::Json).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_device_of_an_address_needs_no_approval_and_other_accounts_are_not_affected() {
    let app = TestApp::start(&[]);
    locked_account(&app, EMAIL).await;
    let bob = published_device(&app, "bob@example.org").await;
    assert_eq!(lock_of(&bob.socket).await, json!([false, null]));
    let approval = ask(&app, EMAIL, json!({})).await;
    let foreign = bob.socket.refused("devices.decide", super::approving(&approval)).await;
    assert_eq!(code(&foreign), "not_found");
    assert!(super::pending(&bob.socket).await.is_empty());
}
