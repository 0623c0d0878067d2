//! Assembles bundles without one-time keys from the signed keys of devices, with the reason for each device that has
//! none.
//!
//! Shared by fetches and claims. It is set-based: the devices of all users that a batch names are read at once.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Store, StoreError, access, rows, sessions,
    sql::{accounts, keys as sql},
    tx::Tx,
};
use crate::domain::{
    AccessKey, AccessSettings, Admission, Bundle, Bundles, Caller, DeviceId, OneTimeOutcome, Refusal, Timestamp,
    UserId,
    access::Strangers,
    bundle::{EncodedKey, IssuedPqPrekey, SignedPrekey, Unavailable, UnavailableReason, UsableSuites},
};

/// An active device with its signed keys; they are `None` if it has not published.
struct TargetDevice {
    user: Uuid,
    device: Uuid,
    registration_id: i64,
    suite: Option<String>,
    identity_key: Option<String>,
    key_id: Option<i64>,
    public_key: Option<String>,
    signature: Option<String>,
    expires_at: Option<DateTime<Utc>>,
}

/// The columns of a [`TargetDevice`], and access key and `strangers` of its user.
type TargetDeviceRow = (
    Uuid,
    Uuid,
    i64,
    Option<String>,
    Option<String>,
    Option<i64>,
    Option<String>,
    Option<String>,
    Option<DateTime<Utc>>,
    Option<Vec<u8>>,
    String,
);

impl TargetDevice {
    /// The device of a row, and the access settings of its user.
    fn from_row(row: TargetDeviceRow) -> Result<(Self, AccessSettings), StoreError> {
        let (user, device, registration_id, suite, identity_key, key_id, public_key, signature, expires_at, ..) = row;
        let target =
            Self { user, device, registration_id, suite, identity_key, key_id, public_key, signature, expires_at };
        Ok((target, access::settings(row.9, &row.10)?))
    }

    fn has_published(&self) -> bool {
        self.suite.is_some()
    }

    /// The device's bundle without one-time keys, or the reason why it has none.
    fn bundle(&self, suites: &UsableSuites, now: Timestamp) -> Result<Result<Bundle, Unavailable>, StoreError> {
        let device_id = DeviceId(self.device);
        let unavailable = |reason| Ok(Err(Unavailable { device_id, reason }));
        let (Some(suite), Some(identity_key)) = (&self.suite, &self.identity_key) else {
            return unavailable(UnavailableReason::NoKeys);
        };
        let suite = rows::suite(suite)?;
        if !suites.contains(suite) {
            return unavailable(UnavailableReason::OtherSuite);
        }
        let signed_prekey = match (self.key_id, &self.public_key, &self.signature, self.expires_at.map(rows::time)) {
            (Some(key_id), Some(key), Some(signature), Some(expires_at)) if expires_at > now => SignedPrekey {
                key_id: rows::number(key_id)?,
                public_key: EncodedKey(key.clone()),
                signature: EncodedKey(signature.clone()),
                expires_at,
            },
            _ => return unavailable(UnavailableReason::SignedPrekeyExpired),
        };
        Ok(Ok(Bundle {
            device_id,
            registration_id: rows::number(self.registration_id)?,
            suite,
            identity_key: EncodedKey(identity_key.clone()),
            signed_prekey,
            one_time_prekey: None,
            one_time: OneTimeOutcome::NotRequested,
            pq_prekey: None,
        }))
    }
}

/// Who asks for the keys of a user.
#[derive(Clone, Copy)]
pub(super) struct Inquiry<'a> {
    pub(super) caller: &'a Caller,
    /// The user whose keys are asked for.
    pub(super) user: UserId,
    /// The access key that the caller shows, if it has the form of one.
    pub(super) access: Option<&'a AccessKey>,
    pub(super) now: Timestamp,
}

/// A user with its active devices.
struct TargetUser {
    access: AccessSettings,
    devices: Vec<TargetDevice>,
}

impl TargetUser {
    fn admit(&self, inquiry: &Inquiry<'_>) -> Admission {
        self.access.admit(inquiry.user, inquiry.caller, inquiry.access, inquiry.now)
    }
}

/// The active devices of some users.
pub(super) struct TargetDevices {
    /// The users that exist.
    users: HashMap<Uuid, TargetUser>,
}

/// The distinct ids.
pub(super) fn distinct(ids: impl Iterator<Item = Uuid>) -> Vec<Uuid> {
    ids.collect::<HashSet<_>>().into_iter().collect()
}

impl TargetDevices {
    /// Reads the devices of the users that are asked for.
    pub(super) async fn read(tx: &mut Tx<'_>, inquiries: &[Inquiry<'_>]) -> Result<Self, StoreError> {
        let mut targets = Self { users: HashMap::new() };
        let mut users = distinct(inquiries.iter().map(|inquiry| inquiry.user.0));
        targets.read_devices(tx, &users, false).await?;
        // For a user that refuses the caller, this does the same work as for one that does not exist.
        users.retain(|user| !targets.users.contains_key(user));
        for row in tx.query(accounts::USERS_OF_MANY).bind_ids(&users).fetch_all().await? {
            let (user, key, strangers, _blocks): (Uuid, Option<Vec<u8>>, String, i64) = row;
            let access = access::settings(key, &strangers)?;
            targets.users.insert(user, TargetUser { access, devices: Vec::new() });
        }
        let is_known = |inquiry: &&Inquiry<'_>| {
            targets.users.get(&inquiry.user.0).is_some_and(|user| {
                user.access.strangers == Strangers::Refuse && user.admit(inquiry) != Admission::Refused
            })
        };
        let refusing = distinct(inquiries.iter().filter(is_known).map(|inquiry| inquiry.user.0));
        if !refusing.is_empty() {
            targets.read_devices(tx, &refusing, true).await?;
        }
        Ok(targets)
    }

    /// Adds the devices of users, of those that refuse strangers only if `even_refusing`.
    async fn read_devices(&mut self, tx: &mut Tx<'_>, users: &[Uuid], even_refusing: bool) -> Result<(), StoreError> {
        for row in tx.query(sql::TARGETS_OF_MANY).bind_ids(users).bind(even_refusing).fetch_all().await? {
            let (target, access) = TargetDevice::from_row(row)?;
            let user = self.users.entry(target.user).or_insert_with(|| TargetUser { access, devices: Vec::new() });
            user.devices.push(target);
        }
        Ok(())
    }

    /// Assembles the bundles of a user's `wanted` devices, or of all that have published; never of the caller's own
    /// device.
    ///
    /// # Errors
    /// `not_found` if the user does not exist, or refuses the caller as a stranger.
    pub(super) fn assemble(
        &self,
        inquiry: &Inquiry<'_>,
        wanted: Option<&[DeviceId]>,
        suites: &UsableSuites,
    ) -> Result<BundleAssembly, StoreError> {
        let now = inquiry.now;
        let user = self.users.get(&inquiry.user.0).ok_or(Refusal::NotFound)?;
        let admission = user.admit(inquiry);
        if admission == Admission::Refused {
            return Err(Refusal::NotFound.into());
        }
        let is_limited = admission == Admission::LimitedStranger;
        let mut assembly = BundleAssembly { answer: Bundles::default(), missing: Vec::new(), is_limited };
        let others = user.devices.iter().filter(|target| target.device != inquiry.caller.device.0);
        if let Some(wanted) = wanted {
            let others: HashMap<Uuid, &TargetDevice> = others.map(|target| (target.device, target)).collect();
            for device in wanted {
                match others.get(&device.0) {
                    Some(target) => assembly.add(target.bundle(suites, now)?),
                    None => assembly.missing.push(*device),
                }
            }
        } else {
            for target in others.filter(|target| target.has_published()) {
                assembly.add(target.bundle(suites, now)?);
            }
        }
        Ok(assembly)
    }
}

/// A bundle answer without one-time keys and without the reasons for missing devices.
pub(super) struct BundleAssembly {
    answer: Bundles,
    /// Wanted devices that are not active devices of the user.
    missing: Vec<DeviceId>,
    /// Whether the caller is a stranger whose claims are limited.
    pub(super) is_limited: bool,
}

impl BundleAssembly {
    fn add(&mut self, bundle: Result<Bundle, Unavailable>) {
        match bundle {
            Ok(bundle) => self.answer.bundles.push(bundle),
            Err(unavailable) => self.answer.unavailable.push(unavailable),
        }
    }

    /// Adds the reasons for the missing devices. The caller's own device counts as unknown.
    pub(super) fn finish(mut self, caller: &Caller, user: UserId, known: &KnownDevices) -> Bundles {
        for device_id in self.missing {
            let reason = match known.0.get(&(device_id.0, user.0)) {
                Some(true) if device_id != caller.device => UnavailableReason::Revoked,
                _ => UnavailableReason::UnknownDevice,
            };
            self.answer.unavailable.push(Unavailable { device_id, reason });
        }
        self.answer
    }
}

/// The missing devices that exist. Key: device and user; value: whether the device is revoked.
pub(super) struct KnownDevices(HashMap<(Uuid, Uuid), bool>);

impl KnownDevices {
    /// Looks up the missing devices of some assemblies.
    pub(super) async fn read(
        tx: &mut Tx<'_>,
        assemblies: impl Iterator<Item = &BundleAssembly>,
    ) -> Result<Self, StoreError> {
        let missing = distinct(assemblies.flat_map(|assembly| assembly.missing.iter().map(|device| device.0)));
        let known: Vec<(Uuid, Uuid, bool)> = tx.query(sql::DEVICES_OF_MANY).bind_ids(&missing).fetch_all().await?;
        Ok(Self(known.into_iter().map(|(device, user, revoked)| ((device, user), revoked)).collect()))
    }
}

/// Puts the last-resort keys of these devices into their bundles, if their suite has PQ keys.
pub(super) async fn add_last_resorts<'b>(
    tx: &mut Tx<'_>,
    devices: &[Uuid],
    bundles: impl Iterator<Item = &'b mut Bundle>,
) -> Result<(), StoreError> {
    type KeyRow = (Uuid, i64, Vec<u8>, Vec<u8>);
    let found: Vec<KeyRow> = tx.query(sql::LAST_RESORTS_OF_MANY).bind_ids(devices).fetch_all().await?;
    let found: HashMap<Uuid, KeyRow> = found.into_iter().map(|row| (row.0, row)).collect();
    for bundle in bundles.filter(|bundle| bundle.suite.has_pq()) {
        if let Some((_, key_id, key, signature)) = found.get(&bundle.device_id.0) {
            bundle.pq_prekey = Some(IssuedPqPrekey {
                key_id: rows::number(*key_id)?,
                public_key: EncodedKey::of(key),
                signature: EncodedKey::of(signature),
                last_resort: true,
            });
        }
    }
    Ok(())
}

impl Store {
    /// The bundles, without one-time keys, of the named devices of a user, or of all that have published. Devices of
    /// other suites than `suites` are unavailable. `access` is the access key that the caller shows.
    ///
    /// # Errors
    /// `session_revoked`, `not_found`
    pub async fn fetch(
        &self,
        caller: &Caller,
        user: UserId,
        devices: Option<&[DeviceId]>,
        suites: &UsableSuites,
        access: Option<&AccessKey>,
        now: Timestamp,
    ) -> Result<Bundles, StoreError> {
        let mut tx = self.read().await?;
        sessions::authorize(&mut tx, caller, now).await?;
        let inquiry = Inquiry { caller, user, access, now };
        let targets = TargetDevices::read(&mut tx, &[inquiry]).await?;
        let assembly = targets.assemble(&inquiry, devices, suites)?;
        let known = KnownDevices::read(&mut tx, std::iter::once(&assembly)).await?;
        let mut answer = assembly.finish(caller, user, &known);
        let ids: Vec<Uuid> = answer.bundles.iter().map(|bundle| bundle.device_id.0).collect();
        add_last_resorts(&mut tx, &ids, answer.bundles.iter_mut()).await?;
        Ok(answer)
    }
}
