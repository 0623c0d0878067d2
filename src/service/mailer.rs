//! Mail to people: sign-in codes, and notices that a device was added.
//!
//! Each mail is a task of its own, of which there is a bounded number, so that a request neither waits for a mail server
//! nor shows whether it worked. A mail that the server refuses for now, as greylisting does, or for which the server
//! cannot be reached, is tried again for as long as a code in it is of use.

mod mail;
mod transport;

use std::{sync::Arc, time::Duration};

use thiserror::Error;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout_at},
};

pub use self::mail::Mail;
use self::transport::Transport;
use crate::{
    clock::{Clock, Entropy},
    metrics::{MailEnd, Metrics},
    tasks::Work,
};

/// Mails that may be on their way, including those that wait for another try.
const PLACES: usize = 1024;
/// Conversations with the mail server at once, so that one slow recipient does not hold up the others.
const AT_ONCE: usize = 8;
/// Pauses between the tries for one mail: three minutes in all.
const PAUSES: &[Duration] = &[
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(15),
    Duration::from_secs(40),
    Duration::from_mins(1),
    Duration::from_mins(1),
];
/// How old a mail may be when a try begins: codes live twice as long.
const WORTH_SENDING: Duration = Duration::from_mins(5);

/// Why mail cannot be set up or sent. Never names the recipient.
#[derive(Debug, Error)]
pub enum MailerError {
    /// `mailer.url` or `mailer.from` is wrong.
    #[error("mailer: {0}")]
    Setup(String),
    /// The mail could not be composed.
    #[error("the mail cannot be composed")]
    Compose,
    /// The folder of a `file:` mailer cannot be written.
    #[error("the mail folder does not take it: {0}")]
    Folder(#[from] std::io::Error),
    /// The mail server refuses the mail.
    #[error("the mail server refuses it with {code}")]
    Refused {
        /// The reply's code (RFC 5321, 4.2): from 500 on, another try is pointless.
        code: u16,
    },
    /// The mail server cannot be reached, or its replies cannot be read.
    #[error("the mail server cannot be spoken to")]
    Server,
}

impl MailerError {
    fn is_permanent(&self) -> bool {
        matches!(self, Self::Compose | Self::Refused { code: 500.. })
    }
}

/// Accepts mails and sends them in the background. Clones share the bound on their number.
#[derive(Clone)]
pub struct Mailer {
    sender: Arc<Sender>,
    places: Arc<Semaphore>,
    work: Work,
}

impl Mailer {
    /// Sets up the transport of a checked `mailer.url`.
    ///
    /// # Errors
    /// If the folder cannot be made, the URL names no mail server, or the sender is not an address.
    pub fn new(
        url: &str,
        from: &str,
        clock: Clock,
        entropy: Entropy,
        metrics: Arc<Metrics>,
        work: Work,
    ) -> Result<Self, MailerError> {
        let transport = Transport::open(url, from, clock, entropy)?;
        let sender = Sender { transport, metrics, at_once: Semaphore::new(AT_ONCE), pauses: PAUSES };
        Ok(Self { sender: Arc::new(sender), places: Arc::new(Semaphore::new(PLACES)), work })
    }

    /// Sends a mail in the background; a server that stops waits for it. If too many are on their way, the mail is
    /// dropped, and the log says so.
    pub fn send(&self, mail: Mail) {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            self.sender.metrics.mails.inc(MailEnd::Dropped);
            tracing::error!("a mail was dropped: too many are on their way");
            return;
        };
        let (sender, work) = (self.sender.clone(), self.work.clone());
        self.work.spawn(async move {
            let sent = sender.deliver(&mail, &work).await;
            sender.metrics.mails.inc(if sent { MailEnd::Sent } else { MailEnd::Failed });
            drop(place);
        });
    }
}

/// Sends mails over one transport, with retries.
struct Sender {
    transport: Transport,
    metrics: Arc<Metrics>,
    at_once: Semaphore,
    pauses: &'static [Duration],
}

impl Sender {
    /// Sends a mail, with retries, and returns whether it was sent. When the server stops, the next try follows at once
    /// and is the last.
    async fn deliver(&self, mail: &Mail, work: &Work) -> bool {
        let worthless = Instant::now() + WORTH_SENDING;
        let mut pauses = self.pauses;
        loop {
            let Ok(Ok(turn)) = timeout_at(worthless, self.at_once.acquire()).await else {
                tracing::warn!("a mail was given up: the mail server is too slow for all that wait");
                return false;
            };
            let sent = self.transport.send(mail).await;
            // Given back for the pause, so that a mail which has to wait keeps no other from being sent.
            drop(turn);
            let Err(error) = sent else { return true };
            let tries_left = if error.is_permanent() { 0 } else { pauses.len() };
            if tries_left == 0 || tries_left == self.pauses.len() {
                tracing::warn!(%error, tries_left, "a mail was not sent");
            } else {
                tracing::debug!(%error, tries_left, "a mail was not sent");
            }
            let Some((pause, rest)) = pauses.split_first().filter(|_| tries_left > 0) else { return false };
            pauses = rest;
            tokio::select! {
                () = sleep(*pause) => {}
                () = work.ending() => pauses = &[],
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::domain::{Email, otp::OtpCode};

    #[test]
    fn tries_outlast_greylisting_and_end_before_the_code_does() {
        assert!(PAUSES.is_sorted());
        let all: Duration = PAUSES.iter().sum();
        assert!((Duration::from_mins(2)..WORTH_SENDING).contains(&all), "{all:?}");
        assert!(WORTH_SENDING + transport::SMTP_TIMEOUT < crate::domain::otp::LIFETIME);
        for (code, permanent) in [(421, false), (451, false), (499, false), (500, true), (550, true)] {
            assert_eq!(MailerError::Refused { code }.is_permanent(), permanent, "{code}");
        }
        assert!(!MailerError::Server.is_permanent() && MailerError::Compose.is_permanent());
    }

    /// A sender into a folder that is not there yet, so that every try fails for now.
    fn sender(folder: PathBuf, pauses: &'static [Duration]) -> Sender {
        Sender {
            transport: Transport::to_folder(folder),
            metrics: Arc::new(Metrics::new()),
            at_once: Semaphore::new(1),
            pauses,
        }
    }

    fn mail() -> Mail {
        Mail::code(Email::parse("alice@example.org").unwrap(), &OtpCode::parse("12345678").unwrap())
    }

    #[tokio::test]
    async fn a_mail_is_tried_after_each_pause_and_keeps_no_other_from_its_turn_meanwhile() {
        const SHORT: &[Duration] = &[Duration::from_millis(20), Duration::from_millis(30), Duration::from_millis(50)];
        const LONG: &[Duration] = &[Duration::from_hours(1)];
        let folder = tempfile::tempdir().unwrap();
        let work = Work::new(tokio::runtime::Handle::current());
        let began = Instant::now();
        assert!(!sender(folder.path().join("never"), SHORT).deliver(&mail(), &work).await);
        assert!(began.elapsed() >= SHORT.iter().sum::<Duration>(), "all pauses were made: {:?}", began.elapsed());

        let later = folder.path().join("later");
        let pausing = Arc::new(sender(later.clone(), LONG));
        let (first, own) = (pausing.clone(), work.clone());
        // Turns are taken in the order in which they were asked for: the test's next is behind the mail's.
        let turn = pausing.at_once.acquire().await.unwrap();
        let waiting = work.spawn(async move { first.deliver(&mail(), &own).await });
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        drop(turn);
        let turn = tokio::time::timeout(Duration::from_secs(30), pausing.at_once.acquire()).await;
        drop(turn.expect("the only turn comes back while the first mail pauses"));
        std::fs::create_dir(&later).unwrap();
        assert!(pausing.deliver(&mail(), &work).await);
        assert!(!waiting.is_finished());
        // Stopping does not wait for the hour to pass, and nor does the mail.
        work.finished().await;
        assert!(waiting.await.unwrap());
    }
}
