//! A user's access settings, which decide who can reach it, and how they treat a sender.

use std::time::Duration;

pub use sealwire_protocol::{
    access::{AccessKey, Strangers},
    limits::MAX_BLOCKS,
};
use subtle::ConstantTimeEq;

use super::{Caller, Timestamp, UserId};

/// While a user has no access key, accounts younger than this are strangers to it.
pub const YOUNG_ACCOUNT: Duration = Duration::from_hours(7 * 24);

/// The access settings of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessSettings {
    /// The key that senders have to show.
    pub key: Option<AccessKey>,
    /// What senders may do who are strangers.
    pub strangers: Strangers,
}

/// New access settings, with what is only stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAccess {
    /// The settings.
    pub settings: AccessSettings,
    /// Whether the user accepts mail from sealed senders.
    pub sealed: bool,
}

/// How a user treats a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Not a stranger: no share is counted.
    Known,
    /// A stranger who may do what everybody may.
    Stranger,
    /// A stranger who shares what is left to strangers.
    LimitedStranger,
    /// A stranger for whom the user does not exist.
    Refused,
}

impl Admission {
    /// Whether the sender is a stranger.
    #[must_use]
    pub fn is_stranger(self) -> bool {
        self != Self::Known
    }
}

impl AccessSettings {
    /// How `owner`, whose settings these are, treats a caller that shows this key. The comparison takes the same time for
    /// all keys. A user's own devices are never strangers.
    #[must_use]
    pub fn admit(&self, owner: UserId, caller: &Caller, shown: Option<&AccessKey>, now: Timestamp) -> Admission {
        let is_known = match &self.key {
            _ if caller.user == owner => true,
            Some(key) => shown.is_some_and(|shown| bool::from(shown.0.ct_eq(&key.0))),
            None => caller.user_since + YOUNG_ACCOUNT <= now,
        };
        match self.strangers {
            _ if is_known => Admission::Known,
            Strangers::Allow => Admission::Stranger,
            Strangers::Limit => Admission::LimitedStranger,
            Strangers::Refuse => Admission::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::{DeviceId, SessionId};

    const OWNER: UserId = UserId(Uuid::from_u128(1));

    fn created() -> Timestamp {
        Timestamp::parse("2026-01-01T00:00:00Z").unwrap()
    }

    fn caller(user: UserId) -> Caller {
        Caller {
            session: SessionId(Uuid::from_u128(7)),
            user,
            device: DeviceId(Uuid::from_u128(8)),
            user_since: created(),
        }
    }

    #[test]
    fn with_a_key_a_stranger_is_who_does_not_show_it() {
        let settings = AccessSettings { key: Some(AccessKey([7; 16])), strangers: Strangers::Limit };
        let old = created() + Duration::from_hours(10_000);
        let admit = |shown: Option<AccessKey>, user| settings.admit(OWNER, &caller(user), shown.as_ref(), old);
        let other = UserId(Uuid::from_u128(2));
        assert_eq!(admit(Some(AccessKey([7; 16])), other), Admission::Known);
        let mut almost = [7; 16];
        almost[15] = 6;
        assert_eq!(admit(Some(AccessKey(almost)), other), Admission::LimitedStranger);
        assert_eq!(admit(None, other), Admission::LimitedStranger);
        assert_eq!(admit(None, OWNER), Admission::Known, "a user's own devices");
    }

    #[test]
    fn without_a_key_a_stranger_is_whose_account_is_younger_than_seven_days() {
        let settings = AccessSettings::default();
        assert_eq!(settings, AccessSettings { key: None, strangers: Strangers::Limit });
        let other = caller(UserId(Uuid::from_u128(2)));
        let admit = |hours: u64, settings: &AccessSettings| {
            settings.admit(OWNER, &other, Some(&AccessKey([1; 16])), created() + Duration::from_hours(hours))
        };
        assert_eq!(admit(0, &settings), Admission::LimitedStranger);
        assert_eq!(admit(7 * 24 - 1, &settings), Admission::LimitedStranger);
        assert_eq!(admit(7 * 24, &settings), Admission::Known);
        let with = |strangers| AccessSettings { key: None, strangers };
        assert_eq!(admit(0, &with(Strangers::Allow)), Admission::Stranger);
        assert_eq!(admit(0, &with(Strangers::Refuse)), Admission::Refused);
        assert_eq!(settings.admit(OWNER, &caller(OWNER), None, created()), Admission::Known);
    }
}
