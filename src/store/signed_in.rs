//! Opens the session of a sign-in, with a code or by an approval, and adds or revokes devices for it.

use super::{
    DeviceRecord, NewSession, RevokedDevice, StoreError, accounts,
    challenges::{self, NetworkTag},
    devices, sessions,
    sql::{accounts as sql, mailbox},
    tx::Tx,
};
use crate::domain::{Caller, DeviceId, Email, Refusal, SessionId, Timestamp, UserId, refusal::DeviceChoice};

/// The device that a sign-in adds unless it names an existing one.
#[derive(Clone, Debug)]
pub struct NewDevice {
    /// The id of the new device.
    pub id: DeviceId,
    /// A display name.
    pub name: Option<String>,
    /// The device's number in the client's Signal library.
    pub registration_id: u32,
}

/// A device that was signed in.
#[derive(Clone, Debug)]
pub struct SignedIn {
    /// The new session with its user and device.
    pub caller: Caller,
    /// The address of the user.
    pub email: Email,
    /// When the session expires.
    pub expires_at: Timestamp,
    /// Whether the user was created.
    pub user_is_new: bool,
    /// Whether a device was added.
    pub device_is_new: bool,
    /// The display name of the device that signed in.
    pub device_name: Option<String>,
    /// Earlier sessions of the device that ended, because it had the maximum number.
    pub ended: Vec<SessionId>,
    /// The device that was revoked.
    pub replaced: Option<RevokedDevice>,
    /// The user's other active devices, without the new and the replaced one.
    pub others: Vec<DeviceId>,
}

/// The refusal if the user has too many active devices for one more, once `replaced` is revoked.
pub(super) fn device_limit(active: &[DeviceRecord], replaced: Option<DeviceId>, max_devices: usize) -> Option<Refusal> {
    if active.len() - usize::from(replaced.is_some()) < max_devices {
        return None;
    }
    let choice = |device: &DeviceRecord| DeviceChoice {
        device_id: device.id,
        name: device.name.clone(),
        last_seen: device.last_seen,
    };
    Some(Refusal::DeviceLimit { devices: active.iter().map(choice).collect() })
}

/// Adds or revokes devices as requested, opens the session, and remembers the network of the client. The caller has locked
/// the user and checked the devices.
#[expect(clippy::too_many_arguments, reason = "what a sign-in and an approval have in common")]
pub(super) async fn open_session(
    tx: &mut Tx<'_>,
    user: UserId,
    active: Vec<DeviceRecord>,
    existing_device: Option<DeviceId>,
    new_device: NewDevice,
    replaced: Option<DeviceId>,
    session: &NewSession,
    network: Option<&NetworkTag>,
    now: Timestamp,
) -> Result<SignedIn, StoreError> {
    let revoked = match replaced {
        Some(replaced) => devices::revoke(tx, replaced, user, now).await?,
        None => None,
    };
    let device = existing_device.unwrap_or(new_device.id);
    let device_is_new = existing_device.is_none();
    let mut ended = Vec::new();
    let device_name = if device_is_new {
        insert_device(tx, user, &new_device, now).await?;
        new_device.name
    } else {
        ended = sessions::make_room(tx, device, now).await?;
        active.iter().find(|known| known.id == device).and_then(|known| known.name.clone())
    };
    let (email, user_since) = accounts::email_and_start(tx, user).await?;
    let caller = Caller { session: session.id, user, device, user_since };
    sessions::insert(tx, &caller, session, now, None).await?;
    challenges::reset_guesses(tx, &email).await?;
    if let Some(network) = network {
        challenges::know_network(tx, user, network, now).await?;
    }
    let others = active.into_iter().map(|known| known.id);
    let others = others.filter(|id| *id != device && Some(*id) != replaced).collect();
    Ok(SignedIn {
        caller,
        email,
        expires_at: session.expires_at,
        user_is_new: false,
        device_is_new,
        device_name,
        ended,
        replaced: revoked,
        others,
    })
}

/// Inserts a device with an empty mailbox.
pub(super) async fn insert_device(
    tx: &mut Tx<'_>,
    user: UserId,
    new: &NewDevice,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.query(sql::INSERT_DEVICE)
        .bind(new.id.0)
        .bind(user.0)
        .bind(new.name.as_deref())
        .bind(i64::from(new.registration_id))
        .bind(now.to_utc())
        .execute()
        .await?;
    tx.query(mailbox::INSERT_MAILBOX).bind(new.id.0).execute().await?;
    Ok(())
}
