//! Where the store's errors become refusals, and where the operator hears of those that are not the client's doing.

use crate::{domain::Refusal, store::StoreError};

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match &error {
            // While the database is out of reach there would be one for every request; the store logs that by itself.
            StoreError::Refused(_) | StoreError::Unavailable(_) => {}
            StoreError::Conflict(_) | StoreError::Overloaded => tracing::warn!(%error, "store unavailable"),
            _ => tracing::error!(%error, "store defect"),
        }
        error.refusal()
    }
}
