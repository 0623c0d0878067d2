//! Filling a store directly, for load tests.

use super::{NewSession, Store, StoreError, sql, transaction};
use crate::domain::{Caller, Email, Suite, Timestamp, bundle::depth, publish::PublishRequest};
use uuid::Uuid;

/// A device that is complete from the start.
pub struct SeedDevice {
    /// User, device and session; the user is made with its first device.
    pub caller: Caller,
    /// The user's address.
    pub email: Email,
    /// For the client's library.
    pub registration_id: u32,
    /// Its session.
    pub session: NewSession,
    /// The device's suite.
    pub suite: Suite,
    /// A complete, valid set with its pool, of any size.
    pub keys: PublishRequest,
}

impl Store {
    /// Writes devices in one transaction, without the checks that clients go through.
    ///
    /// # Errors
    /// The store's own.
    pub async fn seed(
        &self,
        devices: &[SeedDevice],
        now: Timestamp,
        signed_prekey_expires_at: Timestamp,
        threshold: u32,
    ) -> Result<(), StoreError> {
        let at = now.to_utc();
        // Nobody waits for it, and it may be large.
        let store = self.unhurried();
        transaction!(&store, |tx| {
            for SeedDevice { caller, email, registration_id, session, suite, keys } in devices {
                let user: Option<(i32,)> =
                    sqlx::query_as(sql::USER_EXISTS).bind(caller.user.0).fetch_optional(&mut *tx).await?;
                if user.is_none() {
                    sqlx::query(sql::UPSERT_USER)
                        .bind(caller.user.0)
                        .bind(email.as_str())
                        .bind(at)
                        .execute(&mut *tx)
                        .await?;
                }
                sqlx::query(sql::INSERT_DEVICE)
                    .bind(caller.device.0)
                    .bind(caller.user.0)
                    .bind(None::<String>)
                    .bind(i64::from(*registration_id))
                    .bind(at)
                    .execute(&mut *tx)
                    .await?;
                sqlx::query(sql::mailbox::INSERT_MAILBOX).bind(caller.device.0).execute(&mut *tx).await?;
                sqlx::query(sql::INSERT_SESSION)
                    .bind(session.id.0)
                    .bind(caller.user.0)
                    .bind(caller.device.0)
                    .bind(&session.token_hash[..])
                    .bind(session.expires_at.to_utc())
                    .bind(at)
                    .bind(None::<Uuid>)
                    .execute(&mut *tx)
                    .await?;
                sqlx::query(sql::INSERT_IDENTITY)
                    .bind(caller.device.0)
                    .bind(keys.identity_key.as_deref())
                    .bind(at)
                    .bind(suite.as_str())
                    .execute(&mut *tx)
                    .await?;
                if let Some(key) = &keys.signed_prekey {
                    sqlx::query(sql::INSERT_SIGNED_PREKEY)
                        .bind(Uuid::now_v7())
                        .bind(caller.device.0)
                        .bind(&key.public_key)
                        .bind(&key.signature)
                        .bind(at)
                        .bind(signed_prekey_expires_at.to_utc())
                        .bind(i64::from(key.key_id))
                        .execute(&mut *tx)
                        .await?;
                }
                for key in &keys.one_time {
                    sqlx::query(sql::INSERT_ONE_TIME)
                        .bind(Uuid::now_v7())
                        .bind(caller.device.0)
                        .bind(&key.public_key)
                        .bind(at)
                        .bind(i64::from(key.key_id))
                        .execute(&mut *tx)
                        .await?;
                }
                if !keys.one_time.is_empty() {
                    let size = u32::try_from(keys.one_time.len()).unwrap_or(u32::MAX);
                    sqlx::query(sql::REARM_ONE_TIME)
                        .bind(caller.device.0)
                        .bind(depth(size, threshold))
                        .execute(&mut *tx)
                        .await?;
                    sqlx::query(sql::BUMP_POOL_VERSION).bind(caller.device.0).execute(&mut *tx).await?;
                }
            }
        });
        Ok(())
    }
}
