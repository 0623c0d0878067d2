//! Messages: accepted once, delivered in order, kept until they are acked.

mod bounds;
mod delivery;
mod ephemeral;
mod repeats;
mod sending;
