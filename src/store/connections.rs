//! The WebSocket connections of devices, as the database records them: the epoch of each device's newest connection,
//! and what a connection may have missed.

use std::time::Duration;

use uuid::Uuid;

use super::{BatchItem, BatchOutcome, Store, StoreError, error::fail_all, sql::accounts as sql, tx::Column};
use crate::domain::{Caller, DeviceId, LiveConnection, Refusal, Timestamp, UserId};

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
#[derive(Clone, Copy, Debug)]
pub struct RegisteredConnection {
    /// Greater than the epoch of every earlier connection of the device.
    pub epoch: i64,
    /// Whether a request of the user waits for an approval.
    pub has_pending_approval: bool,
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
    /// Registers connections in one transaction. For each, one statement checks the session and increments the device's
    /// epoch. Answers are in the order of the items: `session_revoked` if a session is not valid.
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
        // Sorted by device, so that nodes that register connections of the same devices cannot deadlock.
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|index| items[*index].caller.device);
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            let mut registered = vec![None; items.len()];
            for index in order.iter().copied() {
                let ConnectionRegistration { caller, now } = &items[index];
                let row: Option<(i64, bool)> = tx
                    .query(sql::OPEN_CONNECTION)
                    .bind(caller.device.0)
                    .bind(caller.session.0)
                    .bind(now.to_utc())
                    .fetch_optional()
                    .await?;
                registered[index] =
                    row.map(|(epoch, has_pending_approval)| RegisteredConnection { epoch, has_pending_approval });
            }
            tx.commit().await?;
            Ok(registered)
        })
        .await
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
        let mut devices = devices.to_vec();
        devices.sort_unstable();
        let outcome = self.run_batch("disconnects", &devices, |devices, _| async move {
            let mut tx = self.begin().await?;
            for (device, at) in devices {
                tx.query(sql::TOUCH_DEVICE).bind(device.0).bind(at.to_utc()).execute().await?;
            }
            tx.commit().await?;
            Ok(BatchOutcome { answers: devices.iter().map(|_| Ok(())).collect(), signals: Vec::new() })
        });
        outcome.await?.answers.into_iter().collect()
    }
}
