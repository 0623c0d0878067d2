//! Sends one mail: to standard output, into a folder, or over SMTP.

use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor, message::Mailbox};
use tokio::{io::AsyncWriteExt, time::timeout};

use super::{
    MailerError,
    mail::{Mail, letters},
};
use crate::{
    clock::{Clock, Entropy},
    store::may_write,
};

/// Timeout of [`Transport::test_connection`].
const TEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Timeout for connecting to the mail server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of an attempt to send a mail. The library has none for the server's replies.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);

/// Sends mails from one sender address.
pub struct Transport {
    backend: Backend,
    from: Mailbox,
    clock: Clock,
    entropy: Entropy,
}

enum Backend {
    /// Prints to standard output, for development.
    Stdout,
    /// Writes one `.eml` file per mail.
    Folder(PathBuf),
    Smtp(Box<AsyncSmtpTransport<Tokio1Executor>>),
}

impl Transport {
    /// Sets up the transport for `mailer.url`, with the sender `mailer.from`.
    ///
    /// # Errors
    /// If the folder cannot be created, the URL does not name a mail server, or `from` is not an address.
    pub fn open(url: &str, from: &str, clock: Clock, entropy: Entropy) -> Result<Self, MailerError> {
        Ok(Self { backend: Backend::open(url)?, from: parse_sender(from)?, clock, entropy })
    }

    /// Whether an attempt to send a mail depends on its recipient, and may take long.
    pub fn may_hang(&self) -> bool {
        matches!(self.backend, Backend::Smtp(_))
    }

    /// Whether mails are only printed.
    pub fn only_prints(&self) -> bool {
        matches!(self.backend, Backend::Stdout)
    }

    /// Checks that the mail server answers. Does nothing for other backends.
    ///
    /// # Errors
    /// [`MailerError::Connect`] with the cause.
    pub async fn test_connection(&self) -> Result<(), MailerError> {
        match &self.backend {
            Backend::Stdout | Backend::Folder(_) => Ok(()),
            Backend::Smtp(server) => match timeout(TEST_TIMEOUT, server.test_connection()).await {
                Ok(Ok(true)) => Ok(()),
                Ok(Ok(false)) | Err(_) => Err(MailerError::Connect("no answer".to_owned())),
                Ok(Err(error)) => Err(MailerError::Connect(error.to_string())),
            },
        }
    }

    /// Makes one attempt to send a mail.
    ///
    /// # Errors
    /// If the mail cannot be composed, or the folder or the mail server does not accept it.
    pub async fn send(&self, mail: &Mail) -> Result<(), MailerError> {
        match &self.backend {
            Backend::Stdout => {
                print(mail);
                Ok(())
            }
            Backend::Folder(folder) => {
                let message = mail.compose(&self.from, &self.clock, &self.entropy)?;
                let at = self.clock.now().to_utc().format("%Y-%m-%dT%H-%M-%S%.6f");
                let name = format!("{at}-{}.eml", letters(&self.entropy));
                let unfinished = folder.join(format!(".{name}.part"));
                // Only its owner may read the file, because the mail contains a code.
                let mut file = tokio::fs::OpenOptions::new();
                let mut file = file.write(true).create_new(true).mode(0o600).open(&unfinished).await?;
                file.write_all(&message.formatted()).await?;
                file.flush().await?;
                Ok(tokio::fs::rename(unfinished, folder.join(name)).await?)
            }
            Backend::Smtp(server) => {
                let message = mail.compose(&self.from, &self.clock, &self.entropy)?;
                // Each mail has a connection of its own. A timeout closes it: one that is shared would be out of step.
                let sent = timeout(ATTEMPT_TIMEOUT, server.send(message)).await.map_err(|_| MailerError::TimedOut)?;
                sent.map(|_| ()).map_err(|error| match error.status() {
                    Some(code) => MailerError::Refused { code: code.into() },
                    None => MailerError::Server,
                })
            }
        }
    }
}

impl Backend {
    fn open(url: &str) -> Result<Self, MailerError> {
        if url == "log:" {
            return Ok(Self::Stdout);
        }
        if let Some(folder) = url.strip_prefix("file:") {
            let folder = PathBuf::from(folder.strip_prefix("//").unwrap_or(folder));
            DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|error| {
                MailerError::Setup(format!("mailer.url: cannot create the folder {}: {error}", folder.display()))
            })?;
            return Ok(Self::Folder(folder));
        }
        Ok(Self::Smtp(Box::new(smtp(url)?)))
    }
}

fn smtp(url: &str) -> Result<AsyncSmtpTransport<Tokio1Executor>, MailerError> {
    // For an `smtp://` URL without a `tls` parameter, lettre would not try TLS.
    let opportunistic = url.starts_with("smtp://") && !url.contains("tls=");
    let separator = if url.contains('?') { '&' } else { '?' };
    let url = if opportunistic { format!("{url}{separator}tls=opportunistic") } else { url.to_owned() };
    let builder = AsyncSmtpTransport::<Tokio1Executor>::from_url(&url).map_err(|_| {
        MailerError::Setup(
            "mailer.url takes smtp://USER:PASSWORD@HOST:PORT or smtps://…, with a percent-encoded password".to_owned(),
        )
    })?;
    Ok(builder.timeout(Some(CONNECT_TIMEOUT)).build())
}

/// Checks `mailer.url` and `mailer.from`, without a connection and without creating a folder.
///
/// # Errors
/// If either is invalid, or a start could not create or write to the folder of `mailer.url`.
pub fn check(url: &str, from: &str) -> Result<(), MailerError> {
    parse_sender(from)?;
    if url.starts_with("smtp") {
        smtp(url)?;
    }
    if let Some(folder) = url.strip_prefix("file:").map(|folder| Path::new(folder.strip_prefix("//").unwrap_or(folder)))
        && (folder.is_file() || !may_write(folder))
    {
        return Err(MailerError::Setup(format!(
            "mailer.url: cannot create or write to the folder {}",
            folder.display()
        )));
    }
    Ok(())
}

fn parse_sender(from: &str) -> Result<Mailbox, MailerError> {
    from.parse().map_err(|_| MailerError::Setup("mailer.from is not a mail address".to_owned()))
}

/// Prints a mail. Not through tracing, because the log must never contain a code.
#[expect(clippy::print_stdout, reason = "the development mailer's purpose")]
fn print(mail: &Mail) {
    let text = mail.text.trim_end().replace('\n', "\n  |  ");
    println!("\n  +-- mail to {}: {}\n  |  {text}\n  +--\n", mail.to.as_str(), mail.subject);
}

#[cfg(test)]
impl Transport {
    /// Writes into a folder, which need not exist yet.
    pub fn to_folder(folder: PathBuf) -> Self {
        Self {
            backend: Backend::Folder(folder),
            from: "sealwire@localhost".parse().unwrap(),
            clock: Clock::System,
            entropy: Entropy::from_system().unwrap(),
        }
    }
}
