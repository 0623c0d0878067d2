//! Mail to people: codes, and the news that a device was added.
//!
//! Each mail is a task of its own, of which there are so many at most, so that a request neither waits for a mail server nor
//! shows whether it worked. A mail that is refused for now, as by greylisting, or finds the server away, is tried again for
//! as long as a code in it is worth something.

use std::{path::PathBuf, sync::Arc, time::Duration};

use lettre::{
    AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    message::{
        Body, Mailbox,
        header::{ContentTransferEncoding, ContentType},
    },
};
use rand::RngExt;
use thiserror::Error;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    clock::{Clock, Entropy},
    domain::{Email, otp::OtpCode},
    metrics::{MailEnd, Metrics},
    tasks::Work,
};

/// Mails that may be on their way, those included that wait for another try.
const PLACES: usize = 1024;
/// How long one step of an SMTP conversation may take.
const SMTP_TIMEOUT: Duration = Duration::from_secs(15);
/// Conversations with the mail server at once, so that one slow recipient does not hold the others up.
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
    /// The folder does not take it.
    #[error("the mail folder does not take it: {0}")]
    Folder(#[from] std::io::Error),
    /// The server refuses it.
    #[error("the mail server refuses it with {code}")]
    Refused {
        /// The reply's code (RFC 5321, 4.2): from 500 on, another try is pointless.
        code: u16,
    },
    /// The server is not there, or not understood.
    #[error("the mail server cannot be spoken to")]
    Server,
}

/// One mail.
pub struct Mail {
    to: Email,
    subject: &'static str,
    text: String,
}

impl Mail {
    /// The mail that carries a code. The code is its only group of eight digits.
    pub fn code(to: Email, code: &OtpCode) -> Self {
        let text = format!(
            "Your code is {}\n\nIt works once, for ten minutes.\nIf you did not ask for it, ignore this mail.\n",
            code.as_str()
        );
        Self { to, subject: "Your sign-in code", text }
    }

    /// The mail that tells of a new device.
    pub fn device_added(to: Email, name: Option<&str>) -> Self {
        // The name is whatever a stranger with the code chose: only letters of it are shown, and no digits, so that
        // nothing in it can pass for a code.
        let shown = |name: &str| name.chars().filter(|c| c.is_ascii_alphabetic() || *c == ' ').collect::<String>();
        let name = name.map(shown).filter(|name| !name.trim().is_empty());
        // On a line of its own, which with 64 characters is just short enough to need no encoding.
        let named = name.map(|name| format!("Name: {}\n", name.trim())).unwrap_or_default();
        let text = format!(
            "A new device has signed in to your account.\n{named}\n\
             If this was not you, revoke it from one of your other devices.\n"
        );
        Self { to, subject: "A device was added to your account", text }
    }
}

impl Mail {
    fn compose(&self, from: &Mailbox, clock: &Clock, entropy: &Entropy) -> Result<Message, MailerError> {
        let to = self.to.as_str().parse().map_err(|_| MailerError::Compose)?;
        // Lines are short and ASCII, so the text stays readable in the raw mail.
        let text = Body::new_with_encoding(self.text.clone(), ContentTransferEncoding::SevenBit)
            .map_err(|_| MailerError::Compose)?;
        Message::builder()
            .from(from.clone())
            .to(Mailbox::new(None, to))
            .subject(self.subject)
            .date(std::time::UNIX_EPOCH + Duration::from_micros(clock.now().as_micros().unsigned_abs()))
            .message_id(Some(format!("<{}@{}>", letters(entropy), from.email.domain())))
            .header(ContentType::TEXT_PLAIN)
            .body(text)
            .map_err(|_| MailerError::Compose)
    }
}

/// A random name of letters alone, so that it never looks like a code.
fn letters(entropy: &Entropy) -> String {
    entropy.draw(|rng| (0..20).map(|_| char::from(rng.random_range(b'a'..=b'z'))).collect())
}

/// The way out.
enum Transport {
    Log,
    Folder(PathBuf),
    Smtp(Box<AsyncSmtpTransport<Tokio1Executor>>),
}

impl MailerError {
    fn is_permanent(&self) -> bool {
        matches!(self, Self::Compose | Self::Refused { code: 500.. })
    }
}

/// Takes mails and sees to them. Clones share the places.
#[derive(Clone)]
pub struct Mailer {
    sender: Arc<Sender>,
    places: Arc<Semaphore>,
    work: Work,
}

impl Mailer {
    /// Sets the transport of a checked `mailer.url` up.
    ///
    /// # Errors
    /// Where the folder cannot be made or the URL is not one of a mail server.
    pub fn new(
        url: &str,
        from: &str,
        clock: Clock,
        entropy: Entropy,
        metrics: Arc<Metrics>,
        work: Work,
    ) -> Result<Self, MailerError> {
        let from: Mailbox = from.parse().map_err(|_| MailerError::Setup("mailer.from is not an address".to_owned()))?;
        let transport = Transport::open(url)?;
        let at_once = Semaphore::new(AT_ONCE);
        let sender = Arc::new(Sender { transport, from, clock, entropy, metrics, at_once, pauses: PAUSES });
        Ok(Self { sender, places: Arc::new(Semaphore::new(PLACES)), work })
    }

    /// Sends a mail, for which a server that stops waits. One for which there is no place is dropped, and the operator
    /// hears of it.
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

/// What every mail needs.
struct Sender {
    transport: Transport,
    from: Mailbox,
    clock: Clock,
    entropy: Entropy,
    metrics: Arc<Metrics>,
    at_once: Semaphore,
    pauses: &'static [Duration],
}

impl Sender {
    /// Whether it worked, in the end. A server that stops hurries the next try, which is the last.
    async fn deliver(&self, mail: &Mail, work: &Work) -> bool {
        let worthless = Instant::now() + WORTH_SENDING;
        let mut pauses = self.pauses;
        loop {
            // Given back for the pause, so that a mail which has to wait keeps no other from being sent.
            let Ok(Ok(turn)) = timeout_at(worthless, self.at_once.acquire()).await else {
                tracing::warn!("a mail was given up: the mail server is too slow for all that wait");
                return false;
            };
            let sent = self.transport.send(mail, &self.from, &self.clock, &self.entropy).await;
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

impl Transport {
    fn open(url: &str) -> Result<Self, MailerError> {
        if url == "log:" {
            return Ok(Self::Log);
        }
        if let Some(folder) = url.strip_prefix("file:") {
            let folder = PathBuf::from(folder.strip_prefix("//").unwrap_or(folder));
            std::fs::create_dir_all(&folder)?;
            return Ok(Self::Folder(folder));
        }
        // Plain `smtp://` means to lettre that TLS is not even tried.
        let opportunistic = url.starts_with("smtp://") && !url.contains("tls=");
        let separator = if url.contains('?') { '&' } else { '?' };
        let url = if opportunistic { format!("{url}{separator}tls=opportunistic") } else { url.to_owned() };
        let builder = AsyncSmtpTransport::<Tokio1Executor>::from_url(&url)
            .map_err(|_| MailerError::Setup("mailer.url is not the address of a mail server".to_owned()))?;
        Ok(Self::Smtp(Box::new(builder.timeout(Some(SMTP_TIMEOUT)).build())))
    }

    async fn send(&self, mail: &Mail, from: &Mailbox, clock: &Clock, entropy: &Entropy) -> Result<(), MailerError> {
        if let Self::Log = self {
            // Not through tracing: whoever chose this mailer wants to read the code, and no log may hold it.
            #[expect(clippy::print_stdout, reason = "the development mailer's purpose")]
            {
                println!("mail to {}: {}: {}", mail.to.as_str(), mail.subject, mail.text.replace('\n', " "));
            }
            return Ok(());
        }
        let message = mail.compose(from, clock, entropy)?;
        match self {
            Self::Log => Ok(()),
            Self::Folder(folder) => {
                let name = format!("{}-{}.eml", clock.now().to_utc().format("%Y-%m-%dT%H-%M-%S%.6f"), letters(entropy));
                let unfinished = folder.join(format!(".{name}.part"));
                tokio::fs::write(&unfinished, message.formatted()).await?;
                Ok(tokio::fs::rename(unfinished, folder.join(name)).await?)
            }
            Self::Smtp(server) => match server.send(message).await {
                Ok(_) => Ok(()),
                Err(error) => match error.status() {
                    Some(code) => Err(MailerError::Refused { code: code.into() }),
                    None => Err(MailerError::Server),
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mail_composes_and_shows_its_code_in_the_raw_text() {
        let entropy = Entropy::from_system().unwrap();
        let from: Mailbox = "Sealwire <sealwire@localhost>".parse().unwrap();
        let to = || Email::parse("alice@example.org").unwrap();
        let code = OtpCode::parse("12345678").unwrap();
        let raw =
            |mail: Mail| String::from_utf8(mail.compose(&from, &Clock::System, &entropy).unwrap().formatted()).unwrap();
        assert!(raw(Mail::code(to(), &code)).contains("Your code is 12345678\r\n"));
        let name = "x".repeat(64);
        for name in
            [None, Some(name.as_str()), Some("Bob's phone 12345678"), Some("\r\nBcc: eve@example.org"), Some("電話")]
        {
            let raw = raw(Mail::device_added(to(), name));
            assert!(!raw.contains("12345678") && !raw.contains("\nBcc"), "{raw}");
        }
    }
    #[test]
    fn tries_outlast_greylisting_and_end_before_the_code_does() {
        assert!(PAUSES.is_sorted());
        let all: Duration = PAUSES.iter().sum();
        assert!((Duration::from_mins(2)..WORTH_SENDING).contains(&all), "{all:?}");
        assert!(WORTH_SENDING + SMTP_TIMEOUT < crate::domain::otp::LIFETIME);
        for (code, permanent) in [(421, false), (451, false), (499, false), (500, true), (550, true)] {
            assert_eq!(MailerError::Refused { code }.is_permanent(), permanent, "{code}");
        }
        assert!(!MailerError::Server.is_permanent() && MailerError::Compose.is_permanent());
    }

    /// A sender into a folder that is not there yet, so that every try fails for now.
    fn sender(folder: PathBuf, pauses: &'static [Duration]) -> Sender {
        Sender {
            transport: Transport::Folder(folder),
            from: "sealwire@localhost".parse().unwrap(),
            clock: Clock::System,
            entropy: Entropy::from_system().unwrap(),
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
        // Whoever stops the server does not wait for the hour to pass, and nor does the mail.
        work.settled().await;
        assert!(waiting.await.unwrap());
    }
}
