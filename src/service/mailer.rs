//! Sends mail: codes, and notices of what happened to an account.
//!
//! Each mail is sent by a task of its own, so that a request neither waits for the mail server nor reveals whether
//! sending worked. The number of these tasks is bounded. After a temporary failure (such as greylisting) or a failed
//! connection the mail is retried while a code in it is still useful.

mod mail;
mod transport;

use std::{sync::Arc, time::Duration};

use thiserror::Error;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout_at},
};

use self::transport::Transport;
pub use self::{mail::Mail, transport::check};
use crate::{
    clock::{Clock, Entropy},
    domain::Email,
    metrics::{MailOutcome, Metrics},
    tasks::Work,
};

/// Maximum number of unsent mails, including those that wait for a retry. More are dropped.
const MAX_UNSENT: usize = 1024;
/// Maximum number of mails being sent at once. More than one, so that a slow recipient does not delay the others.
const MAX_CONCURRENT: usize = 8;
/// Pauses between the attempts for one mail: three minutes in total.
const RETRY_PAUSES: &[Duration] = &[
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(15),
    Duration::from_secs(40),
    Duration::from_mins(1),
    Duration::from_mins(1),
];
/// Maximum age of a mail when an attempt starts: half the lifetime of a code.
const MAX_AGE: Duration = Duration::from_mins(5);

/// The mailer cannot be set up, or a mail cannot be sent. The text never contains the recipient.
#[derive(Debug, Error)]
pub enum MailerError {
    /// `mailer.url` or `mailer.from` is invalid.
    #[error("{0}")]
    Setup(String),
    /// The mail could not be composed.
    #[error("cannot compose the mail")]
    Compose,
    /// The folder of a `file:` mailer cannot be written.
    #[error("cannot write to the folder of mailer.url: {0}")]
    Folder(#[from] std::io::Error),
    /// The mail server rejects the mail.
    #[error("the mail server rejects the mail with reply code {code}")]
    Refused {
        /// The SMTP reply code (RFC 5321, section 4.2); from 500 on the failure is permanent.
        code: u16,
    },
    /// The mail server does not answer a connection test.
    #[error("cannot reach the mail server of mailer.url: {0}")]
    Connect(String),
    /// The mail server cannot be reached, or its replies are not SMTP, while a mail is sent.
    #[error("cannot reach the mail server or read its reply")]
    Server,
}

impl MailerError {
    fn is_permanent(&self) -> bool {
        matches!(self, Self::Compose | Self::Refused { code: 500.. })
    }
}

/// Sends mails in the background. Clones share one limit on unsent mails.
#[derive(Clone)]
pub struct Mailer {
    transport: Arc<RetryingTransport>,
    permits: Arc<Semaphore>,
    work: Work,
}

impl Mailer {
    /// Creates a mailer for `mailer.url` and `mailer.from`. Does not connect yet.
    ///
    /// # Errors
    /// If the folder cannot be created, the URL does not name a mail server, or `from` is not an address.
    pub fn new(
        url: &str,
        from: &str,
        clock: Clock,
        entropy: Entropy,
        metrics: Arc<Metrics>,
        work: Work,
    ) -> Result<Self, MailerError> {
        let transport = Transport::open(url, from, clock, entropy)?;
        let transport =
            RetryingTransport { transport, metrics, concurrent: Semaphore::new(MAX_CONCURRENT), pauses: RETRY_PAUSES };
        Ok(Self { transport: Arc::new(transport), permits: Arc::new(Semaphore::new(MAX_UNSENT)), work })
    }

    /// Checks in the background that the mail server answers, and logs a warning if not.
    pub fn warn_if_unreachable(&self) {
        let transport = self.transport.clone();
        self.work.spawn(async move {
            if let Err(error) = transport.transport.test_connection().await {
                tracing::warn!(%error, "no mail can be sent now, so nobody can sign in");
            }
        });
    }

    /// Checks that the mail server answers and, if an address is given, that it accepts a test mail to that address.
    ///
    /// # Errors
    /// The cause, if it does not answer or does not accept the mail.
    pub async fn try_now(&self, test_mail_to: Option<Email>) -> Result<(), MailerError> {
        self.transport.transport.test_connection().await?;
        match test_mail_to {
            Some(_) if self.transport.transport.only_prints() => {
                Err(MailerError::Setup("mailer.url is log:, which sends no mail".to_owned()))
            }
            Some(address) => self.transport.transport.send(&Mail::test(address)).await,
            None => Ok(()),
        }
    }

    /// Sends a mail in the background. A stopping server waits for it. If too many mails are unsent, drops this one and
    /// logs an error.
    pub fn send(&self, mail: Mail) {
        self.hand_over(mail, true);
    }

    /// Like [`Self::send`]. Returns false if the mail was dropped.
    #[must_use]
    pub fn try_send(&self, mail: Mail) -> bool {
        self.hand_over(mail, true)
    }

    /// Takes as long as [`Self::send`], but sends nothing, so that timing does not show that nothing is sent.
    pub fn withhold(&self, mail: Mail) {
        self.hand_over(mail, false);
    }

    fn hand_over(&self, mail: Mail, is_sent: bool) -> bool {
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            self.transport.metrics.mails.inc(MailOutcome::Dropped);
            tracing::error!("a mail was dropped: too many mails are waiting to be sent");
            return false;
        };
        let (transport, work) = (self.transport.clone(), self.work.clone());
        self.work.spawn(async move {
            if is_sent {
                let sent = transport.send(&mail, &work).await;
                transport.metrics.mails.inc(if sent { MailOutcome::Sent } else { MailOutcome::Failed });
            }
            drop(permit);
        });
        true
    }
}

/// A transport with retries.
struct RetryingTransport {
    transport: Transport,
    metrics: Arc<Metrics>,
    concurrent: Semaphore,
    pauses: &'static [Duration],
}

impl RetryingTransport {
    /// Sends a mail, with retries, and returns whether it was sent. When the server stops, makes one last attempt
    /// without waiting for the pause to end.
    async fn send(&self, mail: &Mail, work: &Work) -> bool {
        let deadline = Instant::now() + MAX_AGE;
        let mut pauses = self.pauses;
        loop {
            let Ok(Ok(permit)) = timeout_at(deadline, self.concurrent.acquire()).await else {
                tracing::warn!("a mail was not sent: it waited too long for a slow mail server");
                return false;
            };
            let sent = self.transport.send(mail).await;
            // Released before the pause, so that a mail waiting for its retry does not block others.
            drop(permit);
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
    use crate::domain::{
        Email,
        otp::{CodePurpose, OtpCode},
    };

    #[test]
    fn retries_outlast_greylisting_and_end_before_the_code_expires() {
        assert!(RETRY_PAUSES.is_sorted());
        let all: Duration = RETRY_PAUSES.iter().sum();
        assert!((Duration::from_mins(2)..MAX_AGE).contains(&all), "{all:?}");
        assert!(MAX_AGE + transport::SMTP_TIMEOUT < crate::domain::otp::LIFETIME);
        for (code, permanent) in [(421, false), (451, false), (499, false), (500, true), (550, true)] {
            assert_eq!(MailerError::Refused { code }.is_permanent(), permanent, "{code}");
        }
        assert!(!MailerError::Server.is_permanent() && MailerError::Compose.is_permanent());
    }

    /// A transport into a folder that does not exist yet, so that every attempt fails.
    fn failing_transport(folder: PathBuf, pauses: &'static [Duration]) -> RetryingTransport {
        RetryingTransport {
            transport: Transport::to_folder(folder),
            metrics: Arc::new(Metrics::new()),
            concurrent: Semaphore::new(1),
            pauses,
        }
    }

    fn mail() -> Mail {
        let code = OtpCode::parse("12345678").unwrap();
        Mail::code(Email::parse("alice@example.org").unwrap(), &code, CodePurpose::SignIn)
    }

    #[tokio::test]
    async fn a_mail_is_retried_after_each_pause_and_does_not_block_others_meanwhile() {
        const SHORT: &[Duration] = &[Duration::from_millis(20), Duration::from_millis(30), Duration::from_millis(50)];
        const LONG: &[Duration] = &[Duration::from_hours(1)];
        let folder = tempfile::tempdir().unwrap();
        let work = Work::new(tokio::runtime::Handle::current());
        let began = Instant::now();
        assert!(!failing_transport(folder.path().join("never"), SHORT).send(&mail(), &work).await);
        assert!(began.elapsed() >= SHORT.iter().sum::<Duration>(), "it waited for all pauses: {:?}", began.elapsed());

        let later = folder.path().join("later");
        let pausing = Arc::new(failing_transport(later.clone(), LONG));
        let (first, own) = (pausing.clone(), work.clone());
        // Permits are handed out in the order requested: the test's second one comes after the mail's.
        let permit = pausing.concurrent.acquire().await.unwrap();
        let waiting = work.spawn(async move { first.send(&mail(), &own).await });
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        drop(permit);
        let permit = tokio::time::timeout(Duration::from_secs(30), pausing.concurrent.acquire()).await;
        drop(permit.expect("the only permit is free while the first mail pauses"));
        std::fs::create_dir(&later).unwrap();
        assert!(pausing.send(&mail(), &work).await);
        assert!(!waiting.is_finished());
        // Stopping ends the hour's pause, and the mail is sent.
        work.finished().await;
        assert!(waiting.await.unwrap());
    }
}
