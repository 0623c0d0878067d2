//! Look-ups by a list of ids on PostgreSQL, where a list is an array.

use uuid::Uuid;

use super::SessionRow;
use crate::store::sql::many as texts;

/// A query over one list of ids; none is made for an empty list.
macro_rules! by_ids {
    ($name:ident, $text:expr, $row:ty) => {
        pub async fn $name(
            tx: &mut sqlx::PgConnection,
            ids: &[uuid::Uuid],
        ) -> Result<Vec<$row>, $crate::store::StoreError> {
            if ids.is_empty() {
                return Ok(Vec::new());
            }
            Ok(sqlx::query_as($text).bind(ids).fetch_all(tx).await?)
        }
    };
}
pub(in crate::store) use by_ids;

by_ids!(sessions, texts::SESSIONS_OF_MANY, SessionRow);
by_ids!(users, texts::USERS_OF_MANY, (Uuid,));
