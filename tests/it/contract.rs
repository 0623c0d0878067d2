//! The store's contract: one suite that runs on SQLite and on PostgreSQL, so that the two cannot drift apart.

mod counters;
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

/// An empty store. Dropping it deletes the folder of the SQLite database.
pub struct FreshStore {
    pub store: Store,
    pub url: String,
    _folder: Option<TempDir>,
}

/// Store settings with a small low-water mark.
fn settings(max_connections: u32) -> StoreSettings {
    StoreSettings {
        max_connections,
        pooler: None,
        low_watermark: suite::LOW_WATERMARK,
        device_age: suite::DEVICE_AGE,
        entropy: Entropy::from_system().unwrap(),
    }
}

async fn sqlite() -> FreshStore {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("contract.db").display());
    FreshStore { store: Store::open(&url, settings(12)).await.unwrap(), url, _folder: Some(folder) }
}

async fn postgres() -> FreshStore {
    let url = Services::shared().database().await;
    FreshStore { store: Store::open(&url, settings(12)).await.unwrap(), url, _folder: None }
}

/// Makes two tests of each case: one on SQLite, one on PostgreSQL.
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
        challenges_are_counted_per_address_for_a_day
        only_five_of_fifty_parallel_guesses_are_counted
        a_refused_sign_in_does_not_use_up_an_attempt
        one_of_two_parallel_sign_ins_with_the_same_code_succeeds
        parallel_first_sign_ins_of_an_address_create_one_user
        a_replaced_device_loses_its_session_and_its_keys
        renewing_a_session_twice_leaves_one_valid_successor
        logout_ends_a_session_and_its_successor
        each_connection_of_a_device_gets_the_next_epoch
        a_sweep_deletes_expired_sessions_and_day_old_records_but_no_tombstones
        a_sweep_deletes_records_from_the_future_unless_the_clock_was_set_back
        accounts_and_devices_from_the_future_are_as_old_as_now
        times_are_read_back_as_written_and_compare_correctly;
    codes:
        a_proof_is_spent_once_by_parallel_requests
        an_attempt_at_an_unknown_challenge_spends_its_proof
        an_address_has_a_budget_for_its_owner_and_one_for_others
        a_withdrawn_challenge_does_not_count_unless_somebody_guessed
        a_network_is_known_for_ninety_days_after_the_last_sign_in
        a_user_knows_at_most_a_hundred_networks
        proofs_and_networks_from_the_future_do_not_count_and_are_swept
        the_owners_of_an_address_are_found_whatever_its_tag
        wrong_guesses_from_the_future_do_not_count_and_are_swept
        wrong_guesses_count_for_thirty_days_until_the_owner_signs_in
        guesses_of_a_network_count_for_a_day_unless_they_are_right_or_paid_for;
    ended:
        a_token_that_was_never_issued_is_unknown
        an_expired_session_is_reported_as_expired_before_and_after_the_sweep
        a_logout_and_a_renewal_are_reported_as_reasons
        a_revocation_replaces_the_reasons_of_earlier_sessions
        only_the_last_200_reasons_of_a_device_are_kept;
    pools:
        a_replacement_withdraws_the_keys_that_it_does_not_contain
        a_full_pool_can_be_replaced
        a_publish_that_expects_another_pool_version_changes_nothing
        a_signed_prekey_that_is_not_newer_is_stale
        a_digest_covers_every_key_that_the_server_serves
        only_levels_below_the_size_of_a_replaced_pool_are_announced
        claims_during_replacements_get_a_key_of_the_pool_at_that_moment;
    keys:
        a_publish_reports_the_outcome_of_each_key
        signatures_of_stored_keys_are_not_verified_again
        claims_take_the_oldest_key_and_repeats_take_none
        claims_in_a_batch_fail_individually
        claims_in_a_batch_take_keys_in_order
        each_claimed_key_takes_one_token_of_the_drain_limit
        each_low_level_is_announced_once_until_a_publish_lifts_the_pool_above_it
        revoked_and_expired_sessions_cannot_do_anything;
    mail:
        messages_in_a_batch_are_numbered_in_order
        messages_and_acks_in_a_batch_are_refused_individually
        a_repeated_message_is_a_duplicate_for_a_day
        a_repeated_message_lists_all_devices_that_still_lack_it
        mail_pages_are_bounded_in_number_and_bytes
        mailbox_limits_hold_within_a_batch
        expired_messages_are_deleted_and_counted
        a_displaced_connection_cannot_send
        parallel_batches_lose_no_message_and_leave_no_gap_in_the_numbers;
    push:
        a_target_is_confirmed_by_its_nonce_in_time_and_once_replaced_not_any_more
        a_wake_up_is_taken_once_and_again_if_its_outcome_is_not_written
        a_node_takes_wake_ups_only_of_the_kind_that_it_asks_for
        an_ack_ends_a_wake_up_even_if_the_push_is_under_way
        only_urgent_messages_for_a_confirmed_target_wake
        the_answer_to_an_old_push_removes_no_new_target
        failures_are_counted_until_a_push_succeeds
        a_target_that_is_confirmed_while_messages_wait_is_used_for_them
        a_message_that_comes_while_a_wake_up_ends_has_its_own
        a_target_is_not_used_before_the_time_that_its_service_named
        a_target_goes_with_its_device_and_its_account;
    safety:
        a_device_may_not_disturb_older_ones_before_it_is_old_enough
        a_code_of_another_purpose_is_not_counted
        an_address_is_changed_unless_another_user_has_it
        of_parallel_changes_to_one_address_one_succeeds
        the_sessions_of_a_user_are_listed_and_ended_as_pairs
        a_device_has_at_most_thirty_sessions_when_it_signs_in;
    approvals:
        three_requests_of_a_user_pend_and_ten_are_made_in_a_day
        requests_from_the_future_take_no_place_and_are_swept
        a_request_is_decided_once_and_the_same_decision_is_repeatable
        of_parallel_decisions_of_a_request_one_holds
        a_request_whose_time_has_come_waits_for_a_place_and_for_nothing_else
        a_request_that_replaces_a_device_needs_no_other_place
        a_request_is_announced_again_if_it_was_not_mailed_and_once_a_day
        the_recovery_key_signs_in_at_once_and_stands_in_for_the_proof_of_a_replaced_device
        a_new_address_needs_an_approval_and_ends_the_requests_of_new_devices
        a_young_device_revokes_no_older_one_by_its_decision
        a_device_that_has_published_since_its_request_is_not_approved_without_its_proof
        a_decision_cannot_replace_the_device_that_it_signs_in;
}
