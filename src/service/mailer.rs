//! Sends mail: codes, and notices of what happened to an account.
//!
//! Each mail is sent by a task of its own, so that a request neither waits for the mail server nor reveals whether
//! sending worked. The number of these tasks is bounded by [`places`], which divides it by recipient domain and client
//! network. After a temporary failure (such as greylisting) or a failed connection the mail is retried while a code in it
//! is still useful. A notice for which there is no place waits as if its first attempt had failed.

mod mail;
mod places;
mod transport;

use std::{sync::Arc, time::Duration};

use thiserror::Error;
use tokio::time::{Instant, sleep, timeout_at};

pub use self::{mail::Mail, transport::check};
use self::{
    places::{MailKeys, Places, RetryPlace, UnsentPlace},
    transport::Transport,
};
use crate::{
    clock::{Clock, Entropy},
    domain::Email,
    log_throttle::LogThrottle,
    metrics::{MailDrop, MailOutcome, Metrics},
    tasks::Work,
};

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
/// Dropped mails are logged at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

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
    /// The mail server did not take the mail in time.
    #[error("the mail server did not take the mail within {} s", transport::ATTEMPT_TIMEOUT.as_secs())]
    TimedOut,
    /// The mail server cannot be reached, or its replies are not SMTP, while a mail is sent.
    #[error("cannot reach the mail server or read its reply")]
    Server,
}

impl MailerError {
    fn is_permanent(&self) -> bool {
        matches!(self, Self::Compose | Self::Refused { code: 500.. })
    }
}

/// Sends mails in the background. Clones share the limits on unsent mails.
#[derive(Clone)]
pub struct Mailer {
    transport: Arc<RetryingTransport>,
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
        let places = Places::new(transport.may_hang(), metrics.clone());
        let drops = LogThrottle::new(LOG_INTERVAL);
        let transport = RetryingTransport { transport, metrics, places, pauses: RETRY_PAUSES, drops };
        Ok(Self { transport: Arc::new(transport), work })
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

    /// Sends a mail in the background. A stopping server waits for it. Drops it if the limits on unsent mails are reached.
    pub fn send(&self, mail: Mail) {
        self.send_or_else(mail, async {});
    }

    /// Like [`Self::send`]. If the mail is dropped, runs `dropped` in the background; not if all attempts fail.
    pub fn send_or_else(&self, mail: Mail, dropped: impl Future<Output = ()> + Send + 'static) {
        let Some((keys, place)) = self.enter(&mail) else {
            self.work.spawn(dropped);
            return;
        };
        let (transport, work) = (self.transport.clone(), self.work.clone());
        self.work.spawn(async move {
            if transport.send(&mail, &keys, place, &work).await == MailOutcome::Dropped {
                dropped.await;
            }
        });
    }

    /// Like [`Self::send`]. If the mail is dropped or all attempts fail, runs `give_back`: before this returns if the mail
    /// is dropped at once, otherwise in the background.
    ///
    /// If `is_withheld`, takes as long but sends nothing, so that timing does not show that nothing is sent.
    pub async fn send_or(&self, mail: Mail, is_withheld: bool, give_back: impl Future<Output = ()> + Send + 'static) {
        let Some((keys, place)) = self.enter(&mail) else { return give_back.await };
        let (transport, work) = (self.transport.clone(), self.work.clone());
        self.work.spawn(async move {
            if !is_withheld && transport.send(&mail, &keys, place, &work).await != MailOutcome::Sent {
                give_back.await;
            }
        });
    }

    /// Takes a place for a mail; `None` if it is dropped.
    fn enter(&self, mail: &Mail) -> Option<(MailKeys, FirstPlace)> {
        let keys = if mail.is_notice {
            MailKeys::notice(&mail.to, mail.network)
        } else {
            MailKeys::code(&mail.to, mail.network)
        };
        let places = &self.transport.places;
        let place = match places.enter(&keys) {
            Ok(place) => Ok(FirstPlace::Unsent(place)),
            // Somebody who sees that their code does not come asks again. Nobody asks for a notice.
            Err(limit) if mail.is_notice => places.wait(&keys).map(|place| FirstPlace::Retry(limit, place)),
            Err(limit) => Err(limit),
        };
        place.map(|place| (keys, place)).map_err(|limit| self.transport.count_dropped(limit)).ok()
    }
}

/// The place with which a mail begins.
enum FirstPlace {
    /// One of those that are sent.
    Unsent(UnsentPlace),
    /// One of those that wait for their next attempt, because this limit left none of the others.
    Retry(MailDrop, RetryPlace),
}

/// A transport with retries.
struct RetryingTransport {
    transport: Transport,
    metrics: Arc<Metrics>,
    places: Places,
    pauses: &'static [Duration],
    drops: LogThrottle,
}

/// Why an attempt was not made or failed.
#[derive(Debug, Error)]
enum AttemptError {
    /// The attempt failed.
    #[error(transparent)]
    Mailer(#[from] MailerError),
    /// There was no place for the attempt.
    #[error("too many mails are unsent")]
    NoPlace(MailDrop),
    /// The mail became too old while it waited for a connection.
    #[error("it waited too long for a connection to the mail server")]
    TooOld,
}

impl AttemptError {
    fn is_final(&self) -> bool {
        match self {
            Self::Mailer(error) => error.is_permanent(),
            Self::NoPlace(_) => false,
            Self::TooOld => true,
        }
    }
}

impl RetryingTransport {
    /// Sends a mail, with retries. Counts and returns the outcome.
    async fn send(&self, mail: &Mail, keys: &MailKeys, place: FirstPlace, work: &Work) -> MailOutcome {
        let outcome = match self.try_send(mail, keys, place, work).await {
            Ok(()) => MailOutcome::Sent,
            Err(AttemptError::NoPlace(limit)) => {
                self.count_dropped(limit);
                return MailOutcome::Dropped;
            }
            Err(AttemptError::Mailer(_) | AttemptError::TooOld) => MailOutcome::Failed,
        };
        self.metrics.mails.inc(outcome);
        outcome
    }

    /// Sends a mail, with retries. Between the attempts it holds no place of those that are sent. When the server stops,
    /// makes one last attempt without waiting for the pause to end.
    async fn try_send(
        &self,
        mail: &Mail,
        keys: &MailKeys,
        first_place: FirstPlace,
        work: &Work,
    ) -> Result<(), AttemptError> {
        let deadline = Instant::now() + MAX_AGE;
        let mut pauses = self.pauses;
        let (mut place, mut waiting) = match first_place {
            FirstPlace::Unsent(place) => (Ok(place), None),
            FirstPlace::Retry(limit, waiting) => (Err(limit), Some(waiting)),
        };
        loop {
            let attempt = match place {
                Ok(place) => self.attempt(mail, place, deadline).await,
                Err(limit) => Err(AttemptError::NoPlace(limit)),
            };
            let Err(error) = attempt else { return Ok(()) };
            let tries_left = if error.is_final() { 0 } else { pauses.len() };
            if !matches!(error, AttemptError::NoPlace(_)) && (tries_left == 0 || tries_left == self.pauses.len()) {
                tracing::warn!(%error, tries_left, "a mail was not sent");
            } else {
                tracing::debug!(%error, tries_left, "a mail was not sent");
            }
            let Some((pause, rest)) = pauses.split_first().filter(|_| tries_left > 0) else { return Err(error) };
            pauses = rest;
            let mut retry_place = match waiting.take() {
                Some(place) => place,
                None => self.places.wait(keys).map_err(AttemptError::NoPlace)?,
            };
            tokio::select! {
                () = sleep(*pause) => {}
                () = retry_place.displaced() => return Err(AttemptError::NoPlace(MailDrop::Retries)),
                () = work.ending() => pauses = &[],
            }
            drop(retry_place);
            place = self.places.enter(keys);
        }
    }

    /// Waits for a connection and makes one attempt. Gives the place back before it returns.
    async fn attempt(&self, mail: &Mail, mut place: UnsentPlace, deadline: Instant) -> Result<(), AttemptError> {
        match timeout_at(deadline, place.connection()).await {
            Ok(Ok(())) => {}
            Ok(Err(limit)) => return Err(AttemptError::NoPlace(limit)),
            Err(_) => return Err(AttemptError::TooOld),
        }
        self.transport.send(mail).await?;
        place.note_sent();
        Ok(())
    }

    fn count_dropped(&self, limit: MailDrop) {
        self.metrics.mails.inc(MailOutcome::Dropped);
        self.metrics.mails_dropped.inc(limit);
        if let Some(mails) = self.drops.count(std::time::Instant::now()) {
            tracing::error!(mails, limit = ?limit, "mails were dropped: too many are unsent");
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
        assert!(MAX_AGE + transport::ATTEMPT_TIMEOUT < crate::domain::otp::LIFETIME);
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
            places: Places::new(true, Arc::default()),
            pauses,
            drops: LogThrottle::new(LOG_INTERVAL),
        }
    }

    fn mail() -> Mail {
        let code = OtpCode::parse("12345678").unwrap();
        Mail::code(Email::parse("alice@example.org").unwrap(), &code, CodePurpose::SignIn)
    }

    async fn send(transport: &RetryingTransport, work: &Work) -> bool {
        let (mail, keys) = (mail(), keys());
        let place = transport.places.enter(&keys).unwrap();
        transport.send(&mail, &keys, FirstPlace::Unsent(place), work).await == MailOutcome::Sent
    }

    fn keys() -> MailKeys {
        MailKeys::code(&mail().to, None)
    }

    #[tokio::test]
    async fn a_mail_is_retried_after_each_pause_and_holds_no_connection_meanwhile() {
        const SHORT: &[Duration] = &[Duration::from_millis(20), Duration::from_millis(30), Duration::from_millis(50)];
        const LONG: &[Duration] = &[Duration::from_hours(1)];
        let folder = tempfile::tempdir().unwrap();
        let work = Work::new(tokio::runtime::Handle::current());
        let began = Instant::now();
        assert!(!send(&failing_transport(folder.path().join("never"), SHORT), &work).await);
        assert!(began.elapsed() >= SHORT.iter().sum::<Duration>(), "it waited for all pauses: {:?}", began.elapsed());

        let later = folder.path().join("later");
        let pausing = Arc::new(failing_transport(later.clone(), LONG));
        let waiting: Vec<_> = (0..100)
            .map(|_| {
                let (transport, own) = (pausing.clone(), work.clone());
                work.spawn(async move { send(&transport, &own).await })
            })
            .collect();
        let are_retrying = || pausing.places.retrying() == 100;
        tokio::time::timeout(Duration::from_secs(30), async {
            while !are_retrying() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("all mails wait for their next attempt");
        std::fs::create_dir(&later).unwrap();
        assert!(send(&pausing, &work).await);
        assert!(are_retrying());
        // Stopping ends the hour's pause, and the mails are sent.
        work.finished().await;
        for sent in waiting {
            assert!(sent.await.unwrap());
        }
    }
}
