//! Mail over SMTP to a server that accepts, refuses, hangs or is down, and mail into a folder.

mod shares;

use std::{fs, sync::atomic::Ordering};

use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    metrics::wait_for_sample,
    support::{Server, TestApp, eventually, http::post, mail_server::MailServer, server::ReservedPort},
};

const EMAIL: &str = "alice@example.org";

async fn request_code(app: &TestApp) -> String {
    let (status, body) = post(app, "/v1/auth/otp", json!({ "email": EMAIL })).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    body["challenge_id"].as_str().unwrap().to_owned()
}

async fn enter(app: &TestApp, challenge: &str, code: &str) -> (StatusCode, Value) {
    post(app, "/v1/auth/verify", json!({ "challenge_id": challenge, "email": EMAIL, "code": code })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_arrives_by_smtp_and_is_valid() {
    let server = MailServer::start().await;
    let app =
        TestApp::start(&[("MAILER__URL", &server.url()), ("MAILER__FROM", "Chat at Home <no-reply@chat.example>")]);
    let challenge = request_code(&app).await;
    let mail = server.state.nth_mail(0).await;
    assert_eq!(mail.from, "no-reply@chat.example");
    assert_eq!(mail.to, [EMAIL]);
    assert_eq!(mail.header("From"), "\"Chat at Home\" <no-reply@chat.example>");
    assert_eq!(mail.header("To"), EMAIL);
    assert_eq!(mail.header("Subject"), "Your sign-in code");
    assert!(mail.header("Message-ID").ends_with("@chat.example>"));
    assert!(mail.header("Content-Type").starts_with("text/plain"));
    mail.header("Date");
    let (status, body) = enter(&app, &challenge, &mail.code()).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");

    let challenge = request_code(&app).await;
    let (status, body) = enter(&app, &challenge, &server.state.nth_mail(1).await.code()).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    assert_eq!(server.state.nth_mail(2).await.header("Subject"), "A device was added to your account");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_that_is_refused_permanently_fails_and_later_mails_are_sent() {
    let server = MailServer::start().await;
    server.state.refuse_with.store(550, Ordering::SeqCst);
    let app = TestApp::start(&[("MAILER__URL", &server.url())]);
    request_code(&app).await;
    server.state.wait_for_refusals(1).await;
    server.state.refuse_with.store(0, Ordering::SeqCst);
    let challenge = request_code(&app).await;
    let code = server.state.nth_mail(0).await.code();
    assert_eq!(enter(&app, &challenge, &code).await.0, StatusCode::CREATED, "only the later mail arrives");
    for outcome in ["sent", "failed"] {
        let sample = format!("sealwire_mails_total{{outcome=\"{outcome}\"}}");
        wait_for_sample(app.admin(), &sample, 1.0..=1.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_that_is_refused_temporarily_is_retried() {
    let server = MailServer::start().await;
    server.state.refuse_with.store(451, Ordering::SeqCst);
    let app = TestApp::start(&[("MAILER__URL", &server.url())]);
    let challenge = request_code(&app).await;
    server.state.wait_for_refusals(1).await;
    server.state.refuse_with.store(0, Ordering::SeqCst);
    let code = server.state.nth_mail(0).await.code();
    assert_eq!(enter(&app, &challenge, &code).await.0, StatusCode::CREATED);
}

/// The mail server temporarily refuses more mails than are sent at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn mails_that_wait_for_a_retry_do_not_delay_other_mails() {
    const GREYLISTED: u16 = 24;
    let server = MailServer::start().await;
    server.state.refuse_with.store(451, Ordering::SeqCst);
    let app = TestApp::start(&[("MAILER__URL", &server.url())]);
    let asked = (0..GREYLISTED).map(|index| json!({ "email": format!("grey{index}@example.org") }));
    join_all(asked.map(|body| post(&app, "/v1/auth/otp", body))).await;
    // Each mail was refused three times, so all wait fifteen seconds until their next attempt.
    server.state.wait_for_refusals(3 * GREYLISTED).await;
    server.state.refuse_with.store(0, Ordering::SeqCst);
    request_code(&app).await;
    let all = eventually("all mails have arrived", || async {
        Some(server.state.mails()).filter(|mails| mails.len() == usize::from(GREYLISTED) + 1)
    })
    .await;
    let place = all.iter().position(|mail| mail.to == [EMAIL]).unwrap();
    assert!(place < usize::from(GREYLISTED) / 2, "the new mail was number {place}");
    wait_for_sample(app.admin(), "sealwire_mails_total{outcome=\"sent\"}", 25.0..=25.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_retries_waiting_mails_once() {
    let server = MailServer::start().await;
    server.state.refuse_with.store(451, Ordering::SeqCst);
    let app = TestApp::start(&[("MAILER__URL", &server.url())]);
    request_code(&app).await;
    server.state.wait_for_refusals(2).await;
    server.state.refuse_with.store(0, Ordering::SeqCst);
    // The next attempt would be in four seconds, and stopping takes less.
    drop(app);
    assert_eq!(server.state.mails().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_do_not_wait_for_a_mail_server_that_is_down() {
    let port = ReservedPort::new();
    let app = TestApp::start(&[("MAILER__URL", &format!("smtp://{}", port.address))]);
    let first = request_code(&app).await;
    let server = MailServer::start_on(port.address).await;
    let second = request_code(&app).await;
    let codes = [server.state.nth_mail(0).await.code(), server.state.nth_mail(1).await.code()];
    for challenge in [second, first] {
        // Both mails arrive, in any order.
        let answers = [enter(&app, &challenge, &codes[0]).await, enter(&app, &challenge, &codes[1]).await];
        assert!(answers.iter().any(|(status, _)| *status == StatusCode::CREATED), "{answers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_do_not_wait_for_a_mail_server_that_hangs() {
    // The mail server accepts connections and never answers, so each mail hangs until it times out.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("smtp://{}", listener.local_addr().unwrap());
    let app = TestApp::start(&[("MAILER__URL", &url)]);
    join_all((0..20).map(|_| request_code(&app))).await;
    let (_held, _) = listener.accept().await.unwrap();
}

/// A reader of the folder finds complete mails under names that end in `.eml`, one file for each mail.
#[tokio::test(flavor = "multi_thread")]
async fn the_file_mailer_shows_only_complete_mails() {
    const MAILS: usize = 60;
    let app = TestApp::start(&[]);
    let folder = app.mail().to_owned();
    let reader = tokio::task::spawn_blocking(move || {
        let deadline = std::time::Instant::now() + crate::support::PATIENCE;
        loop {
            let mut whole = 0;
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|extension| extension == "eml") {
                    let text = fs::read_to_string(&path).unwrap();
                    assert!(text.contains("\r\n\r\nYour code is ") && text.ends_with('\n'), "a part of a mail: {text}");
                    whole += 1;
                }
            }
            if whole == MAILS {
                return fs::read_dir(&folder).unwrap().count();
            }
            assert!(std::time::Instant::now() < deadline, "only {whole} mails arrived");
        }
    });
    let asked = (0..MAILS).map(|index| json!({ "email": format!("user{index}@example.org") }));
    for (status, _) in join_all(asked.map(|body| post(&app, "/v1/auth/otp", body))).await {
        assert_eq!(status, StatusCode::ACCEPTED);
    }
    assert_eq!(reader.await.unwrap(), MAILS, "nothing else is left in the folder");
}
