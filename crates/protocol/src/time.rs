//! Timestamps: UTC with microseconds, the precision that databases store.

use std::{fmt, ops::Add, time::Duration};

use chrono::{DateTime, SecondsFormat, TimeDelta, Timelike, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A UTC instant in whole microseconds. Its text form is RFC 3339 with six decimals and `Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(DateTime<Utc>);

impl Timestamp {
    /// Truncates to microseconds, so that a value read back from a database equals the one written. A leap second,
    /// which many clients cannot parse, becomes the last microsecond before it.
    #[must_use]
    pub fn new(at: DateTime<Utc>) -> Self {
        let micros = at.nanosecond().min(999_999_999) / 1_000 * 1_000;
        Self(at.with_nanosecond(micros).unwrap_or(at))
    }

    /// Microseconds since 1970.
    #[must_use]
    pub fn as_micros(self) -> i64 {
        self.0.timestamp_micros()
    }

    /// Returns the instant as a `chrono` value.
    #[must_use]
    pub fn to_utc(self) -> DateTime<Utc> {
        self.0
    }

    /// Parses RFC 3339 text with any offset.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        DateTime::parse_from_rfc3339(text).ok().map(|at| Self::new(at.to_utc()))
    }

    /// The time from `earlier` to this instant; zero if `earlier` is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        (self.0 - earlier.0).to_std().unwrap_or(Duration::ZERO)
    }

    /// The instant `span` before this one; 1970 if that cannot be represented.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        TimeDelta::from_std(span)
            .ok()
            .and_then(|span| self.0.checked_sub_signed(span))
            .map_or(Self(DateTime::UNIX_EPOCH), Self)
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    /// Saturates at the last representable instant.
    fn add(self, span: Duration) -> Self {
        let last = Self(DateTime::<Utc>::MAX_UTC);
        TimeDelta::from_std(span).ok().and_then(|span| self.0.checked_add_signed(span)).map_or(last, Self::new)
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(at: DateTime<Utc>) -> Self {
        Self::new(at)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_rfc3339_opts(SecondsFormat::Micros, true))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextForm;
        impl de::Visitor<'_> for TextForm {
            type Value = Timestamp;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an RFC 3339 string")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
                Timestamp::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Other("text"), &self))
            }
        }
        // Deserializing a `String` would also accept the `bin` of MessagePack.
        deserializer.deserialize_str(TextForm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_six_decimals_and_z() {
        let at = Timestamp::parse("2026-11-23T10:00:00.1234567+01:00").unwrap();
        assert_eq!(at.to_string(), "2026-11-23T09:00:00.123456Z");
        assert_eq!(Timestamp::parse(&at.to_string()), Some(at));
    }

    #[test]
    fn a_leap_second_is_never_written() {
        for leap in ["2026-06-30T23:59:60Z", "2026-06-30T23:59:60.999999999Z", "2026-07-01T01:59:60.5+02:00"] {
            assert_eq!(Timestamp::parse(leap).unwrap().to_string(), "2026-06-30T23:59:59.999999Z");
        }
    }

    #[test]
    fn arithmetic_saturates() {
        let at = Timestamp::parse("2026-11-23T10:00:00Z").unwrap();
        assert_eq!((at + Duration::from_secs(5)).since(at), Duration::from_secs(5));
        assert_eq!(at.since(at + Duration::from_secs(5)), Duration::ZERO);
        assert!(at + Duration::MAX > at);
        assert!(at.before(Duration::MAX) < at);
    }
}
