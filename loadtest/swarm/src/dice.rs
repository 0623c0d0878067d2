//! Randomness that need not be secret.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
};

use uuid::{Builder, Uuid};

/// `SplitMix64` (Steele, Lea and Flood 2014): uniform, but predictable.
pub struct Dice(u64);

impl Dice {
    /// A generator with a random seed.
    pub fn new() -> Self {
        Self(RandomState::new().build_hasher().finish())
    }

    /// 64 random bits.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() % bound.max(1) as u64).unwrap_or(0)
    }

    /// A version 4 UUID.
    pub fn uuid(&mut self) -> Uuid {
        let (high, low) = (u128::from(self.roll()), u128::from(self.roll()));
        Builder::from_random_bytes((high << 64 | low).to_be_bytes()).into_uuid()
    }
}
