//! Connections of devices to nodes, as the database knows them: which is the newest, and what it may have missed.

use super::{Store, StoreError, error::fail_all, sql::accounts as sql, tx::Column};
use crate::domain::{Caller, DeviceId, LiveConnection, Refusal, Timestamp};

/// A connection that is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct NewConnection {
    /// Whose connection it is.
    pub caller: Caller,
    /// The time of day.
    pub now: Timestamp,
}

/// A connection that was opened.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// Greater than the epoch of every earlier connection of the device.
    pub epoch: i64,
}

/// What the database says of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionState {
    /// The epoch of the device's newest connection.
    pub newest_epoch: i64,
    /// Whether the device was revoked.
    pub revoked: bool,
    /// Whether the connection's session is valid.
    pub session_is_valid: bool,
    /// The number of the newest envelope that was ever stored for the device, 0 if there was none.
    pub mailbox_head: i64,
}

impl Store {
    /// Opens connections in one commit. For each, one statement checks the session and takes the next epoch. Answers are in
    /// the order of the items: `session_revoked` if a session is not valid.
    pub async fn open_connections(&self, items: Vec<NewConnection>) -> Vec<Result<Connection, StoreError>> {
        match self.try_open_connections(&items).await {
            Ok(opened) => opened.into_iter().map(|opened| opened.ok_or(Refusal::SessionRevoked.into())).collect(),
            Err(error) => fail_all(&error, items.len()),
        }
    }

    async fn try_open_connections(&self, items: &[NewConnection]) -> Result<Vec<Option<Connection>>, StoreError> {
        // By id, so that nodes that open connections of the same devices cannot deadlock.
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|index| items[*index].caller.device);
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            let mut opened = vec![None; items.len()];
            for index in order.iter().copied() {
                let NewConnection { caller, now } = &items[index];
                let row: Option<(i64,)> = tx
                    .query(sql::OPEN_CONNECTION)
                    .bind(caller.device.0)
                    .bind(caller.session.0)
                    .bind(now.to_utc())
                    .fetch_optional()
                    .await?;
                opened[index] = row.map(|(epoch,)| Connection { epoch });
            }
            tx.commit().await?;
            Ok(opened)
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
        for (place, newest_epoch, revoked, session_is_valid, mailbox_head) in found {
            if let Some(state) = usize::try_from(place).ok().and_then(|place| states.get_mut(place)) {
                *state = Some(ConnectionState { newest_epoch, revoked, session_is_valid, mailbox_head });
            }
        }
        Ok(states)
    }

    /// Records when these devices were last connected.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn touch_devices(&self, devices: &[(DeviceId, Timestamp)]) -> Result<(), StoreError> {
        let mut devices = devices.to_vec();
        devices.sort_unstable();
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            for (device, at) in &devices {
                tx.query(sql::TOUCH_DEVICE).bind(device.0).bind(at.to_utc()).execute().await?;
            }
            tx.commit().await
        })
        .await
    }
}
