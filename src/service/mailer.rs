//! Mail to people: codes, and the news that a device was added.
//!
//! Sending happens behind a bounded queue, so that a request neither waits for a mail server nor shows whether it worked.

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
use tokio::sync::{Semaphore, mpsc};

use crate::{
    clock::{Clock, Entropy},
    domain::{Email, otp::OtpCode},
    metrics::{MailEnd, Metrics},
    tasks::{Tasks, Unfinished, Work},
};

/// Mails that may wait for the mail server.
const QUEUE: usize = 1024;
/// How long one step of an SMTP conversation may take.
const SMTP_TIMEOUT: Duration = Duration::from_secs(15);
/// Tries for one mail, with a pause after each that failed.
const TRIES: u32 = 3;
/// Mails under way at once, so that one slow recipient does not hold the others up.
const AT_ONCE: usize = 8;

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
    /// The server does not take it.
    #[error("the mail server does not take it (permanent: {permanent})")]
    Server {
        /// Whether another try is pointless.
        permanent: bool,
    },
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

/// The queue in front of the transport. Clones share it.
#[derive(Clone)]
pub struct Mailer {
    queue: mpsc::Sender<(Mail, Unfinished)>,
    work: Work,
    metrics: Arc<Metrics>,
}

impl Mailer {
    /// Sets the transport of a checked `mailer.url` up and starts its worker.
    ///
    /// # Errors
    /// Where the folder cannot be made or the URL is not one of a mail server.
    pub fn start(
        url: &str,
        from: &str,
        clock: Clock,
        entropy: Entropy,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> Result<Self, MailerError> {
        let from: Mailbox = from.parse().map_err(|_| MailerError::Setup("mailer.from is not an address".to_owned()))?;
        let transport = Transport::open(url)?;
        let (queue, mut waiting) = mpsc::channel::<(Mail, Unfinished)>(QUEUE);
        let sender = Arc::new(Sender { transport, from, clock, entropy, metrics: metrics.clone() });
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        tasks.spawn("mailer", async move {
            while let Some((mail, unfinished)) = waiting.recv().await {
                // The semaphore is never closed.
                let Ok(permit) = at_once.clone().acquire_owned().await else { return };
                let sender = sender.clone();
                tokio::spawn(async move {
                    sender.deliver(&mail).await;
                    drop((permit, unfinished));
                });
            }
        });
        Ok(Self { queue, work: tasks.work().clone(), metrics })
    }

    /// Queues a mail, for which a server that stops waits. One that does not fit the queue is dropped, and the operator
    /// hears of it.
    pub fn send(&self, mail: Mail) {
        if self.queue.try_send((mail, self.work.begin())).is_err() {
            self.metrics.mails.inc(MailEnd::Dropped);
            tracing::error!("a mail was dropped: the queue is full or its worker has stopped");
        }
    }
}

/// What the worker needs for every mail.
struct Sender {
    transport: Transport,
    from: Mailbox,
    clock: Clock,
    entropy: Entropy,
    metrics: Arc<Metrics>,
}

impl Sender {
    async fn deliver(&self, mail: &Mail) {
        let sent = self.try_deliver(mail).await;
        self.metrics.mails.inc(if sent { MailEnd::Sent } else { MailEnd::Failed });
    }

    /// Whether it worked, in the end.
    async fn try_deliver(&self, mail: &Mail) -> bool {
        let mut pause = Duration::from_secs(1);
        for tries_left in (0..TRIES).rev() {
            match self.transport.send(mail, &self.from, &self.clock, &self.entropy).await {
                Ok(()) => return true,
                Err(error) => {
                    tracing::warn!(%error, tries_left, "a mail was not sent");
                    if matches!(error, MailerError::Compose | MailerError::Server { permanent: true }) {
                        return false;
                    }
                }
            }
            if tries_left > 0 {
                tokio::time::sleep(pause).await;
                pause *= 4;
            }
        }
        false
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
                Err(error) => Err(MailerError::Server { permanent: error.is_permanent() }),
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
}
