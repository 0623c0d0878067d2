//! Look-ups by a list of ids on SQLite, where a list is one JSON text.

use serde::Serialize;
use uuid::Uuid;

use super::SessionRow;
use crate::store::sql::many::sqlite as texts;

/// A list for `json_each`.
pub fn json(rows: &[impl Serialize]) -> String {
    // Lists of numbers and strings always have a text; an empty list would match nothing.
    serde_json::to_string(rows).unwrap_or_else(|_| "[]".to_owned())
}

/// An id for `unhex`.
pub fn hex(id: Uuid) -> uuid::fmt::Simple {
    id.simple()
}

/// A list of ids.
pub fn ids(ids: &[Uuid]) -> String {
    json(&ids.iter().copied().map(hex).collect::<Vec<_>>())
}

/// A query over one list of ids; none is made for an empty list.
macro_rules! by_ids {
    ($name:ident, $text:expr, $row:ty) => {
        pub async fn $name(
            tx: &mut sqlx::SqliteConnection,
            ids: &[uuid::Uuid],
        ) -> Result<Vec<$row>, $crate::store::StoreError> {
            if ids.is_empty() {
                return Ok(Vec::new());
            }
            Ok(sqlx::query_as($text).bind($crate::store::many::sqlite::ids(ids)).fetch_all(tx).await?)
        }
    };
}
pub(in crate::store) use by_ids;

by_ids!(sessions, texts::SESSIONS_OF_MANY, SessionRow);
by_ids!(users, texts::USERS_OF_MANY, (Uuid,));
