//! The rate limits of the use cases, as both the configuration and the service know them.

use serde::Deserialize;

/// The settings of `[limits]` that the use cases enforce. 0 turns a limit off.
#[derive(Clone, Debug, Deserialize)]
pub struct UsageLimits {
    /// Codes per hour to one address.
    pub otp_per_email_hour: usize,
    /// Codes per day to one address.
    pub otp_per_email_day: usize,
    /// Codes per hour to one address, requested from one client network.
    pub otp_per_email_network_hour: usize,
    /// Codes per hour requested from one client network.
    pub otp_per_network_hour: usize,
    /// Leading zero bits of the proof of work that every request for a code needs, except from known networks and with a
    /// valid token.
    pub signup_proof_bits: u8,
    /// Attempts per minute to redeem a code from one client network.
    pub verify_per_network_minute: usize,
    /// Wrong guesses per day at codes from one client network. Not in force if `verify_per_network_minute` is 0.
    pub wrong_guesses_per_network_day: usize,
    /// Look-ups of tokens per minute from one client network that fail.
    pub session_failures_per_network_minute: usize,
    /// Polls per minute from one client network that name an unknown request for an approval or show a wrong token.
    pub poll_failures_per_network_minute: usize,
    /// Changes per hour of an account's lock by one device.
    pub lock_changes_per_device_hour: usize,
    /// Addresses per hour looked up by one user.
    pub find_per_user_hour: usize,
    /// Claims of one user that take a one-time key of one device: the number allowed in a burst.
    pub claim_burst: u32,
    /// Seconds until one more such claim is allowed. At least 1.
    pub claim_refill_s: u64,
    /// Claims per hour of all strangers together that take a one-time key of one device.
    pub stranger_keys_per_device_hour: u32,
    /// Messages per second sent by one device.
    pub sends_per_device_second: u32,
    /// Messages per second sent by one user to one other, ephemeral ones included; as a burst, five times as many.
    pub sends_per_pair_second: u32,
}
