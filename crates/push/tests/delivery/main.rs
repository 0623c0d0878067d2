//! Sends notifications to services on loopback that stand for push services, good and bad.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic fails the test")]

mod apns;
mod fcm;
mod forgery;
mod hostile;
mod support;
mod web_push;
