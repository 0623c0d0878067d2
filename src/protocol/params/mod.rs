//! The parameters of every op and the bodies of the HTTP requests, by area, with what can be refused while reading them.

use serde::Deserialize;

pub mod accounts;
pub mod keys;
pub mod messages;

/// No parameters: any map will do.
#[derive(Deserialize)]
pub struct Nothing {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        accounts::VerifyBody,
        keys::{Claim, Publish},
        messages::{Ack, Send},
    };
    use crate::protocol::Codec;

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for codec in Codec::ALL {
                let _ = codec.decode::<Publish>(&bytes);
                let _ = codec.decode::<Claim>(&bytes);
                let _ = codec.decode::<Send<'_>>(&bytes);
                let _ = codec.decode::<Ack>(&bytes);
                let _ = codec.decode::<VerifyBody>(&bytes);
            }
        }
    }
}
