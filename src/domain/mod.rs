//! Pure types and rules: what an address, a code, a token, a key or a bundle is. Nothing here knows of sockets,
//! databases or runtimes, so every rule can be tested by calling it.

pub mod bucket;
pub mod bundle;
pub mod email;
pub mod envelope;
pub mod event;
pub mod ids;
pub mod keys;
pub mod otp;
pub mod publish;
pub mod refusal;
pub mod session;
pub mod signature;
pub mod time;
pub mod token;
pub mod token_bucket;

pub use bundle::{Bundle, Bundles, KeyKind, KeysStatus, OneTimeOutcome};
pub use email::Email;
pub use envelope::Envelope;
pub use event::{Deliver, EndReason, LiveConnection, Signal};
pub use ids::{ChallengeId, ClaimId, DeviceId, MessageId, SessionId, UserId};
pub use keys::Suite;
pub use refusal::Refusal;
pub use session::{Caller, Session};
pub use time::Timestamp;
