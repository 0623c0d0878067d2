//! Fills a store directly, for load tests.

use super::{
    NewDevice, NewSession, Store, StoreError, keys, sessions, signed_in,
    sql::{accounts as sql, keys as keys_sql},
};
use crate::domain::{Caller, Email, Timestamp, bundle::levels_reached, publish::VerifiedPublish};

/// A device with a session and published keys.
pub struct SeedDevice {
    /// Its user, device and session. The user is created with its first device.
    pub caller: Caller,
    /// The user's address.
    pub email: Email,
    /// The device's number in the client's Signal library.
    pub registration_id: u32,
    /// The device's session.
    pub session: NewSession,
    /// A complete first publish under a suite without PQ keys.
    pub keys: VerifiedPublish,
}

impl Store {
    /// Writes devices in one transaction, without the checks that apply to clients.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn seed(&self, devices: &[SeedDevice], now: Timestamp) -> Result<(), StoreError> {
        let store = self.without_time_limit();
        let mut tx = store.begin().await?;
        for SeedDevice { caller, email, registration_id, session, keys } in devices {
            let Caller { user, device, .. } = *caller;
            let known: Option<(i32,)> = tx.query(sql::USER_EXISTS).bind(user.0).fetch_optional().await?;
            if known.is_none() {
                tx.query(sql::UPSERT_USER).bind(user.0).bind(email.as_str()).bind(now.to_utc()).execute().await?;
            }
            let new = NewDevice { id: device, name: None, registration_id: *registration_id };
            signed_in::insert_device(&mut tx, user, &new, now).await?;
            sessions::insert(&mut tx, caller, session, now, None).await?;
            keys::insert_identity(&mut tx, device, keys.identity(), now).await?;
            if let Some(key) = keys.signed_prekey() {
                store.replace_signed_prekey(&mut tx, device, key, now).await?;
            }
            for (key_id, key) in keys.one_time() {
                store.insert_one_time(&mut tx, device, *key_id, key, now).await?;
            }
            if !keys.one_time().is_empty() {
                let size = u32::try_from(keys.one_time().len()).unwrap_or(u32::MAX);
                let reached = levels_reached(size, store.settings.low_watermark);
                tx.query(keys_sql::LOWER_ANNOUNCED_ONE_TIME).bind(device.0).bind(reached).execute().await?;
                tx.query(keys_sql::BUMP_POOL_VERSION).bind(device.0).execute().await?;
            }
        }
        tx.commit().await
    }
}
