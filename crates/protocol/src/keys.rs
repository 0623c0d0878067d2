//! Keys: the ops `keys.publish`, `keys.status`, `keys.fetch` and `keys.claim`.

mod bundles;
mod cost;
mod publish;
mod suite;

pub use bundles::{
    BundleOneTimePrekey, BundlePqPrekey, BundleSignedPrekey, BundlesReply, ClaimKeysRequest, FetchKeysRequest,
    OneTimeOutcome, PrekeyBundle, UnavailableDevice, UnavailableReason,
};
pub use cost::cost_in_tenths;
pub use publish::{
    KeyIdReport, KeyKind, KeysStatusReply, KeysStatusRequest, PublishKeysReply, PublishKeysRequest, PublishedKey,
    PublishedSignedKey, PublishedSignedPrekey, ServedLastResort, ServedSignedPrekey,
};
pub use suite::Suite;
