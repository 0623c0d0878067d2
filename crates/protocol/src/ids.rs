//! Identifiers. Each kind is a UUID with its own type, so that a device id cannot be used as a user id.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

/// Length of the only accepted text form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
const HYPHENATED: usize = 36;

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Parses the hyphenated text form. Upper case is accepted and becomes lower case.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                if text.len() != HYPHENATED {
                    return None;
                }
                Uuid::try_parse(text).ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                // Text in MessagePack too, where `Uuid` would serialize as 16 bytes of bin.
                serializer.collect_str(&self.0.hyphenated())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct TextForm;
                impl de::Visitor<'_> for TextForm {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a UUID string")
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        $name::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Other("text"), &self))
                    }
                }
                deserializer.deserialize_str(TextForm)
            }
        }
    )*};
}

id! {
    /// A user: one verified e-mail address.
    UserId;
    /// One installation of a client; it owns keys, sessions and a mailbox.
    DeviceId;
    /// One sign-in of a device.
    SessionId;
    /// One sign-in code sent by mail.
    ChallengeId;
    /// One request that a device of the user has to approve.
    ApprovalId;
    /// One claim of prekeys, chosen by the client. A repeat with the same id gets the same keys.
    ClaimId;
    /// A message, chosen by the sending device; the same for all receiving devices.
    MessageId;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hyphenated_form_is_accepted() {
        let id = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        assert_eq!(DeviceId::parse(id).unwrap().to_string(), id);
        assert_eq!(DeviceId::parse(&id.to_uppercase()).unwrap().to_string(), id);
        for wrong in [
            "",
            "67e5504410b1426f9247bb680e5fe0c8",
            "{67e55044-10b1-426f-9247-bb680e5fe0c8}",
            "g7e55044-10b1-426f-9247-bb680e5fe0c8",
        ] {
            assert_eq!(DeviceId::parse(wrong), None, "{wrong}");
        }
    }
}
