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
    domain::{
        ApprovalKind, ClientNetwork, Email, PendingApproval, Timestamp,
        otp::{CodePurpose, OtpCode},
    },
};

/// A mail to one person.
pub struct Mail {
    pub(super) to: Email,
    pub(super) subject: &'static str,
    pub(super) text: String,
    /// The network of the client that caused it, if a client did.
    pub(super) network: Option<ClientNetwork>,
    /// Whether it tells the owner of an account what happened. Otherwise it has a code.
    pub(super) is_notice: bool,
}

impl Mail {
    fn notice(to: Email, subject: &'static str, text: String) -> Self {
        Self { to, subject, text, network: None, is_notice: true }
    }

    /// The mail with a code, which says what the code does. The code is the only group of eight digits in it.
    pub fn code(to: Email, code: &OtpCode, purpose: CodePurpose) -> Self {
        let (subject, effect, advice) = match purpose {
            CodePurpose::SignIn => (
                "Your sign-in code",
                "It signs a device in.",
                "If you did not ask for it, ignore this mail, and give the code to nobody.",
            ),
            CodePurpose::Delete => (
                "Your code to delete your account",
                "It deletes your account for good, with all devices and waiting messages.",
                "If you do not want that, ignore this mail, and give the code to nobody.",
            ),
            CodePurpose::ChangeEmail => (
                "Your code to change the address of an account",
                "It makes this the address of the account that asked for it.",
                "If you did not ask for it, ignore this mail, and give the code to nobody.",
            ),
        };
        let code = code.as_str();
        let text = format!("Your code is {code}\n\n{effect}\nIt works once, for ten minutes.\n{advice}\n");
        Self { to, subject, text, network: None, is_notice: false }
    }

    /// The same mail, caused by a client in this network; `None` if no client caused it.
    #[must_use]
    pub fn caused_from(self, network: Option<ClientNetwork>) -> Self {
        Self { network, ..self }
    }

    /// The mail that `sealwire check-config --mail-to` sends.
    pub fn test(to: Email) -> Self {
        let text =
            "This mail was sent by `sealwire check-config --mail-to`.\nThe settings of the mailer work.\n".to_owned();
        Self::notice(to, "A test mail of Sealwire", text)
    }

    /// The notice that a request waits for an approval, with the name of the device if it has one.
    pub fn approval_requested(to: Email, request: &PendingApproval, now: Timestamp) -> Self {
        let what = match request.kind {
            ApprovalKind::Device => "A new device wants to sign in to your account",
            ApprovalKind::ChangeEmail => "Somebody wants to change the address of your account",
        };
        let named = name_line(request.device_name.as_deref());
        let when = if request.decides_at > now {
            format!("on {} (UTC)", request.decides_at.to_utc().format("%-d %B %Y at %H:%M"))
        } else {
            "as soon as your account has a place for another device".to_owned()
        };
        let text = format!(
            "{what}, which is locked.\n{named}\nIt waits for one of your devices. If this was not you, deny it there,\n\
             or it is approved {when}.\n"
        );
        Self::notice(to, "A request waits for your approval", text)
    }

    /// The notice that the account was locked.
    pub fn locked(to: Email) -> Self {
        let text = "Your account is locked now: a new device needs an approval.\n\
                    If this was not you, unlock it with one of your devices.\n";
        Self::notice(to, "Your account was locked", text.to_owned())
    }

    /// The notice that the account was unlocked.
    pub fn unlocked(to: Email) -> Self {
        let text = "Your account is not locked any more: a new device needs only a code.\n\
                    If this was not you, lock it again with one of your devices.\n";
        Self::notice(to, "Your account was unlocked", text.to_owned())
    }

    /// The notice that somebody has entered many wrong codes for the address.
    pub fn codes_guessed(to: Email) -> Self {
        let text = "Somebody has entered many wrong codes for your account today.\n\n\
             Nobody has signed in that way. You need not do anything: your devices stay\n\
             signed in, and you can sign in as usual. If you lock your account in the\n\
             app, a code alone signs in no new device.\n"
            .to_owned();
        Self::notice(to, "Somebody tries to guess your sign-in codes", text)
    }

    /// The notice that a device was added, with the device's name if it has one.
    pub fn device_added(to: Email, name: Option<&str>) -> Self {
        let text = format!(
            "A new device has signed in to your account.\n{}\n\
             If this was not you, somebody has read a code in your mail. Secure your\n\
             mailbox, and remove the device from one of your other devices.\n",
            name_line(name)
        );
        Self::notice(to, "A device was added to your account", text)
    }

    /// The notice that a device signed in again, with the device's name if it has one.
    pub fn signed_in_again(to: Email, name: Option<&str>) -> Self {
        let text = format!(
            "One of your devices has signed in to your account again.\n{}\n\
             If this was not you, somebody has read a code in your mail. Secure your\n\
             mailbox, and end the session from one of your devices.\n",
            name_line(name)
        );
        Self::notice(to, "A device signed in to your account again", text)
    }

    /// The notice that a device was revoked or replaced, with the device's name if it has one.
    pub fn device_revoked(to: Email, name: Option<&str>) -> Self {
        let text = format!(
            "A device was removed from your account.\n{}\n\
             If this was not you, look at the list of your devices in the app, and\n\
             remove those that you do not know.\n",
            name_line(name)
        );
        Self::notice(to, "A device was removed from your account", text)
    }

    /// The notice that the account was deleted.
    pub fn account_deleted(to: Email) -> Self {
        let text = "Your account was deleted, with all its devices and waiting messages.\n\n\
             If this was not you, somebody has used one of your devices and read a\n\
             code in your mail. Secure your mailbox. You can sign in as a new user.\n"
            .to_owned();
        Self::notice(to, "Your account was deleted", text)
    }

    /// The notice to the old address that the account has another one now.
    pub fn address_changed(to: Email) -> Self {
        let text = "The address of your account was changed.\n\
             This address no longer signs in to it.\n\n\
             If this was not you, remove the devices that you do not know from one of\n\
             your own devices, and change the address back there.\n"
            .to_owned();
        Self::notice(to, "The address of your account was changed", text)
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

/// The line with a device's name, if there is a name to show. Clients that enter a code choose it, so only its ASCII letters
/// are shown: nothing in it can look like a code. Even with 64 characters the line is short enough to need no encoding.
fn name_line(name: Option<&str>) -> String {
    let letters = |name: &str| name.chars().filter(|c| c.is_ascii_alphabetic() || *c == ' ').collect::<String>();
    let shown = name.map(letters).filter(|name| !name.trim().is_empty());
    shown.map(|name| format!("Name: {}\n", name.trim())).unwrap_or_default()
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
        for purpose in CodePurpose::ALL {
            let raw = raw(Mail::code(to(), &code, purpose));
            assert!(raw.contains("Your code is 12345678\r\n"), "{raw}");
            assert_eq!(raw.matches("12345678").count(), 1, "{raw}");
        }
        let name = "x".repeat(64);
        for name in
            [None, Some(name.as_str()), Some("Bob's phone 12345678"), Some("\r\nBcc: eve@example.org"), Some("電話")]
        {
            for mail in [
                Mail::device_added(to(), name),
                Mail::signed_in_again(to(), name),
                Mail::device_revoked(to(), name),
                Mail::account_deleted(to()),
                Mail::codes_guessed(to()),
                Mail::address_changed(to()),
            ] {
                let raw = raw(mail);
                assert!(!raw.contains("12345678") && !raw.contains("\nBcc"), "{raw}");
                assert!(raw.lines().all(|line| line.len() <= 78 && line.is_ascii()), "{raw}");
            }
        }
    }
}
