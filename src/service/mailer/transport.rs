//! How one mail leaves the server: to standard output, into a folder, or over SMTP.

use std::{path::PathBuf, time::Duration};

use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor, message::Mailbox};

use super::{
    MailerError,
    mail::{Mail, letters},
};
use crate::clock::{Clock, Entropy};

/// How long one step of an SMTP conversation may take.
pub const SMTP_TIMEOUT: Duration = Duration::from_secs(15);

/// Sends mails from one sender.
pub struct Transport {
    way: Way,
    from: Mailbox,
    clock: Clock,
    entropy: Entropy,
}

enum Way {
    /// Standard output, for development.
    Print,
    /// One `.eml` file a mail.
    Folder(PathBuf),
    Smtp(Box<AsyncSmtpTransport<Tokio1Executor>>),
}

impl Transport {
    /// Sets up a checked `mailer.url` with the sender `mailer.from`.
    ///
    /// # Errors
    /// If the folder cannot be made, the URL names no mail server, or the sender is not an address.
    pub fn open(url: &str, from: &str, clock: Clock, entropy: Entropy) -> Result<Self, MailerError> {
        let from = from.parse().map_err(|_| MailerError::Setup("mailer.from is not an address".to_owned()))?;
        Ok(Self { way: Way::open(url)?, from, clock, entropy })
    }

    /// Sends a mail. Tries once.
    ///
    /// # Errors
    /// If it cannot be composed, or the folder or the mail server does not take it.
    pub async fn send(&self, mail: &Mail) -> Result<(), MailerError> {
        match &self.way {
            Way::Print => {
                print(mail);
                Ok(())
            }
            Way::Folder(folder) => {
                let message = mail.compose(&self.from, &self.clock, &self.entropy)?;
                let at = self.clock.now().to_utc().format("%Y-%m-%dT%H-%M-%S%.6f");
                let name = format!("{at}-{}.eml", letters(&self.entropy));
                let unfinished = folder.join(format!(".{name}.part"));
                tokio::fs::write(&unfinished, message.formatted()).await?;
                Ok(tokio::fs::rename(unfinished, folder.join(name)).await?)
            }
            Way::Smtp(server) => {
                let message = mail.compose(&self.from, &self.clock, &self.entropy)?;
                server.send(message).await.map(|_| ()).map_err(|error| match error.status() {
                    Some(code) => MailerError::Refused { code: code.into() },
                    None => MailerError::Server,
                })
            }
        }
    }
}

impl Way {
    fn open(url: &str) -> Result<Self, MailerError> {
        if url == "log:" {
            return Ok(Self::Print);
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
}

/// Not through tracing: a developer who chose `log:` wants to read the code, and no log may hold one.
#[expect(clippy::print_stdout, reason = "the development mailer's purpose")]
fn print(mail: &Mail) {
    println!("mail to {}: {}: {}", mail.to.as_str(), mail.subject, mail.text.replace('\n', " "));
}

#[cfg(test)]
impl Transport {
    /// Into a folder, which need not exist yet.
    pub fn to_folder(folder: PathBuf) -> Self {
        Self {
            way: Way::Folder(folder),
            from: "sealwire@localhost".parse().unwrap(),
            clock: Clock::System,
            entropy: Entropy::from_system().unwrap(),
        }
    }
}
