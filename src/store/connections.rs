//! The WebSocket connections of devices, as the database records them: the epoch of each device's newest connection,
//! and what a connection may have missed.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use uuid::Uuid;

use super::{
    BatchItem, BatchOutcome, DeviceStatus, Store, StoreError,
    device_status::{StatusRow, bind_callers},
    error::fail_all,
    sql::accounts as sql,
    tx::{Column, Tx},
};
use crate::domain::{
    Caller, DeviceId, KeysStatus, LiveConnection, Refusal, Timestamp, UserId, envelope::MailboxStatus, push::PushState,
};

/// How often it is recorded that a device is still connected.
const SEEN_EVERY: Duration = Duration::from_hours(24);

/// A device's connection to register.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionRegistration {
    /// The session, user and device that connect.
    pub caller: Caller,
    /// The current time.
    pub now: Timestamp,
}

/// A registered connection.
#[derive(Clone, Debug)]
pub struct RegisteredConnection {
    /// Greater than the epoch of every earlier connection of the device.
    pub epoch: i64,
    /// Whether a request of the user waits for an approval.
    pub has_pending_approval: bool,
    /// The device's keys, read after the registration.
    pub keys: KeysStatus,
    /// The device's mailbox, read after the registration.
    pub mailbox: MailboxStatus,
    /// The device's push target, read after the registration.
    pub push: PushState,
}

impl BatchItem for ConnectionRegistration {
    fn user(&self) -> Option<UserId> {
        Some(self.caller.user)
    }
}

/// The end of a connection of a device.
impl BatchItem for (DeviceId, Timestamp) {
    fn user(&self) -> Option<UserId> {
        None
    }
}

/// The state of a connection in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionState {
    /// The epoch of the device's newest connection.
    pub newest_epoch: i64,
    /// Whether the device was revoked.
    pub revoked: bool,
    /// Whether the connection's session is valid.
    pub session_is_valid: bool,
    /// The number of the newest envelope ever stored for the device; 0 if there was none.
    pub mailbox_head: i64,
}

impl Store {
    /// Registers connections. One statement checks their sessions and increments the epochs of their devices, and another
    /// reads what they need to know first. Answers are in the order of the items: `session_revoked`
    /// if a session is not valid.
    pub async fn register_connections(
        &self,
        items: Vec<ConnectionRegistration>,
    ) -> Vec<Result<RegisteredConnection, StoreError>> {
        let outcome = self.run_batch("connections", &items, |items, _| async {
            let registered = self.try_register_connections(items).await?;
            let answers = registered.into_iter().map(|one| one.ok_or(Refusal::SessionRevoked.into())).collect();
            Ok(BatchOutcome { answers, signals: Vec::new() })
        });
        outcome.await.map_or_else(|error| fail_all(&error, items.len()), |outcome| outcome.answers)
    }

    async fn try_register_connections(
        &self,
        items: &[ConnectionRegistration],
    ) -> Result<Vec<Option<RegisteredConnection>>, StoreError> {
        let Some(now) = items.iter().map(|item| item.now).max() else { return Ok(Vec::new()) };
        self.retrying(|| async {
            let mut tx = self.statements().await?;
            let mut opened: Vec<Option<(i64, bool)>> = vec![None; items.len()];
            let mut statuses: Vec<Option<DeviceStatus>> = vec![None; items.len()];
            for places in in_distinct_devices(items) {
                let callers: Vec<Caller> = places.iter().map(|place| items[*place].caller).collect();
                if tx.is_sole_writer() {
                    for (place, (epoch, status)) in
                        places.into_iter().zip(self.open_at_once(&mut tx, &callers, now).await?)
                    {
                        opened[place] = epoch;
                        statuses[place] = Some(status);
                    }
                } else {
                    for (place, epoch) in places.into_iter().zip(open_in_order(&mut tx, &callers, now).await?) {
                        opened[place] = epoch;
                    }
                }
            }
            if !tx.is_sole_writer() {
                // After the epochs, because the statement may have waited for a publish of the device: what the publish
                // committed is seen only by a later statement.
                let callers: Vec<Caller> = items.iter().map(|item| item.caller).collect();
                statuses = self.read_statuses(&mut tx, &callers, now).await?.into_iter().map(Some).collect();
            }
            tx.end_statements().await?;
            let registered = opened.into_iter().zip(statuses).map(|(opened, status)| {
                let ((epoch, has_pending_approval), DeviceStatus { keys, mailbox, push, .. }) = opened.zip(status)?;
                Some(RegisteredConnection { epoch, has_pending_approval, keys, mailbox, push })
            });
            Ok(registered.collect())
        })
        .await
    }

    /// Increments the epochs of the callers' devices and reads their statuses, on SQLite in one turn of its thread. Returns, in
    /// the order of the callers, the new epoch with whether a request of the user waits for an approval, and the status. No
    /// epoch if the session is not valid.
    async fn open_at_once(
        &self,
        tx: &mut Tx<'_>,
        callers: &[Caller],
        now: Timestamp,
    ) -> Result<Vec<(Option<(i64, bool)>, DeviceStatus)>, StoreError> {
        let threshold = self.settings.low_watermark;
        let query = tx.query(sql::OPEN_CONNECTIONS_AT_ONCE);
        let found: Vec<(i64, bool, StatusRow)> = bind_callers(query, callers, now).fetch_json().await?;
        let mut opened = vec![(None, DeviceStatus::missing(threshold)); callers.len()];
        for (epoch, has_pending_approval, row) in found {
            let (place, status) = DeviceStatus::from_row(row, threshold)?;
            if let Some(wanted) = usize::try_from(place).ok().and_then(|place| opened.get_mut(place)) {
                *wanted = (status.session_is_valid.then_some((epoch, has_pending_approval)), status);
            }
        }
        Ok(opened)
    }

    /// The states of these connections, in their order; `None` if the device does not exist any more.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn check_connections(
        &self,
        connections: &[LiveConnection],
        now: Timestamp,
    ) -> Result<Vec<Option<ConnectionState>>, StoreError> {
        let found: Vec<(i64, i64, bool, bool, i64)> = self
            .read()
            .await?
            .query(sql::CHECK_CONNECTIONS)
            .bind_rows([
                Column::Integers((0..).take(connections.len()).collect()),
                Column::Ids(connections.iter().map(|connection| connection.device.0).collect()),
                Column::Ids(connections.iter().map(|connection| connection.session.0).collect()),
            ])
            .bind(now.to_utc())
            .fetch_all()
            .await?;
        let mut states = vec![None; connections.len()];
        for (index, newest_epoch, revoked, session_is_valid, mailbox_head) in found {
            if let Some(state) = usize::try_from(index).ok().and_then(|index| states.get_mut(index)) {
                *state = Some(ConnectionState { newest_epoch, revoked, session_is_valid, mailbox_head });
            }
        }
        Ok(states)
    }

    /// Records that these devices are connected, for those of which this was not recorded for a day. So a device that
    /// stays connected counts as in use.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn touch_connected(&self, connections: &[LiveConnection], now: Timestamp) -> Result<(), StoreError> {
        let devices: Vec<Uuid> = connections.iter().map(|connection| connection.device.0).collect();
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            tx.query(sql::TOUCH_CONNECTED)
                .bind_ids(&devices)
                .bind(now.to_utc())
                .bind(now.before(SEEN_EVERY).to_utc())
                .execute()
                .await?;
            tx.commit().await
        })
        .await
    }

    /// Records when these devices were last connected.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn touch_devices(&self, devices: &[(DeviceId, Timestamp)]) -> Result<(), StoreError> {
        // Each device once, with its latest time.
        let latest: BTreeMap<DeviceId, Timestamp> = {
            let mut devices = devices.to_vec();
            devices.sort_unstable();
            devices.into_iter().collect()
        };
        let devices: Vec<(DeviceId, Timestamp)> = latest.into_iter().collect();
        let outcome = self.run_batch("disconnects", &devices, |devices, _| async move {
            let mut tx = self.statements().await?;
            tx.query(sql::TOUCH_DEVICES)
                .bind_rows([
                    Column::Ids(devices.iter().map(|(device, _)| device.0).collect()),
                    Column::Times(devices.iter().map(|(_, at)| at.to_utc()).collect()),
                ])
                .execute()
                .await?;
            tx.end_statements().await?;
            Ok(BatchOutcome { answers: devices.iter().map(|_| Ok(())).collect(), signals: Vec::new() })
        });
        outcome.await?.answers.into_iter().collect()
    }
}

/// Increments the epochs of the callers' devices, on PostgreSQL. Returns them in the order of the callers, with whether a
/// request of the user waits for an approval; `None` if the session is not valid.
async fn open_in_order(
    tx: &mut Tx<'_>,
    callers: &[Caller],
    now: Timestamp,
) -> Result<Vec<Option<(i64, bool)>>, StoreError> {
    let devices: Vec<Uuid> = callers.iter().map(|caller| caller.device.0).collect();
    let sessions = callers.iter().map(|caller| caller.session.0).collect();
    let found: Vec<(Uuid, i64, bool)> = tx
        .query(sql::OPEN_CONNECTIONS)
        .bind_rows([Column::Ids(devices.clone()), Column::Ids(sessions)])
        .bind(now.to_utc())
        .fetch_all()
        .await?;
    let mut found: HashMap<Uuid, (i64, bool)> = found
        .into_iter()
        .map(|(device, epoch, has_pending_approval)| (device, (epoch, has_pending_approval)))
        .collect();
    Ok(devices.iter().map(|device| found.remove(device)).collect())
}

/// Divides items into groups, given by the places of the items, with each device at most once in a group. The connections
/// of a device are in groups in the order of the items, so that a later one gets a greater epoch.
fn in_distinct_devices(items: &[ConnectionRegistration]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut seen: HashMap<DeviceId, usize> = HashMap::new();
    for (place, item) in items.iter().enumerate() {
        let earlier = seen.entry(item.caller.device).or_default();
        match groups.get_mut(*earlier) {
            Some(group) => group.push(place),
            None => groups.push(vec![place]),
        }
        *earlier += 1;
    }
    groups
}
