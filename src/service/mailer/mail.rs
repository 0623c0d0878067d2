//! The texts of mails.

use std::time::Duration;

use lettre::{
    Message,
    message::{
        Body, Mailbox,
        header::{ContentTransferEncoding, ContentType},
    },
};
use rand::RngExt;

use super::MailerError;
use crate::{
    clock::{Clock, Entropy},
    domain::{ApprovalKind, Email, PendingApproval, otp::OtpCode},
};

/// A mail to one person.
pub struct Mail {
    pub(super) to: Email,
    pub(super) subject: &'static str,
    pub(super) text: String,
}

impl Mail {
    /// The mail with a sign-in code. The code is the only group of eight digits in it.
    pub fn code(to: Email, code: &OtpCode) -> Self {
        let text = format!(
            "Your code is {}\n\nIt works once, for ten minutes.\nIf you did not ask for it, ignore this mail.\n",
            code.as_str()
        );
        Self { to, subject: "Your sign-in code", text }
    }

    /// The mail that `sealwire check-config --mail-to` sends.
    pub fn test(to: Email) -> Self {
        let text =
            "This mail was sent by `sealwire check-config --mail-to`.\nThe settings of the mailer work.\n".to_owned();
        Self { to, subject: "A test mail of Sealwire", text }
    }

    /// The notice that a request waits for an approval, with the name of the device if it has one.
    pub fn approval_requested(to: Email, request: &PendingApproval) -> Self {
        let what = match request.kind {
            ApprovalKind::Device => "A new device wants to sign in to your account",
            ApprovalKind::ChangeEmail => "Somebody wants to change the address of your account",
        };
        let named = name_line(request.device_name.as_deref());
        let text = format!(
            "{what}, which is locked.\n{named}\nIt waits for one of your devices. If this was not you, deny it there,\n\
             or it is approved on {} (UTC).\n",
            request.decides_at.to_utc().format("%-d %B %Y at %H:%M")
        );
        Self { to, subject: "A request waits for your approval", text }
    }

    /// The notice that the account was locked.
    pub fn locked(to: Email) -> Self {
        let text = "Your account is locked now: a new device needs an approval.\n\
                    If this was not you, unlock it with one of your devices.\n";
        Self { to, subject: "Your account was locked", text: text.to_owned() }
    }

    /// The notice that the account was unlocked.
    pub fn unlocked(to: Email) -> Self {
        let text = "Your account is not locked any more: a new device needs only a code.\n\
                    If this was not you, lock it again with one of your devices.\n";
        Self { to, subject: "Your account was unlocked", text: text.to_owned() }
    }

    /// The notice that a device was added, with the device's name if it has one.
    pub fn device_added(to: Email, name: Option<&str>) -> Self {
        let named = name_line(name);
        let text = format!(
            "A new device has signed in to your account.\n{named}\n\
             If this was not you, revoke it from one of your other devices.\n"
        );
        Self { to, subject: "A device was added to your account", text }
    }

    /// Builds the message to send.
    ///
    /// # Errors
    /// [`MailerError::Compose`]
    pub(super) fn compose(&self, from: &Mailbox, clock: &Clock, entropy: &Entropy) -> Result<Message, MailerError> {
        let to = self.to.as_str().parse().map_err(|_| MailerError::Compose)?;
        // The lines are short ASCII, so the text stays readable in the raw mail.
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

/// The line with the name of a device, if it has one. The name is chosen by the client that entered the code. Only its
/// ASCII letters are shown, so that nothing in it looks like a code.
fn name_line(name: Option<&str>) -> String {
    let shown = |name: &str| name.chars().filter(|c| c.is_ascii_alphabetic() || *c == ' ').collect::<String>();
    let name = name.map(shown).filter(|name| !name.trim().is_empty());
    // On a line of its own: even with 64 characters the line is short enough to need no encoding.
    name.map(|name| format!("Name: {}\n", name.trim())).unwrap_or_default()
}

/// Returns twenty random letters. They contain no digits, so they never look like a code.
pub(super) fn letters(entropy: &Entropy) -> String {
    entropy.draw(|rng| (0..20).map(|_| char::from(rng.random_range(b'a'..=b'z'))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_readable_in_the_raw_mail_and_a_device_name_cannot_imitate_one() {
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
