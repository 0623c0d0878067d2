//! E-mail addresses in the normalized form used for storage, rate limits and comparison.

use std::fmt;

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

/// Longest address that fits an SMTP path (RFC 5321, 4.5.3.1.3, less the angle brackets).
const MAX_BYTES: usize = 254;
/// Longest local part (RFC 5321, 4.5.3.1.1).
const MAX_LOCAL_BYTES: usize = 64;

/// A normalized address: trimmed, local part in lower case, domain in ASCII form. `Debug` does not show it, because
/// addresses must never be logged.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Email(String);

impl Email {
    /// Parses user input; `None` if it is invalid. The local part must be a dot-atom (RFC 5322, 3.2.3; quoted strings
    /// and non-ASCII local parts are refused), and IDNA must be able to encode the domain.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.len() > MAX_BYTES {
            return None;
        }
        let (local, domain) = text.rsplit_once('@')?;
        let local_fits = !local.is_empty() && local.len() <= MAX_LOCAL_BYTES;
        let dot_atom = local.split('.').all(|atom| !atom.is_empty() && atom.bytes().all(is_atext));
        if !local_fits || !dot_atom {
            return None;
        }
        // Hyphens in third and fourth place are allowed ("ab--cd.example"), because such domains are in use. Invalid
        // A-labels are refused.
        let domain =
            Uts46::new().to_ascii(domain.as_bytes(), AsciiDenyList::STD3, Hyphens::CheckFirstLast, DnsLength::Verify);
        let domain = domain.ok()?;
        let labels = !domain.is_empty() && domain.split('.').all(|label| !label.is_empty());
        let address = format!("{}@{domain}", local.to_ascii_lowercase());
        (labels && address.len() <= MAX_BYTES).then_some(Self(address))
    }

    /// The normalized address.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The domain.
    #[must_use]
    pub fn domain(&self) -> &str {
        self.0.rsplit_once('@').map_or("", |(_, domain)| domain)
    }

    /// The address by which limits count: without the tag that begins at the first plus of the local part, because many
    /// providers deliver `user+tag@` to `user@`.
    #[must_use]
    pub fn without_tag(&self) -> String {
        match self.0.split_once('@') {
            Some((local, domain)) => format!("{}@{domain}", local.split('+').next().unwrap_or_default()),
            None => self.0.clone(),
        }
    }
}

/// RFC 5322 `atext`.
fn is_atext(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte)
}

impl fmt::Debug for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Email(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_normalized() {
        for (typed, stored) in [
            (" Alice@Example.ORG\n", "alice@example.org"),
            ("a.b+tag@bücher.example", "a.b+tag@xn--bcher-kva.example"),
            ("root@localhost", "root@localhost"),
            ("user@ab--cd.example", "user@ab--cd.example"),
            ("user@xn--bcher-kva.example", "user@xn--bcher-kva.example"),
            (" User+Tag@Example.ORG ", "user+tag@example.org"),
        ] {
            assert_eq!(Email::parse(typed).unwrap().as_str(), stored);
        }
    }

    #[test]
    fn a_tag_begins_at_the_first_plus() {
        for (address, untagged) in [
            ("user@example.org", "user@example.org"),
            ("user+tag@example.org", "user@example.org"),
            ("a.b+one+two@example.org", "a.b@example.org"),
            ("+tag@example.org", "@example.org"),
        ] {
            assert_eq!(Email::parse(address).unwrap().without_tag(), untagged);
        }
    }

    #[test]
    fn invalid_addresses_are_refused() {
        let long = format!("{}@example.org", "a".repeat(65));
        let longer = format!("a@{}.org", "x.".repeat(130));
        for wrong in [
            "",
            "@",
            "a@",
            "@b",
            "a b@c.d",
            "a@b c",
            "a@@b",
            "a..b@c.d",
            ".a@b.c",
            "a.@b.c",
            "a@b..c",
            "a\0@b.c",
            "a@b\0.c",
            "a\r\nBcc:x@b.c",
            "<a@b.c>",
            "é@b.c",
            "a@[127.0.0.1]",
            "a@.b",
            "a@xn--.example",
            "a@xn--a-.example",
            "a@-b.example",
            "a@b-.example",
            &long,
            &longer,
        ] {
            assert!(Email::parse(wrong).is_none(), "{wrong:?}");
        }
    }
}
