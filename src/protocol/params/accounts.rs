//! Signing in, devices, other people.

use serde::Deserialize;

use crate::{
    domain::{ChallengeId, DeviceId, Email, Refusal, otp::OtpCode},
    protocol::value::{Object, Text},
};

/// Characters of a device name.
const NAME_CHARS: std::ops::RangeInclusive<usize> = 1..=64;
/// Registration ids of the Signal libraries, which use 14 bits and keep 0 free.
const REGISTRATION_IDS: std::ops::RangeInclusive<u32> = 1..=16380;

/// `POST /v1/auth/otp`
#[derive(Deserialize)]
pub struct OtpBody {
    email: Text,
}

impl OtpBody {
    /// The address.
    ///
    /// # Errors
    /// `bad_request` where it is none.
    pub fn email(&self) -> Result<Email, Refusal> {
        parse_email(&self.email)
    }
}

/// `POST /v1/auth/verify`
#[derive(Deserialize)]
pub struct VerifyBody {
    /// As answered by `otp`.
    pub challenge_id: ChallengeId,
    email: Text,
    code: Text,
    device: Option<Object<DeviceBody>>,
    /// A device of the user to revoke in exchange.
    pub replace_device_id: Option<DeviceId>,
}

impl VerifyBody {
    /// The address.
    ///
    /// # Errors
    /// `bad_request` where it is none.
    pub fn email(&self) -> Result<Email, Refusal> {
        parse_email(&self.email)
    }

    /// The guess.
    ///
    /// # Errors
    /// `bad_request` where it is not eight digits; such a guess is not counted.
    pub fn code(&self) -> Result<OtpCode, Refusal> {
        OtpCode::parse(self.code.as_str()).ok_or_else(|| Refusal::BadRequest("a code has eight digits".into()))
    }

    /// Which device signs in.
    ///
    /// # Errors
    /// `bad_request` for a wrong name or registration id, or where an existing device would replace another.
    pub fn device(&mut self) -> Result<DeviceBody, Refusal> {
        let device = self.device.take().map_or_else(DeviceBody::default, |device| device.0);
        device.check()?;
        if device.id.is_some() && self.replace_device_id.is_some() {
            return Err(Refusal::BadRequest("replace_device_id does not go with device.id".into()));
        }
        Ok(device)
    }
}

/// The `device` of [`VerifyBody`].
#[derive(Default, Deserialize)]
pub struct DeviceBody {
    /// An existing device; a new one is made without.
    pub id: Option<DeviceId>,
    /// For people.
    pub name: Option<Text>,
    /// For the client's library.
    pub registration_id: Option<u32>,
}

impl DeviceBody {
    fn check(&self) -> Result<(), Refusal> {
        if let Some(name) = &self.name {
            check_name(name)?;
        }
        match self.registration_id {
            Some(id) if !REGISTRATION_IDS.contains(&id) => {
                Err(Refusal::BadRequest("registration_id is 1 to 16380".into()))
            }
            _ => Ok(()),
        }
    }
}

fn check_name(name: &Text) -> Result<(), Refusal> {
    if NAME_CHARS.contains(&name.as_str().chars().count()) {
        Ok(())
    } else {
        Err(Refusal::BadRequest("a name has 1 to 64 characters".into()))
    }
}

/// `devices.rename`
#[derive(Deserialize)]
pub struct Rename {
    /// The asking device if absent.
    pub device_id: Option<DeviceId>,
    name: Text,
}

impl Rename {
    /// The new name.
    ///
    /// # Errors
    /// `bad_request` where it is empty or too long.
    pub fn name(&self) -> Result<&str, Refusal> {
        check_name(&self.name).map(|()| self.name.as_str())
    }
}

/// `devices.revoke`
#[derive(Deserialize)]
pub struct Revoke {
    /// Any device of the user.
    pub device_id: DeviceId,
}

/// `users.find`
#[derive(Deserialize)]
pub struct Find {
    email: Text,
}

impl Find {
    /// The address.
    ///
    /// # Errors
    /// `bad_request` where it is none.
    pub fn email(&self) -> Result<Email, Refusal> {
        parse_email(&self.email)
    }
}

fn parse_email(text: &Text) -> Result<Email, Refusal> {
    Email::parse(text.as_str()).ok_or_else(|| Refusal::BadRequest("not an e-mail address".into()))
}
