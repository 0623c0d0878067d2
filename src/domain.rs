//! Domain types and rules: addresses, codes, tokens, keys, bundles, envelopes. Nothing here does I/O, so every rule can
//! be tested by calling it. Ids, times and protocol enums (suites, kinds, reasons) come from the protocol crate; no
//! other type here can be serialized to the wire.

pub mod access;
pub mod approval;
pub mod bundle;
pub mod clock_guard;
pub mod email;
pub mod envelope;
pub mod keyed_buckets;
pub mod keys;
pub mod local_delivery;
pub mod network;
pub mod nodes;
pub mod otp;
pub mod publish;
pub mod push;
pub mod refusal;
pub mod session;
pub mod signal;
pub mod signature;
pub mod token;
pub mod token_bucket;
pub mod work;

pub use access::{AccessKey, AccessSettings, Admission};
pub use approval::{ApprovalKind, PendingApproval};
pub use bundle::{Bundle, Bundles, KeyKind, KeysStatus, OneTimeOutcome};
pub use email::Email;
pub use envelope::Envelope;
pub use keys::Suite;
pub use local_delivery::{LiveConnection, LocalDelivery};
pub use network::ClientNetwork;
pub use refusal::Refusal;
pub use sealwire_protocol::{
    Timestamp,
    ids::{ApprovalId, ChallengeId, ClaimId, DeviceId, MessageId, SessionId, UserId},
};
pub use session::{Caller, Session};
pub use signal::{EndReason, Signal};
