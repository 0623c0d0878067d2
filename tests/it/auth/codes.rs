//! Codes: their form, how long they are valid, and which error `verify` returns.

use std::{collections::BTreeSet, fs, time::Duration};

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Mailed, fields, refusal};
use crate::support::{
    Codec, Server, Socket, TestApp, eventually,
    http::{call, codes, mails, person, post},
    sign_in,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_mailed_code_opens_a_session() {
    let app = TestApp::start(&[]);
    let (status, asked) = post(&app, "/v1/auth/otp", json!({ "email": "bob@example.org", "new_field": [] })).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!(fields(&asked), ["challenge_id", "expires_in_s", "resend_in_s"]);
    assert_eq!((&asked["expires_in_s"], &asked["resend_in_s"]), (&json!(600), &json!(30)));

    let mailed = Mailed::to(&app, "alice@example.org").await;
    let (status, body) = mailed.redeem(&app, json!({})).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(fields(&body), ["device_id", "expires_at", "session_id", "token", "user_id"]);
    for id in ["device_id", "session_id", "user_id"] {
        let text = body[id].as_str().unwrap();
        assert_eq!(Uuid::parse_str(text).unwrap().to_string(), text);
    }
    assert!(body["expires_at"].as_str().unwrap().ends_with('Z'));
    let alice = person("alice@example.org", &body);
    assert!(alice.token.len() == 43 && alice.token.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)));

    let (status, mut session) = call(&app, Method::GET, "/v1/auth/session", Some(&alice.token), None).await;
    assert_eq!(status, StatusCode::OK);
    session["token"] = body["token"].clone();
    assert_eq!(session, body, "the session that was opened");
    let socket = Socket::connect(&app, &alice.token, Codec::Json).await;
    for key in ["user_id", "device_id", "session_id", "expires_at"] {
        assert_eq!(socket.welcome[key], body[key], "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_contains_exactly_one_group_of_eight_digits() {
    let app = TestApp::start(&[]);
    Mailed::to(&app, "alice@example.org").await;
    let mail = mails(app.mail()).pop().unwrap();
    let header = |name: &str| mail.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
    assert_eq!(header("To: "), "alice@example.org");
    let (_, text) = mail.split_once("\r\n\r\n").unwrap();
    let shown = format!("{} {text}", header("Subject: "));
    let groups: Vec<_> = shown.split(|c: char| !c.is_ascii_digit()).filter(|group| group.len() == 8).collect();
    assert_eq!(groups, codes(app.mail(), "alice@example.org"));
}

#[tokio::test(flavor = "multi_thread")]
async fn spaces_and_dashes_in_a_code_are_ignored() {
    let app = TestApp::start(&[]);
    let typings: [fn(&str) -> String; 4] = [
        |code| format!("  {code}\n"),
        |code| format!("{}-{}", &code[..4], &code[4..]),
        |code| format!("{} {} - {}", &code[..2], &code[2..5], &code[5..]),
        |code| code.chars().flat_map(|digit| [digit, ' ']).collect(),
    ];
    for typed in typings {
        let mailed = Mailed::to(&app, "alice@example.org").await;
        let (status, body) = mailed.enter(&app, &typed(&mailed.code)).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_verify_request_is_not_counted_as_a_guess() {
    let app = TestApp::start(&[]);
    let mailed = Mailed::to(&app, "alice@example.org").await;
    let code = mailed.code.clone();
    let spelled = |text: Value| json!({ "challenge_id": mailed.id, "email": mailed.email, "code": text });
    let with = |key: &str, value: Value| {
        let mut body = spelled(json!(code));
        body[key] = value;
        body
    };
    let device = Uuid::from_u128(7).to_string();
    let bad = [
        spelled(json!(code[1..])),
        spelled(json!(format!("{code}0"))),
        spelled(json!(format!("{}x", &code[1..]))),
        spelled(json!("")),
        spelled(json!(format!("{code}\0"))),
        spelled(json!(code.parse::<u32>().unwrap())),
        spelled(Value::Null),
        json!({ "challenge_id": mailed.id, "email": mailed.email }),
        json!({ "email": mailed.email, "code": code }),
        with("challenge_id", json!("one")),
        with("challenge_id", json!(mailed.id.replace('-', ""))),
        with("email", json!("nobody")),
        with("email", json!("alice@example.org\0")),
        with("device", json!("phone")),
        with("device", json!([null, "phone"])),
        with("device", json!({ "id": "phone" })),
        with("device", json!({ "name": "" })),
        with("device", json!({ "name": "x".repeat(65) })),
        with("device", json!({ "name": "a\0b" })),
        with("device", json!({ "name": 5 })),
        with("device", json!({ "registration_id": 0 })),
        with("device", json!({ "registration_id": 16381 })),
        with("device", json!({ "registration_id": -1 })),
        with("device", json!({ "registration_id": 1.5 })),
        with("replace_device_id", json!("phone")),
        {
            let mut body = with("device", json!({ "id": device }));
            body["replace_device_id"] = json!(device);
            body
        },
        json!([]),
        json!("x"),
    ];
    for body in bad {
        let answer = post(&app, "/v1/auth/verify", body.clone()).await;
        assert_eq!(refusal(&answer), (400, "bad_request"), "{body}");
        assert_eq!(answer.1["error"]["retryable"], false);
    }
    assert_eq!(mailed.attempts(&app).await, 0);
    for body in [json!({}), json!({ "email": 5 }), json!({ "email": "a b@c" }), json!({ "email": "x".repeat(300) })] {
        assert_eq!(refusal(&post(&app, "/v1/auth/otp", body).await), (400, "bad_request"));
    }
    let huge = json!({ "email": "x".repeat(70_000) });
    assert_eq!(refusal(&post(&app, "/v1/auth/otp", huge).await), (413, "payload_too_large"));
    assert_eq!(mailed.redeem(&app, json!({})).await.0, StatusCode::CREATED, "the code still works");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_spellings_of_an_address_belong_to_one_user() {
    let app = TestApp::start(&[]);
    for (asked, entered, stored) in [
        (" Alice@Example.ORG ", "alice@EXAMPLE.org", "alice@example.org"),
        ("bob@bücher.example", "Bob@xn--bcher-kva.example", "bob@xn--bcher-kva.example"),
    ] {
        let known = sign_in(&app, stored).await;
        let earlier = codes(app.mail(), stored);
        let (status, body) = post(&app, "/v1/auth/otp", json!({ "email": asked })).await;
        assert_eq!(status, StatusCode::ACCEPTED);
        let code = eventually("a mail to the stored form", || async {
            codes(app.mail(), stored).into_iter().find(|code| !earlier.contains(code))
        })
        .await;
        let id = body["challenge_id"].as_str().unwrap().to_owned();
        let mailed = Mailed { id, email: entered.to_owned(), code };
        let (status, body) = mailed.redeem(&app, json!({})).await;
        assert_eq!(status, StatusCode::CREATED);
        assert_eq!(body["user_id"], known.user);
    }
}

/// The server must be able to send mail to every address that it accepts.
#[tokio::test(flavor = "multi_thread")]
async fn unusual_addresses_get_mail() {
    let app = TestApp::start(&[]);
    let longest_local = "l".repeat(64);
    let label = "d".repeat(60);
    let addresses = [
        "root@localhost".to_owned(),
        "!#$%&'*+-/=?^_`{|}~@example.org".to_owned(),
        "a.b-c+d@sub.xn--bcher-kva.example".to_owned(),
        "12345678@example.org".to_owned(),
        "a@1.example".to_owned(),
        format!("{longest_local}@{label}.{label}.{label}.org"),
    ];
    for (sent, email) in addresses.iter().enumerate() {
        let (status, body) = post(&app, "/v1/auth/otp", json!({ "email": email })).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{email}");
        eventually(email, || async { (mails(app.mail()).len() == sent + 1).then_some(()) }).await;
        let mail = mails(app.mail()).into_iter().find(|mail| mail.contains(&format!("{email}\r\n"))).unwrap();
        let (_, code) = mail.split_once("Your code is ").unwrap();
        let id = body["challenge_id"].as_str().unwrap().to_owned();
        let mailed = Mailed { id, email: email.clone(), code: code[..8].to_owned() };
        assert_eq!(mailed.redeem(&app, json!({})).await.0, StatusCode::CREATED, "{email}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn used_and_expired_codes_get_invalid_code_even_after_too_many_attempts() {
    let app = TestApp::with_clock(&[]);
    let invalid = (401, "invalid_code");
    let mut mailed = Mailed::to(&app, "alice@example.org").await;
    let id = std::mem::replace(&mut mailed.id, Uuid::from_u128(7).to_string());
    assert_eq!(refusal(&mailed.redeem(&app, json!({})).await), invalid, "an unknown challenge");
    mailed.id = id;
    mailed.email = "bob@example.org".to_owned();
    assert_eq!(refusal(&mailed.redeem(&app, json!({})).await), invalid, "the right code under another address");
    mailed.email = "alice@example.org".to_owned();
    assert_eq!(mailed.attempts(&app).await, 0, "neither is a guess at this challenge");

    mailed.guess_wrong(&app, 4).await;
    assert_eq!(mailed.redeem(&app, json!({})).await.0, StatusCode::CREATED, "the fifth guess is right");
    assert_eq!(mailed.attempts(&app).await, 5);
    assert_eq!(
        refusal(&mailed.redeem(&app, json!({})).await),
        invalid,
        "a used code is invalid even after five attempts"
    );
    assert_eq!(refusal(&mailed.enter(&app, &mailed.wrong(0)).await), invalid);

    let mailed = Mailed::to(&app, "alice@example.org").await;
    mailed.guess_wrong(&app, 5).await;
    let exhausted = mailed.redeem(&app, json!({})).await;
    assert_eq!(refusal(&exhausted), (429, "too_many_attempts"), "after five attempts the right code is refused");
    assert_eq!(exhausted.1["error"]["retryable"], false);
    assert_eq!(refusal(&mailed.enter(&app, &mailed.wrong(0)).await), (429, "too_many_attempts"));
    assert_eq!(mailed.attempts(&app).await, 5);
    app.advance(Duration::from_mins(10));
    assert_eq!(
        refusal(&mailed.redeem(&app, json!({})).await),
        invalid,
        "an expired code is invalid even after five attempts"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_is_valid_for_ten_minutes() {
    let app = TestApp::with_clock(&[]);
    let first = Mailed::to(&app, "alice@example.org").await;
    let second = Mailed::to(&app, "alice@example.org").await;
    app.advance(Duration::from_micros(599_999_999));
    assert_eq!(first.redeem(&app, json!({})).await.0, StatusCode::CREATED);
    app.advance(Duration::from_micros(1));
    assert_eq!(refusal(&second.redeem(&app, json!({})).await), (401, "invalid_code"));
    assert_eq!(second.attempts(&app).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_challenge_leaves_earlier_ones_valid() {
    let app = TestApp::start(&[]);
    let mut challenges = Vec::new();
    for _ in 0..3 {
        challenges.push(Mailed::to(&app, "alice@example.org").await);
    }
    let [first, second, third] = challenges.try_into().ok().unwrap();
    third.guess_wrong(&app, 5).await;
    for mailed in [second, first] {
        assert_eq!(
            refusal(&mailed.enter(&app, &third.code).await),
            (401, "invalid_code"),
            "a code is valid only for its challenge"
        );
        assert_eq!(mailed.redeem(&app, json!({})).await.0, StatusCode::CREATED);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn known_and_unknown_addresses_get_the_same_answers() {
    let app = TestApp::start(&[]);
    sign_in(&app, "known@example.org").await;
    let mut answers = Vec::new();
    for email in ["known@example.org", "unknown@example.org"] {
        let before = mails(app.mail()).len();
        let (status, mut body) = post(&app, "/v1/auth/otp", json!({ "email": email })).await;
        let id = body["challenge_id"].take();
        assert_eq!(Uuid::parse_str(id.as_str().unwrap()).unwrap().get_version_num(), 4);
        let mail = eventually("one mail", || async {
            let mails = mails(app.mail());
            (mails.len() > before).then(|| mails.last().unwrap().clone())
        })
        .await;
        let subject = mail.lines().find(|line| line.starts_with("Subject: ")).unwrap().to_owned();
        let wrong = json!({ "challenge_id": id, "email": email, "code": "00000000" });
        answers.push((status, body, subject, post(&app, "/v1/auth/verify", wrong).await));
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_the_same_answer_if_the_mail_cannot_be_sent() {
    let app = TestApp::start(&[]);
    fs::remove_dir_all(app.mail()).unwrap();
    fs::write(app.mail(), "not a folder").unwrap();
    let (status, body) = post(&app, "/v1/auth/otp", json!({ "email": "alice@example.org" })).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!(fields(&body), ["challenge_id", "expires_in_s", "resend_in_s"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_first_sign_ins_create_one_user() {
    let app = TestApp::start(&[]);
    let mut challenges = Vec::new();
    for _ in 0..8 {
        challenges.push(Mailed::to(&app, "alice@example.org").await);
    }
    let answers = join_all(challenges.iter().map(|mailed| mailed.redeem(&app, json!({})))).await;
    let distinct = |key: &str| answers.iter().map(|(_, body)| body[key].as_str().unwrap()).collect::<BTreeSet<_>>();
    assert!(answers.iter().all(|(status, _)| *status == StatusCode::CREATED), "{answers:?}");
    assert_eq!(distinct("user_id").len(), 1);
    assert_eq!(distinct("device_id").len(), 8);
    assert_eq!(distinct("token").len(), 8);
}
