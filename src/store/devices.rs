//! Devices and their connections.

use uuid::Uuid;

use super::{Store, StoreError, authorize, read, rows, run, serialize, sql, transaction};
use crate::domain::{Caller, DeviceId, LiveConnection, Refusal, Timestamp};

/// An active device.
#[derive(Clone, Debug)]
pub struct DeviceRecord {
    /// Its id.
    pub id: DeviceId,
    /// For people.
    pub name: Option<String>,
    /// For the client's library.
    pub registration_id: u32,
    /// When it first signed in.
    pub created_at: Timestamp,
    /// When it last connected or disconnected.
    pub last_seen: Option<Timestamp>,
}

/// A connection that wants to open.
#[derive(Clone, Copy, Debug)]
pub struct NewConnection {
    /// In whose name.
    pub caller: Caller,
    /// Now.
    pub now: Timestamp,
}

/// A connection that was opened.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// Greater than that of every earlier connection of the device.
    pub epoch: i64,
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The epoch of the device's newest connection.
    pub newest_epoch: i64,
    /// Whether the device was revoked.
    pub revoked: bool,
    /// Whether the connection's session holds.
    pub session_holds: bool,
    /// The number of the newest envelope that was ever stored for the device.
    pub mailbox_head: i64,
}

impl Standing {
    fn from_row((newest_epoch, revoked, session_holds, mailbox_head): (i64, bool, bool, i64)) -> Self {
        Self { newest_epoch, revoked, session_holds, mailbox_head }
    }
}

/// Revokes a device inside a transaction: its sessions, mailbox and unissued keys go. Evaluates to whether it was active.
macro_rules! revoke {
    ($tx:ident, $device:expr, $user:expr) => {{
        let revoked =
            sqlx::query($crate::store::sql::REVOKE_DEVICE).bind($device.0).bind($user.0).execute(&mut *$tx).await?;
        let was_active = revoked.rows_affected() == 1;
        if was_active {
            for text in [
                $crate::store::sql::DELETE_SESSIONS_OF_DEVICE,
                // The mailbox is locked before its messages go, so that a send under way is waited for.
                $crate::store::sql::mailbox::EMPTY_MAILBOX,
                $crate::store::sql::mailbox::DELETE_MESSAGES,
                $crate::store::sql::DELETE_SIGNED_PREKEYS,
                $crate::store::sql::DELETE_UNISSUED,
                $crate::store::sql::DELETE_UNISSUED_PQ,
            ] {
                sqlx::query(text).bind($device.0).execute(&mut *$tx).await?;
            }
        }
        was_active
    }};
}
pub(super) use revoke;

impl Store {
    /// The user's active devices, oldest first.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn list_devices(&self, caller: &Caller, now: Timestamp) -> Result<Vec<DeviceRecord>, StoreError> {
        self.check_session(caller, now).await?;
        let devices: Vec<rows::DeviceRow> =
            read!(self, |db| sqlx::query_as(sql::ACTIVE_DEVICES).bind(caller.user.0).fetch_all(db).await?);
        let record = |(id, name, registration_id, created_at, last_seen): rows::DeviceRow| {
            Ok(DeviceRecord {
                id: DeviceId(id),
                name,
                registration_id: rows::number(registration_id)?,
                created_at: rows::time(created_at),
                last_seen: last_seen.map(rows::time),
            })
        };
        devices.into_iter().map(record).collect()
    }

    /// Names one of the user's active devices.
    ///
    /// # Errors
    /// `session_revoked`, `unknown_device`
    pub async fn rename_device(
        &self,
        caller: &Caller,
        device: DeviceId,
        name: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        transaction!(self, |tx| {
            serialize!(self, tx, sql::SERIALIZE_USER, caller.user.0);
            authorize!(tx, caller, now);
            let renamed =
                sqlx::query(sql::RENAME_DEVICE).bind(device.0).bind(caller.user.0).bind(name).execute(&mut *tx).await?;
            if renamed.rows_affected() == 0 {
                return Err(Refusal::UnknownDevice.into());
            }
        });
        Ok(())
    }

    /// Revokes one of the user's active devices and gives those that remain.
    ///
    /// # Errors
    /// `session_revoked`, `unknown_device`
    pub async fn revoke_device(
        &self,
        caller: &Caller,
        device: DeviceId,
        now: Timestamp,
    ) -> Result<Vec<DeviceId>, StoreError> {
        let active = self.list_devices(caller, now).await?;
        if active.iter().any(|known| known.id == device) {
            self.empty_mailboxes(&[device]).await?;
        }
        let others: Vec<rows::DeviceRow> = transaction!(self, |tx| {
            serialize!(self, tx, sql::SERIALIZE_USER, caller.user.0);
            authorize!(tx, caller, now);
            if !revoke!(tx, device, caller.user) {
                return Err(Refusal::UnknownDevice.into());
            }
            sqlx::query_as(sql::ACTIVE_DEVICES).bind(caller.user.0).fetch_all(&mut *tx).await?
        });
        Ok(others.into_iter().map(|row| DeviceId(row.0)).collect())
    }

    /// Opens many connections in one commit. Each statement checks its session and takes the next epoch at once.
    pub async fn open_connections(&self, items: Vec<NewConnection>) -> Vec<Result<Connection, StoreError>> {
        match self.try_open_connections(&items).await {
            Ok(opened) => opened.into_iter().map(|opened| opened.ok_or(Refusal::SessionRevoked.into())).collect(),
            Err(error) => super::error::fail_all(&error, items.len()),
        }
    }

    async fn try_open_connections(&self, items: &[NewConnection]) -> Result<Vec<Option<Connection>>, StoreError> {
        // By id, so that nodes that open connections of the same devices do not wait for each other in a circle.
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|index| items[*index].caller.device);
        Ok(transaction!(self, |tx| {
            let mut opened = vec![None; items.len()];
            for index in order.iter().copied() {
                let NewConnection { caller, now } = &items[index];
                let row: Option<(i64,)> = sqlx::query_as(sql::OPEN_CONNECTION)
                    .bind(caller.device.0)
                    .bind(caller.session.0)
                    .bind(now.to_utc())
                    .fetch_optional(&mut *tx)
                    .await?;
                opened[index] = row.map(|(epoch,)| Connection { epoch });
            }
            opened
        }))
    }

    /// Looks connections up as the database sees them, in their order; `None` where the device is gone.
    ///
    /// # Errors
    /// The store's own.
    pub async fn survey(
        &self,
        connections: &[LiveConnection],
        now: Timestamp,
    ) -> Result<Vec<Option<Standing>>, StoreError> {
        let mut standings = vec![None; connections.len()];
        match self {
            Self::Sqlite(engine) => {
                run!(engine.readers, |db| for (standing, connection) in standings.iter_mut().zip(connections) {
                    let row: Option<(i64, bool, bool, i64)> = sqlx::query_as(sql::SURVEY)
                        .bind(connection.device.0)
                        .bind(connection.session.0)
                        .bind(now.to_utc())
                        .fetch_optional(&mut *db)
                        .await?;
                    *standing = row.map(Standing::from_row);
                })?;
            }
            Self::Postgres(engine) => {
                let places: Vec<i32> = (0..).take(connections.len()).collect();
                let devices: Vec<Uuid> = connections.iter().map(|connection| connection.device.0).collect();
                let sessions: Vec<Uuid> = connections.iter().map(|connection| connection.session.0).collect();
                let query = sqlx::query_as(sql::SURVEY_OF_MANY).bind(places).bind(devices).bind(sessions);
                let rows: Vec<(i32, i64, bool, bool, i64)> =
                    run!(engine.connections, |db| query.bind(now.to_utc()).fetch_all(db).await?)?;
                for (place, epoch, revoked, session_holds, head) in rows {
                    if let Some(standing) = usize::try_from(place).ok().and_then(|place| standings.get_mut(place)) {
                        *standing = Some(Standing::from_row((epoch, revoked, session_holds, head)));
                    }
                }
            }
        }
        Ok(standings)
    }

    /// Notes when these devices were last connected.
    ///
    /// # Errors
    /// The store's own.
    pub async fn touch_devices(&self, devices: &[(DeviceId, Timestamp)]) -> Result<(), StoreError> {
        let mut devices = devices.to_vec();
        devices.sort_unstable();
        transaction!(self, |tx| {
            for (device, at) in &devices {
                sqlx::query(sql::TOUCH_DEVICE).bind(device.0).bind(at.to_utc()).execute(&mut *tx).await?;
            }
        });
        Ok(())
    }
}
