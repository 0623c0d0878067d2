//! While a user has a published device of 72 hours, younger devices may not disturb the others.

use std::time::Duration;

use sealwire::domain::{Suite, Timestamp};
use serde_json::{Value, json};
use sqlx::{Connection, Executor};
use uuid::Uuid;

use super::{EMAIL, connect};
use crate::support::{
    Cluster, Codec, KeySet, Person, Server, Services, Socket, TestApp, code, eventually,
    http::{confirmation, mails},
    keys::base64,
    sign_in, sign_in_as,
};

const AGE: Duration = Duration::from_hours(72);

/// Signs in on a new device, and connects it.
async fn add_device(app: &TestApp) -> (Person, Socket) {
    let person = sign_in(app, EMAIL).await;
    let socket = connect(app, &person.token).await;
    (person, socket)
}

async fn publish(socket: &Socket) {
    socket.request("keys.publish", KeySet::new(Suite::SignalX3dh, 1).complete(1..=2)).await;
}

/// When the device was created, as `devices.list` has it.
async fn created_at(socket: &Socket, device: &str) -> Timestamp {
    let list = socket.request("devices.list", json!({})).await;
    let listed = list["devices"].as_array().unwrap().iter().find(|listed| listed["device_id"] == device).unwrap();
    Timestamp::parse(listed["created_at"].as_str().unwrap()).unwrap()
}

/// What a young device may not do, with `old` as another device of its user.
fn forbidden(old: &Person) -> Vec<(&'static str, Value)> {
    vec![
        ("devices.rename", json!({ "device_id": old.device, "name": "mine" })),
        ("devices.revoke", json!({ "device_id": old.device })),
        ("sessions.end", json!({ "session_id": old.session })),
        ("account.delete", json!({})),
        ("account.delete", json!({ "challenge_id": Uuid::nil(), "code": "12345678" })),
        ("account.change_email", json!({ "email": "new@example.org" })),
        (
            "account.change_email",
            json!({ "email": "new@example.org", "challenge_id": Uuid::nil(), "code": "12345678" }),
        ),
        ("account.lock", json!({ "recovery_key_hash": base64(&[1; 32]) })),
        ("access.set", json!({ "strangers": "allow" })),
    ]
}

/// Checks that the op is refused until this time. Returns the error.
async fn refused_until(socket: &Socket, op: &str, params: Value, allowed_at: Timestamp) -> Value {
    let error = socket.refused(op, params).await;
    assert_eq!(code(&error), "device_too_new", "{op}");
    assert_eq!(error["details"], json!({ "allowed_at": allowed_at }), "{op}");
    error
}

async fn assert_too_new(socket: &Socket, op: &str, params: Value, allowed_at: Timestamp, wait: Duration) {
    let error = refused_until(socket, op, params, allowed_at).await;
    assert_eq!((&error["retryable"], &error["retry_after_ms"]), (&json!(true), &json!(wait.as_millis())), "{op}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_young_device_may_not_disturb_others_until_it_is_old_enough() {
    let app = TestApp::with_clock(&[]);
    let (old, phone) = add_device(&app).await;
    publish(&phone).await;
    app.advance(AGE);
    let (young, laptop) = add_device(&app).await;
    let allowed_at = created_at(&laptop, &young.device).await + AGE;
    for (op, params) in forbidden(&old) {
        assert_too_new(&laptop, op, params, allowed_at, AGE).await;
    }
    laptop.request("devices.rename", json!({ "name": "laptop" })).await;
    phone.request("devices.rename", json!({ "device_id": young.device, "name": "another" })).await;

    app.advance(AGE.saturating_sub(Duration::from_millis(1)));
    for (op, params) in forbidden(&old) {
        assert_too_new(&laptop, op, params, allowed_at, Duration::from_millis(1)).await;
    }
    phone.barrier().await;
    app.advance(Duration::from_millis(1));
    laptop.request("devices.rename", json!({ "device_id": old.device, "name": "old" })).await;
    laptop.request("sessions.end", json!({ "session_id": old.session })).await;
    assert_eq!(phone.close_code().await, 4500);
    laptop.request("devices.revoke", json!({ "device_id": old.device })).await;
    let mut change = confirmation(&app, "new@example.org", "change_email").await;
    change["email"] = json!("new@example.org");
    laptop.request("account.change_email", change).await;
    laptop.request("account.delete", confirmation(&app, "new@example.org", "delete").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_young_device_may_revoke_itself_and_be_revoked() {
    let app = TestApp::with_clock(&[]);
    let (_, phone) = add_device(&app).await;
    publish(&phone).await;
    app.advance(AGE);
    let (young, laptop) = add_device(&app).await;
    let (other, _) = add_device(&app).await;
    let again = sign_in_as(&app, EMAIL, json!({ "device": { "id": young.device } })).await;
    laptop.request("sessions.end", json!({ "session_id": again.session })).await;
    laptop.request("devices.revoke", json!({ "device_id": young.device })).await;
    phone.request("devices.revoke", json!({ "device_id": other.device })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_old_published_device_nothing_is_blocked() {
    let app = TestApp::with_clock(&[]);
    let (unpublished, _) = add_device(&app).await;
    let (revoked, tablet) = add_device(&app).await;
    publish(&tablet).await;
    app.advance(Duration::from_hours(1));
    let (recent, phone) = add_device(&app).await;
    publish(&phone).await;
    app.advance(AGE.saturating_sub(Duration::from_secs(1)));
    let (_, laptop) = add_device(&app).await;
    tablet.request("devices.revoke", json!({ "device_id": revoked.device })).await;
    let name = |device: &Person| json!({ "device_id": device.device, "name": "named" });
    laptop.request("devices.rename", name(&unpublished)).await;
    laptop.request("devices.rename", name(&recent)).await;
    laptop.request("sessions.end", json!({ "session_id": recent.session })).await;
    laptop.request("devices.revoke", json!({ "device_id": unpublished.device })).await;
    laptop.request("devices.revoke", json!({ "device_id": recent.device })).await;
    laptop.request("account.delete", confirmation(&app, EMAIL, "delete").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_age_can_be_set_and_turned_off() {
    for (setting, wait) in [("0", None), ("1", Some(Duration::from_hours(1)))] {
        let app = TestApp::with_clock(&[("AUTH__DEVICE_AGE_HOURS", setting)]);
        let (old, phone) = add_device(&app).await;
        publish(&phone).await;
        app.advance(AGE);
        let (young, laptop) = add_device(&app).await;
        let params = json!({ "device_id": old.device, "name": "named" });
        match wait {
            None => _ = laptop.request("devices.rename", params).await,
            Some(wait) => {
                let allowed_at = created_at(&laptop, &young.device).await + wait;
                assert_too_new(&laptop, "devices.rename", params, allowed_at, wait).await;
            }
        }
    }
}

/// Each node has its own folder of mails.
fn mails_about_a_new_device(cluster: &Cluster) -> usize {
    let all = cluster.nodes.iter().flat_map(|node| mails(node.mail()));
    all.filter(|mail| mail.contains(&format!("To: {EMAIL}\r\n")) && mail.contains("Subject: A device was added"))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thief_on_another_node_disturbs_nothing_for_72_hours_and_everybody_is_notified() {
    let cluster = Cluster::start(&Services::shared(), 2, &[]).await;
    let [first, second] = &cluster.nodes[..] else { panic!() };
    let (old, tablet) = (sign_in(first, EMAIL).await, sign_in(first, EMAIL).await);
    let phone = Socket::connect(first, &old.token, Codec::Json).await;
    let tablet = Socket::connect(second, &tablet.token, Codec::MsgPack).await;
    publish(&phone).await;
    let mut sql = cluster.sql().await;
    sql.execute("UPDATE devices SET created_at = created_at - INTERVAL '72 hours'").await.unwrap();
    let before = mails_about_a_new_device(&cluster);

    let thief = sign_in(second, EMAIL).await;
    for socket in [&phone, &tablet] {
        assert_eq!(socket.event("devices.changed").await["added"], json!([thief.device]));
        let changed = socket.event("sessions.changed").await;
        assert_eq!((&changed["device_id"], &changed["opened"]), (&json!(thief.device), &json!([thief.session])));
    }
    eventually("the sign-in is mailed", || async { (mails_about_a_new_device(&cluster) == before + 1).then_some(()) })
        .await;
    let socket = Socket::connect(second, &thief.token, Codec::Json).await;
    for almost in ["0 seconds", "71 hours 59 minutes"] {
        let query = "UPDATE devices SET created_at = created_at - $2::interval WHERE id = $1::uuid";
        sqlx::query(query).bind(&thief.device).bind(almost).execute(&mut sql).await.unwrap();
        let allowed_at = created_at(&phone, &thief.device).await + AGE;
        for (op, params) in forbidden(&old) {
            refused_until(&socket, op, params, allowed_at).await;
        }
    }
    sql.close().await.unwrap();
    phone.request("devices.revoke", json!({ "device_id": thief.device })).await;
    assert_eq!(socket.close_code().await, 4502);
    for socket in [&phone, &tablet] {
        assert_eq!(socket.event("devices.changed").await["removed"], json!([thief.device]));
    }
}
