//! Codes for other purposes than signing in: deleting an account, and changing its address.

use reqwest::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Mailed, refusal};
use crate::support::{
    Codec, Server, Socket, TestApp, code, eventually,
    http::{call, challenge_for, codes, confirmation, mails, post},
    sign_in,
};

const EMAIL: &str = "alice@example.org";
const NEW: &str = "alice@new.example";

/// A user with one connected device.
async fn join(app: &TestApp, email: &str) -> Socket {
    let person = sign_in(app, email).await;
    Socket::connect(app, &person.token, Codec::Json).await
}

/// Requests a code for a purpose.
async fn mailed(app: &TestApp, email: &str, purpose: &str) -> Mailed {
    let (id, code) = challenge_for(app, email, purpose).await;
    Mailed { id, email: email.to_owned(), code }
}

impl Mailed {
    /// The parameters of `account.change_email` with this code.
    fn change(&self, to: &str, code: &str) -> Value {
        json!({ "email": to, "challenge_id": self.id, "code": code })
    }

    fn delete(&self, code: &str) -> Value {
        json!({ "challenge_id": self.id, "code": code })
    }
}

/// The subjects of the mails to an address, in alphabetical order.
fn subjects(app: &TestApp, email: &str) -> Vec<String> {
    let to = format!("To: {email}\r\n");
    let mails = mails(app.mail());
    let subject = |mail: &String| mail.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap().to_owned();
    let mut subjects: Vec<_> = mails.iter().filter(|mail| mail.contains(&to)).map(subject).collect();
    subjects.sort_unstable();
    subjects
}

async fn wait_for_subject(app: &TestApp, email: &str, subject: &str) {
    eventually(subject, || async { subjects(app, email).iter().any(|one| one == subject).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_says_what_its_code_does() {
    let app = TestApp::start(&[]);
    sign_in(&app, EMAIL).await;
    let texts = [
        (json!({ "purpose": "sign_in" }), "Your sign-in code", "signs a device in"),
        (json!({ "purpose": null }), "Your sign-in code", "signs a device in"),
        (json!({ "purpose": "delete" }), "Your code to delete your account", "deletes your account"),
        (
            json!({ "purpose": "change_email" }),
            "Your code to change the address of an account",
            "makes this the address of the account",
        ),
    ];
    for (fields, subject, text) in texts {
        let before = codes(app.mail(), EMAIL);
        let mut body = json!({ "email": EMAIL });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        assert_eq!(post(&app, "/v1/auth/otp", body).await.0, StatusCode::ACCEPTED);
        let code = eventually("a mail with a code", || async {
            codes(app.mail(), EMAIL).into_iter().find(|code| !before.contains(code))
        })
        .await;
        let mail = mails(app.mail()).into_iter().find(|mail| mail.contains(&code)).unwrap();
        assert!(mail.contains(&format!("Subject: {subject}\r\n")) && mail.contains(text), "{mail}");
    }
    for unknown in ["", "signin", "SIGN_IN", "recover"] {
        let answer = post(&app, "/v1/auth/otp", json!({ "email": EMAIL, "purpose": unknown })).await;
        assert_eq!(refusal(&answer), (400, "bad_request"));
        assert_eq!(answer.1["error"]["details"]["path"], "purpose");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_of_another_purpose_is_invalid_and_not_counted() {
    let app = TestApp::start(&[]);
    let socket = join(&app, EMAIL).await;
    let [sign_in, delete, change] = ["sign_in", "delete", "change_email"];
    let [sign_in, delete, change] =
        [mailed(&app, EMAIL, sign_in).await, mailed(&app, EMAIL, delete).await, mailed(&app, EMAIL, change).await];
    for other in [&delete, &change] {
        assert_eq!(refusal(&other.redeem(&app, json!({})).await), (401, "invalid_code"));
    }
    for other in [&sign_in, &change] {
        assert_eq!(code(&socket.refused("account.delete", other.delete(&other.code)).await), "invalid_code");
    }
    for other in [&sign_in, &delete] {
        let error = socket.refused("account.change_email", other.change(EMAIL, &other.code)).await;
        assert_eq!(code(&error), "invalid_code");
    }
    for mailed in [&sign_in, &delete, &change] {
        assert_eq!(mailed.attempts(&app).await, 0);
    }
    socket.request("account.change_email", change.change(EMAIL, &change.code)).await;
    assert_eq!(sign_in.redeem(&app, json!({})).await.0, StatusCode::CREATED);
    socket.request("account.delete", delete.delete(&delete.code)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_to_delete_is_not_mailed_to_an_address_without_a_user() {
    let app = TestApp::start(&[("LIMITS__OTP_PER_EMAIL_HOUR", "2")]);
    sign_in(&app, "known@example.org").await;
    let mut answers = Vec::new();
    for email in ["unknown@example.org", "known@example.org"] {
        let (status, mut body) = post(&app, "/v1/auth/otp", json!({ "email": email, "purpose": "delete" })).await;
        let id = body["challenge_id"].take();
        let wrong = json!({ "challenge_id": id, "email": email, "code": "00000000" });
        answers.push((status, body, post(&app, "/v1/auth/verify", wrong).await));
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0].0, StatusCode::ACCEPTED);
    wait_for_subject(&app, "known@example.org", "Your code to delete your account").await;
    assert_eq!(subjects(&app, "unknown@example.org"), [""; 0]);
    // It counts towards the limit of the address all the same.
    assert_eq!(post(&app, "/v1/auth/otp", json!({ "email": "unknown@example.org" })).await.0, StatusCode::ACCEPTED);
    for purpose in ["sign_in", "delete", "change_email"] {
        let body = json!({ "email": "unknown@example.org", "purpose": purpose });
        assert_eq!(refusal(&post(&app, "/v1/auth/otp", body).await), (429, "rate_limited"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_deleted_only_with_a_code_for_that() {
    let app = TestApp::start(&[]);
    let socket = join(&app, EMAIL).await;
    let other = join(&app, "bob@example.org").await;
    let mailed = mailed(&app, EMAIL, "delete").await;
    for absent in [json!({}), json!({ "code": mailed.code }), json!({ "challenge_id": mailed.id })] {
        let error = socket.refused("account.delete", absent).await;
        assert_eq!((code(&error), &error["retryable"]), ("confirmation_required", &json!(false)));
    }
    let malformed = socket.refused("account.delete", mailed.delete("1234567")).await;
    assert_eq!((code(&malformed), &malformed["details"]["path"]), ("bad_request", &json!("code")));
    let foreign = other.refused("account.delete", mailed.delete(&mailed.code)).await;
    assert_eq!(code(&foreign), "invalid_code", "the code is for another user");
    let unknown = json!({ "challenge_id": Uuid::nil(), "code": mailed.code });
    assert_eq!(code(&socket.refused("account.delete", unknown).await), "invalid_code");
    assert_eq!(mailed.attempts(&app).await, 0);
    for guess in 0..4 {
        assert_eq!(code(&socket.refused("account.delete", mailed.delete(&mailed.wrong(guess))).await), "invalid_code");
    }
    assert_eq!(mailed.attempts(&app).await, 4);
    let spaced = format!(" {}-{} ", &mailed.code[..4], &mailed.code[4..]);
    assert_eq!(socket.request("account.delete", mailed.delete(&spaced)).await, json!({}));
    assert_eq!(socket.close_code().await, 4506);
    wait_for_subject(&app, EMAIL, "Your account was deleted").await;
    assert_eq!(code(&other.refused("users.find", json!({ "email": EMAIL })).await), "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_five_wrong_guesses_the_right_code_deletes_nothing() {
    let app = TestApp::start(&[]);
    let socket = join(&app, EMAIL).await;
    let mailed = mailed(&app, EMAIL, "delete").await;
    for guess in 0..5 {
        assert_eq!(code(&socket.refused("account.delete", mailed.delete(&mailed.wrong(guess))).await), "invalid_code");
    }
    assert_eq!(code(&socket.refused("account.delete", mailed.delete(&mailed.code)).await), "too_many_attempts");
    socket.barrier().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_changed_with_a_code_that_was_mailed_to_the_new_one() {
    let app = TestApp::start(&[]);
    let person = sign_in(&app, EMAIL).await;
    let socket = Socket::connect(&app, &person.token, Codec::MsgPack).await;
    for absent in [json!({ "email": NEW }), json!({ "email": NEW, "code": "12345678" })] {
        assert_eq!(code(&socket.refused("account.change_email", absent).await), "confirmation_required");
    }
    let to_old = mailed(&app, EMAIL, "change_email").await;
    let error = socket.refused("account.change_email", to_old.change(NEW, &to_old.code)).await;
    assert_eq!(code(&error), "invalid_code", "it was mailed to another address");
    let to_new = mailed(&app, NEW, "change_email").await;
    let error = socket.refused("account.change_email", to_new.change(NEW, &to_new.wrong(1))).await;
    assert_eq!(code(&error), "invalid_code");
    assert_eq!((to_old.attempts(&app).await, to_new.attempts(&app).await), (0, 1));
    let spelled = socket.request("account.change_email", to_new.change(" Alice@NEW.example", &to_new.code)).await;
    assert_eq!(spelled, json!({}));
    let repeated = socket.refused("account.change_email", to_new.change(NEW, &to_new.code)).await;
    assert_eq!(code(&repeated), "invalid_code", "a code works once");
    wait_for_subject(&app, EMAIL, "The address of your account was changed").await;
    assert_eq!(subjects(&app, NEW), ["Your code to change the address of an account"]);
    assert_eq!(socket.request("users.find", json!({ "email": NEW })).await, json!({ "user_id": person.user }));
    assert_eq!(code(&socket.refused("users.find", json!({ "email": EMAIL })).await), "not_found");
    assert_eq!(sign_in(&app, NEW).await.user, person.user);
    assert_ne!(sign_in(&app, EMAIL).await.user, person.user, "the old address is free");
    let (status, session) = call(&app, reqwest::Method::GET, "/v1/auth/session", Some(&person.token), None).await;
    assert_eq!((status, session["user_id"].as_str()), (StatusCode::OK, Some(person.user.as_str())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_address_is_refused_only_after_a_right_code_which_stays_usable() {
    let app = TestApp::start(&[]);
    let alice = join(&app, EMAIL).await;
    let bob = join(&app, NEW).await;
    let mailed = mailed(&app, NEW, "change_email").await;
    let error = alice.refused("account.change_email", mailed.change(NEW, &mailed.wrong(0))).await;
    assert_eq!(code(&error), "invalid_code");
    for _ in 0..6 {
        let error = alice.refused("account.change_email", mailed.change(NEW, &mailed.code)).await;
        assert_eq!((code(&error), &error["retryable"]), ("email_taken", &json!(false)));
    }
    assert_eq!(mailed.attempts(&app).await, 1);
    bob.request("account.delete", confirmation(&app, NEW, "delete").await).await;
    alice.request("account.change_email", mailed.change(NEW, &mailed.code)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changing_to_the_present_address_changes_and_mails_nothing() {
    let app = TestApp::start(&[]);
    let socket = join(&app, EMAIL).await;
    let mailed = mailed(&app, EMAIL, "change_email").await;
    assert_eq!(socket.request("account.change_email", mailed.change(EMAIL, &mailed.code)).await, json!({}));
    socket.request("account.delete", confirmation(&app, EMAIL, "delete").await).await;
    wait_for_subject(&app, EMAIL, "Your account was deleted").await;
    let changed = "The address of your account was changed".to_owned();
    assert!(!subjects(&app, EMAIL).contains(&changed));
}

/// Two users who want one address, each with a code for it.
#[tokio::test(flavor = "multi_thread")]
async fn of_parallel_changes_to_one_address_one_succeeds() {
    let app = TestApp::start(&[]);
    for round in 0..5 {
        let to = format!("wanted{round}@example.org");
        let (one, two) = (join(&app, EMAIL).await, join(&app, "bob@example.org").await);
        let codes = [mailed(&app, &to, "change_email").await, mailed(&app, &to, "change_email").await];
        let (a, b) = tokio::join!(
            one.try_request("account.change_email", codes[0].change(&to, &codes[0].code)),
            two.try_request("account.change_email", codes[1].change(&to, &codes[1].code)),
        );
        let (won, lost) = if a == Some(Ok(json!({}))) { (a, b) } else { (b, a) };
        assert_eq!(won, Some(Ok(json!({}))));
        assert_eq!(code(&lost.unwrap().unwrap_err()), "email_taken");
        let winner = if one.request("users.find", json!({ "email": to })).await["user_id"] == one.welcome["user_id"] {
            &one
        } else {
            &two
        };
        winner.request("account.delete", confirmation(&app, &to, "delete").await).await;
    }
}
