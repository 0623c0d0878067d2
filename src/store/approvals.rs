//! Requests that wait for an approval, while the account is locked: made, listed, decided and collected.
//!
//! All changes of a user's requests happen with the row of the user locked, so that two nodes cannot decide a request
//! twice or let a user have too many.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    DeviceRecord, NewSession, Store, StoreError, accounts,
    challenges::NetworkTag,
    device_age::too_new_until,
    keys, locks, rows, sessions,
    signed_in::{self, NewDevice, SignedIn},
    sql::approvals as sql,
    sweep::Cutoff,
    tx::Tx,
};
use crate::domain::{
    ApprovalId, ApprovalKind, Caller, ChallengeId, DeviceId, Email, PendingApproval, Refusal, Session, SessionId,
    Timestamp, UserId,
    approval::{MAX_PENDING, MAX_PER_DAY},
    clock_guard::TOLERATED_AHEAD,
};

const DAY: Duration = Duration::from_hours(24);
/// Time after which a request that was not mailed counts as forgotten, because its node has died or dropped the mail.
const MAILED_WITHIN: Duration = Duration::from_mins(1);
/// The least `retry_after` of a request that is one too many.
const LEAST_RETRY: Duration = Duration::from_mins(1);

/// What a new device asks for.
#[derive(Clone, Debug)]
pub struct NewApproval {
    /// The id of the request.
    pub id: ApprovalId,
    /// The challenge whose code makes it.
    pub challenge: ChallengeId,
    /// What it asks for.
    pub asks_for: AsksFor,
    /// The name of the new device, or of the one that asks, if it has one.
    pub device_name: Option<String>,
    /// The network that it comes from, if it is known.
    pub client_network: Option<String>,
    /// The same, as the keyed hash under which the address will know it.
    pub known_network: Option<NetworkTag>,
}

/// What a request asks for.
#[derive(Clone, Debug)]
pub enum AsksFor {
    /// To sign in.
    Device {
        /// A device that has never published; `None` for a new one.
        existing_device: Option<DeviceId>,
        /// The registration id of a new device.
        registration_id: u32,
        /// A device to revoke.
        replace: Option<DeviceId>,
    },
    /// To change the address to this one.
    Address(Email),
}

/// A request that was made.
#[derive(Clone, Debug)]
pub struct ApprovalRequested {
    /// Identifies it.
    pub id: ApprovalId,
    /// When it is approved unless a device denies it.
    pub decides_at: Timestamp,
    /// The request and the devices that may decide it; `None` if this repeats an earlier request.
    pub new: Option<(PendingApproval, Vec<DeviceId>)>,
}

/// A decision of a device.
#[derive(Clone, Copy, Debug)]
pub enum Decision {
    /// Approves, and revokes this device or else the one that the request names.
    Approve {
        /// A device of the user.
        replace: Option<DeviceId>,
    },
    /// Denies, because the number was wrong or the person said so.
    Deny,
}

/// The ids and the token of what an approval creates.
pub struct ApprovedSession {
    /// The id of a new device.
    pub device: DeviceId,
    /// The session to open.
    pub session: NewSession,
    /// Maximum number of active devices of a user.
    pub max_devices: usize,
}

/// The result of a decision.
#[derive(Debug)]
pub enum Decided {
    /// Nothing has changed: the request was decided like this before.
    Before,
    /// The request was denied.
    Denied,
    /// The request was approved.
    Approved(Approved),
}

/// What an approval did.
#[derive(Debug)]
pub enum Approved {
    /// The device signed in.
    SignedIn(Box<SignedIn>),
    /// The address was changed.
    AddressChanged {
        /// The old address.
        old: Email,
    },
}

/// A request whose time has come.
#[derive(Clone, Debug)]
pub struct DueApproval {
    /// When it is approved unless a device denies it.
    pub at: Timestamp,
    /// Identifies it.
    pub id: ApprovalId,
    /// The network that it came from, such as `203.0.113.0/24`, if it is known.
    pub client_network: Option<String>,
}

/// A request as its poll finds it.
#[derive(Debug)]
pub enum ApprovalState {
    /// It waits for a decision.
    Pending {
        /// When it is approved unless a device denies it.
        decides_at: Timestamp,
    },
    /// It was approved, and the token of its session was not presented yet.
    Approved(Session),
    /// It was denied.
    Denied,
}

/// A row of `approvals`.
struct Approval {
    user: UserId,
    state: String,
    device_name: Option<String>,
    created_at: Timestamp,
    decides_at: Timestamp,
    asks_for: AsksFor,
    known_network: Option<NetworkTag>,
}

type ApprovalRow = (
    Uuid,
    String,
    Option<String>,
    DateTime<Utc>,
    DateTime<Utc>,
    Option<Uuid>,
    Option<i64>,
    Option<Uuid>,
    Option<String>,
    Option<Vec<u8>>,
);

impl Approval {
    /// The device to revoke that the request names.
    const fn replaces(&self) -> Option<DeviceId> {
        match self.asks_for {
            AsksFor::Device { replace, .. } => replace,
            AsksFor::Address(_) => None,
        }
    }
}

/// The request with this id.
async fn find(tx: &mut Tx<'_>, id: ApprovalId) -> Result<Option<Approval>, StoreError> {
    let row: Option<ApprovalRow> = tx.query(sql::APPROVAL).bind(id.0).fetch_optional().await?;
    let Some((user, state, device_name, created_at, decides_at, existing, registration, replace, email, network)) = row
    else {
        return Ok(None);
    };
    let asks_for = match email {
        Some(email) => AsksFor::Address(rows::email(&email)?),
        None => AsksFor::Device {
            existing_device: existing.map(DeviceId),
            registration_id: rows::number(registration.unwrap_or_default())?,
            replace: replace.map(DeviceId),
        },
    };
    let (created_at, decides_at) = (rows::time(created_at), rows::time(decides_at));
    let known_network = network.and_then(|tag| tag.try_into().ok());
    Ok(Some(Approval { user: UserId(user), state, device_name, created_at, decides_at, asks_for, known_network }))
}

/// The requests of a user that are pending, oldest first.
pub(super) async fn pending(tx: &mut Tx<'_>, user: UserId) -> Result<Vec<PendingApproval>, StoreError> {
    type PendingRow = (Uuid, String, Option<String>, Option<String>, DateTime<Utc>, DateTime<Utc>);
    let found: Vec<PendingRow> = tx.query(sql::PENDING_OF).bind(user.0).fetch_all().await?;
    let pending = |(id, kind, device_name, client_network, created_at, decides_at): PendingRow| {
        Ok(PendingApproval {
            id: ApprovalId(id),
            kind: ApprovalKind::parse(&kind).ok_or_else(|| rows::corrupt("unknown kind of approval".into()))?,
            device_name,
            client_network,
            created_at: rows::time(created_at),
            decides_at: rows::time(decides_at),
        })
    };
    found.into_iter().map(pending).collect()
}

/// The request that the code of this challenge made before.
pub(super) async fn of_challenge(
    tx: &mut Tx<'_>,
    challenge: ChallengeId,
    user: UserId,
) -> Result<Option<ApprovalRequested>, StoreError> {
    let row: Option<(Uuid, DateTime<Utc>)> =
        tx.query(sql::APPROVAL_OF_CHALLENGE).bind(challenge.0).bind(user.0).fetch_optional().await?;
    Ok(row.map(|(id, decides_at)| ApprovalRequested {
        id: ApprovalId(id),
        decides_at: rows::time(decides_at),
        new: None,
    }))
}

/// Denies the request that the code of this challenge made before, because its person signs in with the recovery key.
pub(super) async fn withdraw(tx: &mut Tx<'_>, challenge: ChallengeId, now: Timestamp) -> Result<(), StoreError> {
    tx.query(sql::DENY_OF_CHALLENGE).bind(challenge.0).bind(now.to_utc()).execute().await?;
    Ok(())
}

/// Makes a request. The caller has locked the user. `rate_limited` is a value, because the caller still commits.
pub(super) async fn request(
    tx: &mut Tx<'_>,
    user: UserId,
    new: &NewApproval,
    wait: Duration,
    now: Timestamp,
) -> Result<Result<ApprovalRequested, Refusal>, StoreError> {
    // A request from further in the future was stored under a wrong clock.
    let latest = now + TOLERATED_AHEAD;
    let mut waiting = pending(tx, user).await?;
    waiting.retain(|one| one.created_at <= latest);
    let mut today: Vec<(DateTime<Utc>,)> =
        tx.query(sql::REQUESTED_SINCE).bind(user.0).bind(now.before(DAY).to_utc()).fetch_all().await?;
    today.retain(|(at,)| *at <= latest.to_utc());
    let next_decision = waiting.iter().map(|one| one.decides_at).min().filter(|_| waiting.len() >= MAX_PENDING);
    let next_of_day = today.get(MAX_PER_DAY - 1).map(|(oldest,)| rows::time(*oldest) + DAY);
    if let Some(at) = next_decision.into_iter().chain(next_of_day).max() {
        return Ok(Err(Refusal::RateLimited { retry_after: at.since(now).max(LEAST_RETRY) }));
    }
    let NewApproval { id, challenge, asks_for, device_name, client_network, known_network } = new;
    let kind = match asks_for {
        AsksFor::Device { .. } => ApprovalKind::Device,
        AsksFor::Address(_) => ApprovalKind::ChangeEmail,
    };
    let (existing_device, registration_id, replace, new_email) = match asks_for {
        AsksFor::Device { existing_device, registration_id, replace } => {
            (*existing_device, Some(*registration_id), *replace, None)
        }
        AsksFor::Address(email) => (None, None, None, Some(email.as_str())),
    };
    let decides_at = now + wait;
    tx.query(sql::INSERT_APPROVAL)
        .bind(id.0)
        .bind(user.0)
        .bind(kind.name())
        .bind(challenge.0)
        .bind(device_name.as_deref())
        .bind(client_network.as_deref())
        .bind(now.to_utc())
        .bind(decides_at.to_utc())
        .bind(existing_device.map(|device| device.0))
        .bind(registration_id.map(i64::from))
        .bind(replace.map(|device| device.0))
        .bind(new_email)
        .bind(known_network.as_ref().map(|tag| &tag[..]))
        .execute()
        .await?;
    let request = PendingApproval {
        id: *id,
        kind,
        device_name: device_name.clone(),
        client_network: client_network.clone(),
        created_at: now,
        decides_at,
    };
    let deciders = older_devices(tx, user, now).await?;
    Ok(Ok(ApprovalRequested { id: *id, decides_at, new: Some((request, deciders)) }))
}

/// The devices that may decide a request that was made at `created_at`: published, and older than it.
async fn older_devices(tx: &mut Tx<'_>, user: UserId, created_at: Timestamp) -> Result<Vec<DeviceId>, StoreError> {
    let found: Vec<(Uuid,)> = tx.query(sql::OLDER_DEVICES).bind(user.0).bind(created_at.to_utc()).fetch_all().await?;
    Ok(found.into_iter().map(|(device,)| DeviceId(device)).collect())
}

/// Does what an approved request asks for. `Ok(Err(…))` if that is not possible now.
async fn approve(
    tx: &mut Tx<'_>,
    id: ApprovalId,
    approval: &Approval,
    replace: Option<DeviceId>,
    new: &ApprovedSession,
    now: Timestamp,
) -> Result<Result<Approved, Refusal>, StoreError> {
    match &approval.asks_for {
        AsksFor::Device { existing_device, registration_id, replace: asked } => {
            let new_device =
                NewDevice { id: new.device, name: approval.device_name.clone(), registration_id: *registration_id };
            let devices = (*existing_device, replace, *asked);
            let network = approval.known_network.as_ref();
            let signed_in = approve_device(tx, id, approval.user, devices, new_device, new, network, now).await?;
            Ok(signed_in.map(|signed_in| Approved::SignedIn(Box::new(signed_in))))
        }
        AsksFor::Address(email) => {
            let old = accounts::set_address(tx, approval.user, email, now).await?;
            Ok(old.map(|old| Approved::AddressChanged { old }))
        }
    }
}

/// Opens the session of an approved device.
#[expect(clippy::too_many_arguments, reason = "what the request and its decision say")]
async fn approve_device(
    tx: &mut Tx<'_>,
    id: ApprovalId,
    user: UserId,
    (existing_device, replace, asked): (Option<DeviceId>, Option<DeviceId>, Option<DeviceId>),
    new_device: NewDevice,
    new: &ApprovedSession,
    network: Option<&NetworkTag>,
    now: Timestamp,
) -> Result<Result<SignedIn, Refusal>, StoreError> {
    let active: Vec<DeviceRecord> = accounts::active(tx, user).await?;
    let owns = |device: &DeviceId| active.iter().any(|known| known.id == *device);
    if !existing_device.iter().chain(&replace).all(owns) || (replace.is_some() && replace == existing_device) {
        return Ok(Err(Refusal::UnknownDevice));
    }
    // A device that has published since the request was made needs its proof, like any published device.
    if let Some(device) = existing_device
        && keys::identity(tx, device).await?.is_some()
    {
        return Ok(Err(Refusal::UnknownDevice));
    }
    // The device that the request names may have been revoked since.
    let replace = replace.or(asked.filter(owns));
    if existing_device.is_none()
        && let Some(refusal) = signed_in::device_limit(&active, replace, new.max_devices)
    {
        return Ok(Err(refusal));
    }
    let signed_in =
        signed_in::open_session(tx, user, active, existing_device, new_device, replace, &new.session, network, now)
            .await?;
    tx.query(sql::SET_SESSION_APPROVAL).bind(new.session.id.0).bind(id.0).execute().await?;
    Ok(Ok(signed_in))
}

/// Records a decision.
async fn decided(tx: &mut Tx<'_>, id: ApprovalId, state: &'static str, now: Timestamp) -> Result<(), StoreError> {
    tx.query(sql::SET_DECISION).bind(id.0).bind(state).bind(now.to_utc()).execute().await?;
    Ok(())
}

impl Store {
    /// Decides a request for the caller's user. A young device may not revoke another one by that. A request that cannot be approved now, because of `device_limit`,
    /// `unknown_device` or `email_taken`, stays pending.
    ///
    /// # Errors
    /// `session_revoked`; `not_found` if the user has no such request or it was decided otherwise; `device_too_new` if
    /// the device may not decide it or not revoke the device to replace; `device_limit`; `unknown_device`; `email_taken`
    pub async fn decide(
        &self,
        caller: &Caller,
        id: ApprovalId,
        decision: Decision,
        new: &ApprovedSession,
        now: Timestamp,
    ) -> Result<Decided, StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::user(&mut tx, caller.user).await?;
            sessions::authorize(&mut tx, caller, now).await?;
            let approval = find(&mut tx, id).await?.filter(|one| one.user == caller.user).ok_or(Refusal::NotFound)?;
            if !older_devices(&mut tx, caller.user, approval.created_at).await?.contains(&caller.device) {
                return Err(too_new_until(approval.decides_at, now).into());
            }
            let outcome = match (decision, approval.state.as_str()) {
                (Decision::Approve { replace }, "pending") => {
                    if let Some(replaced) = replace.or(approval.replaces()) {
                        self.may_disturb(&mut tx, caller, replaced, now).await?;
                    }
                    let approved = approve(&mut tx, id, &approval, replace, new, now).await??;
                    decided(&mut tx, id, "approved", now).await?;
                    Decided::Approved(approved)
                }
                (Decision::Deny, "pending") => {
                    decided(&mut tx, id, "denied", now).await?;
                    Decided::Denied
                }
                (Decision::Approve { .. }, "approved") | (Decision::Deny, "denied") => return Ok(Decided::Before),
                _ => return Err(Refusal::NotFound.into()),
            };
            tx.commit().await?;
            Ok(outcome)
        })
        .await
    }

    /// Approves a request whose time has come. Returns `None` if it has not, if it was decided, or if the user has too
    /// many devices now: then it stays pending.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn approve_by_time(
        &self,
        id: ApprovalId,
        new: &ApprovedSession,
        now: Timestamp,
    ) -> Result<Option<Approved>, StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            let Some(approval) = find(&mut tx, id).await? else { return Ok(None) };
            locks::user(&mut tx, approval.user).await?;
            let due: Option<(i32,)> = tx.query(sql::IS_DUE).bind(now.to_utc()).bind(id.0).fetch_optional().await?;
            if due.is_none() {
                return Ok(None);
            }
            let approved = match approve(&mut tx, id, &approval, None, new, now).await? {
                Ok(approved) => {
                    decided(&mut tx, id, "approved", now).await?;
                    Some(approved)
                }
                // The device that was to sign in again was revoked, or somebody else has the address now.
                Err(Refusal::UnknownDevice | Refusal::EmailTaken) => {
                    decided(&mut tx, id, "denied", now).await?;
                    None
                }
                Err(_) => return Ok(None),
            };
            tx.commit().await?;
            Ok(approved)
        })
        .await
    }

    /// Up to 100 requests whose time has come, after the one given, in the order in which they are due. Without those of
    /// users who have too many devices.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn due_approvals(
        &self,
        after: (Timestamp, ApprovalId),
        max_devices: usize,
        now: Timestamp,
    ) -> Result<Vec<DueApproval>, StoreError> {
        let mut tx = self.read().await?;
        let due: Vec<(Uuid, DateTime<Utc>, Option<String>)> = tx
            .query(sql::DUE)
            .bind(now.to_utc())
            .bind(after.0.to_utc())
            .bind(after.1.0)
            .bind(i64::try_from(max_devices).unwrap_or(i64::MAX))
            .fetch_all()
            .await?;
        let due = due.into_iter().map(|(id, at, client_network)| DueApproval {
            at: rows::time(at),
            id: ApprovalId(id),
            client_network,
        });
        Ok(due.collect())
    }

    /// Takes up to 100 pending requests about which no mail was sent for a day, or none at all. A mail from the future counts
    /// as none, unless the clock may be behind. Of several nodes, one gets each. Returns the address to mail, the request, and
    /// the devices that may decide it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn take_reminders(
        &self,
        cutoff: impl Into<Cutoff>,
    ) -> Result<Vec<(Email, PendingApproval, Vec<DeviceId>)>, StoreError> {
        let Cutoff { now, and_future } = cutoff.into();
        let latest = and_future.then(|| (now + TOLERATED_AHEAD).to_utc());
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            let due: Vec<(Uuid, Uuid)> = tx
                .query(sql::TAKE_REMINDERS)
                .bind(now.to_utc())
                .bind(now.before(DAY).to_utc())
                .bind(now.before(MAILED_WITHIN).to_utc())
                .bind(latest)
                .fetch_all()
                .await?;
            let mut reminders = Vec::with_capacity(due.len());
            for (id, user) in due {
                let user = UserId(user);
                let request = pending(&mut tx, user).await?.into_iter().find(|one| one.id == ApprovalId(id));
                if let Some(request) = request {
                    let deciders = older_devices(&mut tx, user, request.created_at).await?;
                    reminders.push((accounts::email_of(&mut tx, user).await?, request, deciders));
                }
            }
            tx.commit().await?;
            Ok(reminders)
        })
        .await
    }

    /// Records when the last mail about a request was sent; `None` if it was dropped.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn note_mailed(&self, id: ApprovalId, at: Option<Timestamp>) -> Result<(), StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            tx.query(sql::SET_MAILED).bind(id.0).bind(at.map(Timestamp::to_utc)).execute().await?;
            tx.commit().await
        })
        .await
    }

    /// The state of a request of a new device.
    ///
    /// # Errors
    /// `not_found` if there is no such request, or the token of its session was presented.
    pub async fn approval_state(&self, id: ApprovalId, now: Timestamp) -> Result<ApprovalState, StoreError> {
        let mut tx = self.read().await?;
        let approval = find(&mut tx, id).await?.ok_or(Refusal::NotFound)?;
        match approval.state.as_str() {
            "pending" => Ok(ApprovalState::Pending { decides_at: approval.decides_at }),
            "denied" => Ok(ApprovalState::Denied),
            _ => {
                type ApprovedRow = (Uuid, Uuid, Uuid, DateTime<Utc>, DateTime<Utc>);
                let row: Option<ApprovedRow> =
                    tx.query(sql::APPROVED_SESSION).bind(id.0).bind(now.to_utc()).fetch_optional().await?;
                let (session, user, device, expires_at, user_since) = row.ok_or(Refusal::NotFound)?;
                let caller = Caller {
                    session: SessionId(session),
                    user: UserId(user),
                    device: DeviceId(device),
                    user_since: rows::time(user_since),
                };
                Ok(ApprovalState::Approved(Session { caller, expires_at: rows::time(expires_at) }))
            }
        }
    }

    /// The pending requests that the caller's device may decide, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn decidable_approvals(&self, caller: &Caller) -> Result<Vec<PendingApproval>, StoreError> {
        let mut tx = self.read().await?;
        let mut decidable = Vec::new();
        for request in pending(&mut tx, caller.user).await? {
            if older_devices(&mut tx, caller.user, request.created_at).await?.contains(&caller.device) {
                decidable.push(request);
            }
        }
        Ok(decidable)
    }
}
