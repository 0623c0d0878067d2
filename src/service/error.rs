//! Turns store errors into refusals, and logs those that the client did not cause.

use crate::{domain::Refusal, store::StoreError};

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match &error {
            // The store logs an outage itself, throttled; logging it here would add a line per request.
            StoreError::Refused(_) | StoreError::Unavailable(_) => {}
            StoreError::Conflict(_) | StoreError::Overloaded => tracing::warn!(%error, "store unavailable"),
            _ => tracing::error!(%error, "store defect"),
        }
        error.refusal()
    }
}
