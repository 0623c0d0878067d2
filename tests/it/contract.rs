//! One suite for the store, run on every engine, so that they cannot drift apart.

mod given_schema;
mod postgres;
mod schema;
mod suite;

use sealwire::{
    clock::Entropy,
    store::{Store, StoreSettings},
};
use tempfile::TempDir;

use crate::support::Services;

/// An empty store; what it lives in goes with it.
pub struct Fresh {
    pub store: Store,
    pub url: String,
    _folder: Option<TempDir>,
}

/// Low-water marks are small here.
fn settings(max_connections: u32) -> StoreSettings {
    StoreSettings { max_connections, low_watermark: suite::LOW_WATERMARK, entropy: Entropy::from_system().unwrap() }
}

async fn sqlite() -> Fresh {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("contract.db").display());
    Fresh { store: Store::open(&url, settings(12)).await.unwrap(), url, _folder: Some(folder) }
}

async fn postgres() -> Fresh {
    let url = Services::shared().database().await;
    Fresh { store: Store::open(&url, settings(12)).await.unwrap(), url, _folder: None }
}

/// Makes a test of every case for every engine.
macro_rules! on_every_engine {
    ($($subject:ident: $($case:ident)*;)*) => {
        mod on_sqlite {
            $($(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::suite::$subject::$case(&super::sqlite().await.store).await;
            })*)*
        }

        mod on_postgres {
            $($(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::suite::$subject::$case(&super::postgres().await.store).await;
            })*)*
        }
    };
}

on_every_engine! {
    accounts:
        challenges_are_counted_against_their_address
        five_guesses_are_counted_however_they_arrive
        a_refused_sign_in_gives_its_attempt_back
        one_of_two_parallel_sign_ins_wins
        a_new_address_that_signs_in_twice_at_once_is_one_user
        a_replaced_device_loses_everything_at_once
        a_renewed_session_has_one_successor
        logout_ends_the_pair
        a_connection_takes_the_next_epoch
        sweeps_forget_what_is_a_day_old
        times_come_back_as_they_went_in;
    keys:
        a_publish_sorts_every_key
        claims_take_the_oldest_and_repeats_take_nothing
        a_batch_fails_its_items_singly
        a_batch_takes_keys_in_its_order
        a_batch_takes_a_token_for_each_key
        levels_are_announced_once_and_rearmed
        revoked_sessions_change_nothing;
    mail:
        a_batch_numbers_envelopes_in_its_order
        items_of_a_batch_are_refused_singly
        a_repeat_finds_what_was_sent
        a_repeat_names_all_who_lack_the_message
        pages_are_bounded_in_number_and_bytes
        shares_are_counted_over_a_batch
        what_expires_is_counted
        an_older_connection_cannot_send_any_more
        parallel_batches_leave_no_gap_and_lose_nothing;
}
