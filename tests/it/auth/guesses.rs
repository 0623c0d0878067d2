//! A challenge allows at most five guesses, even if they arrive in parallel, and a code works once.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{Mailed, refusal};
use crate::support::{Codec, Server, Socket, TestApp, eventually, http::person};

const ROUNDS: usize = 20;
const GUESSES: u32 = 50;

/// Makes all guesses at once and counts the answers by code; 201 counts as `created`.
async fn guess_at_once(app: &TestApp, mailed: &Mailed, guesses: &[String]) -> BTreeMap<String, usize> {
    let answers = join_all(guesses.iter().map(|guess| mailed.enter(app, guess))).await;
    let mut counts = BTreeMap::new();
    for answer in answers {
        let outcome = match answer.0 {
            StatusCode::CREATED => "created",
            _ => refusal(&answer).1,
        };
        *counts.entry(outcome.to_owned()).or_default() += 1;
    }
    counts
}

fn counts(of: &[(&str, usize)]) -> BTreeMap<String, usize> {
    of.iter().map(|(outcome, count)| ((*outcome).to_owned(), *count)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_five_of_fifty_parallel_wrong_guesses_are_evaluated() {
    let app = TestApp::start(&[]);
    for round in 0..ROUNDS {
        let mailed = Mailed::to(&app, &format!("user{round}@example.org")).await;
        let guesses: Vec<_> = (0..GUESSES).map(|which| mailed.wrong(which)).collect();
        let outcomes = guess_at_once(&app, &mailed, &guesses).await;
        assert_eq!(outcomes, counts(&[("invalid_code", 5), ("too_many_attempts", 45)]));
        assert_eq!(mailed.attempts(&app).await, 5);
        assert_eq!(refusal(&mailed.redeem(&app, json!({})).await), (429, "too_many_attempts"));
    }
}

/// The right code is one of fifty guesses. If it is among the five that are evaluated, later guesses find the code
/// used; if it is not, it opens no session.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_parallel_guesses_that_include_the_right_code_open_at_most_one_session() {
    let app = TestApp::start(&[]);
    for round in 0..ROUNDS {
        let mailed = Mailed::to(&app, &format!("user{round}@example.org")).await;
        let mut guesses: Vec<_> = (1..GUESSES).map(|which| mailed.wrong(which)).collect();
        guesses.insert((round * 7) % guesses.len(), mailed.code.clone());
        let outcomes = guess_at_once(&app, &mailed, &guesses).await;
        let count = |outcome: &str| outcomes.get(outcome).copied().unwrap_or_default();
        let attempts = mailed.attempts(&app).await;
        assert!(attempts <= 5, "{attempts} were counted");
        if count("created") == 0 {
            assert_eq!(outcomes, counts(&[("invalid_code", 5), ("too_many_attempts", 45)]));
            assert_eq!(attempts, 5);
            assert_eq!(refusal(&mailed.redeem(&app, json!({})).await), (429, "too_many_attempts"));
        } else {
            assert_eq!(count("created"), 1, "{outcomes:?}");
            assert_eq!(refusal(&mailed.redeem(&app, json!({})).await), (401, "invalid_code"), "used");
        }
    }
    // After five guesses, the other 45 are refused, the right one too.
    let mailed = Mailed::to(&app, "missed@example.org").await;
    mailed.guess_wrong(&app, 5).await;
    let mut guesses: Vec<_> = (6..GUESSES).map(|which| mailed.wrong(which)).collect();
    guesses.push(mailed.code.clone());
    assert_eq!(guess_at_once(&app, &mailed, &guesses).await, counts(&[("too_many_attempts", 45)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_entered_twice_in_parallel_opens_one_session() {
    let app = TestApp::start(&[]);
    for round in 0..ROUNDS {
        let email = format!("user{round}@example.org");
        let mailed = Mailed::to(&app, &email).await;
        let answers = tokio::join!(mailed.redeem(&app, json!({})), mailed.redeem(&app, json!({})));
        let (opened, refused) = if answers.0.0 == StatusCode::CREATED { answers } else { (answers.1, answers.0) };
        assert_eq!(opened.0, StatusCode::CREATED);
        assert_eq!(refusal(&refused), (401, "invalid_code"));
        let socket = Socket::connect(&app, &person(&email, &opened.1).token, Codec::Json).await;
        let list = socket.request("devices.list", json!({})).await;
        assert_eq!(list["devices"].as_array().unwrap().len(), 1);
        assert_eq!(list["devices"][0]["device_id"], opened.1["device_id"]);
    }
}

/// A client that disconnects before the answer has still made a guess.
#[tokio::test(flavor = "multi_thread")]
async fn a_guess_counts_even_if_the_client_disconnects_before_the_answer() {
    let app = TestApp::start(&[]);
    let mailed = Mailed::to(&app, "alice@example.org").await;
    for which in 0..5 {
        let body: Value = json!({ "challenge_id": mailed.id, "email": mailed.email, "code": mailed.wrong(which) });
        let body = body.to_string();
        let mut stream = TcpStream::connect(app.address()).await.unwrap();
        let head = format!("POST /v1/auth/verify HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        drop(stream);
        eventually("the guess is counted", || async {
            (mailed.attempts(&app).await == i64::from(which) + 1).then_some(())
        })
        .await;
    }
    assert_eq!(refusal(&mailed.redeem(&app, json!({})).await), (429, "too_many_attempts"));
}
