//! Sends notifications to services on loopback that stand for push services, good and bad.

mod apns;
mod fcm;
mod forgery;
mod hostile;
mod support;
mod web_push;
