//! Who may reach a user: the ops `access.set`, `blocks.add`, `blocks.remove` and `blocks.list`, and the access key that
//! a sender shows to a recipient.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::Error};

use crate::{
    frame::{EmptyReply, Op, SocketRequest},
    ids::UserId,
    limits::ACCESS_KEY_BYTES,
    value::{Base64, Named, StringOnly},
};

/// `access.set`: replaces the user's access settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAccessRequest {
    /// The access key that senders have to show, 16 bytes; if absent, the user has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<AccessKey>,
    /// What strangers may do: senders who do not show the key or, while there is none, whose account is younger than
    /// seven days.
    pub strangers: Named<Strangers>,
    /// Whether the user accepts mail from sealed senders; false if absent. It is stored for later versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sealed: Option<bool>,
}

impl SocketRequest for SetAccessRequest {
    const OP: Op = Op::AccessSet;
    type Reply = EmptyReply;
}

/// What strangers may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strangers {
    /// What everybody may do.
    Allow,
    /// They share a part of each mailbox and a number of one-time keys an hour of each device.
    #[default]
    Limit,
    /// Nothing: they get the answers for a user that does not exist.
    Refuse,
}

impl Strangers {
    /// All values.
    pub const ALL: [Self; 3] = [Self::Allow, Self::Limit, Self::Refuse];

    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Limit => "limit",
            Self::Refuse => "refuse",
        }
    }

    /// The value with exactly this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }
}

/// The secret that a user gives to the people it knows, 16 bytes. Base64 text in both encodings. `Debug` does not show
/// it.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKey(pub [u8; ACCESS_KEY_BYTES]);

impl AccessKey {
    /// Decodes base64 text; `None` unless it is that of 16 bytes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Base64::parse(text)?.0.try_into().ok().map(Self)
    }
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an access key")
    }
}

impl Serialize for AccessKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Base64(self.0.to_vec()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for AccessKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(StringOnly("16 bytes in base64", Self::parse))
    }
}

/// The access key that a sender shows. Any text is accepted: one that is not the base64 of 16 bytes is a wrong key, which
/// the server treats like an absent one. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct ShownKey(pub Option<AccessKey>);

impl fmt::Debug for ShownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an access key")
    }
}

impl Serialize for ShownKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_ref().ok_or_else(|| S::Error::custom("a malformed key is not sent"))?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ShownKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(StringOnly("text", |text: &str| Some(Self(AccessKey::parse(text)))))
    }
}

/// `blocks.add`: drops messages from a user from now on. Repeatable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddBlockRequest {
    /// Any user but the requesting one. Whether it exists is not checked.
    pub user_id: UserId,
}

impl SocketRequest for AddBlockRequest {
    const OP: Op = Op::BlocksAdd;
    type Reply = EmptyReply;
}

/// `blocks.remove`: accepts messages from a user again. Repeatable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveBlockRequest {
    /// Any user.
    pub user_id: UserId,
}

impl SocketRequest for RemoveBlockRequest {
    const OP: Op = Op::BlocksRemove;
    type Reply = EmptyReply;
}

/// `blocks.list`: no parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListBlocksRequest {}

/// The result of `blocks.list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListBlocksReply {
    /// The blocked users, at most [`MAX_BLOCKS`](crate::limits::MAX_BLOCKS), in the order of their ids.
    pub user_ids: Vec<UserId>,
}

impl SocketRequest for ListBlocksRequest {
    const OP: Op = Op::BlocksList;
    type Reply = ListBlocksReply;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Codec;

    #[test]
    fn any_text_is_an_access_key_but_only_16_bytes_can_be_the_right_one() {
        let shown = |text: &str| Codec::Json.decode::<ShownKey>(text.as_bytes()).ok().map(|shown| shown.0.is_some());
        assert_eq!(shown("\"AAAAAAAAAAAAAAAAAAAAAA==\""), Some(true));
        assert_eq!(shown("\"AAAAAAAAAAAAAAAAAAAAAA\""), Some(true));
        for wrong in ["\"\"", "\"AAAA\"", "\"*\"", "\"a\\u0000\"", "\"AAAAAAAAAAAAAAAAAAAAAAAA\""] {
            assert_eq!(shown(wrong), Some(false), "{wrong}");
        }
        for not_text in ["5", "null", "[]", "{}", "true"] {
            assert_eq!(shown(not_text), None, "{not_text}");
        }
        assert!(Codec::MsgPack.decode::<ShownKey>(b"\xc4\x02hi").is_err(), "bin is not text");
        assert!(Codec::Json.decode::<AccessKey>(b"\"AAAA\"").is_err());
    }

    #[test]
    fn a_key_is_not_shown_by_debug() {
        let request =
            SetAccessRequest { key: Some(AccessKey([7; 16])), strangers: Strangers::Refuse.into(), sealed: None };
        let shown = format!("{request:?} {:?}", ShownKey(request.key.clone()));
        assert!(!shown.contains('7') && !shown.contains("BwcH"), "{shown}");
    }
}
