//! Sealwire: the server side of an end-to-end-encrypted messenger. It signs people in by e-mail code, keeps their
//! devices, sessions and public keys, and hands out prekey bundles. It never sees a private key or a plaintext.
//!
//! Modules, and what they may import (left may import right):
//!
//! ```text
//! main → app → {http, socket} → service → {store, bus} → domain
//!              {http, socket} → protocol → domain
//! config is read by main and app alone; clock, log_throttle and tasks are leaves that all may use; metrics is for all but
//! domain and protocol
//! ```
//!
//! A test reads the `use crate::` lines and fails on any other edge.

pub mod app;
pub mod bus;
pub mod clock;
pub mod config;
pub mod domain;
pub mod http;
pub mod log_throttle;
pub mod metrics;
pub mod probe;
pub mod protocol;
pub mod seed;
pub mod service;
pub mod shutdown;
pub mod socket;
pub mod store;
pub mod tasks;
pub mod telemetry;
