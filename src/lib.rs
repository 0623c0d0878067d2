//! Sealwire: the server of an end-to-end-encrypted messenger. It signs people in by e-mail code, keeps their devices,
//! sessions and public keys, hands out prekey bundles, and delivers messages. It never sees a private key or a
//! plaintext.
//!
//! The modules, and which imports are allowed (left may import right):
//!
//! ```text
//! main → app → {http, socket} → edge → service → {store, bus} → domain
//! only main and app use config; config, app and store use sqlite_file; app, config and service use usage_limits; all may
//! use clock, log_throttle and tasks; all but domain may use metrics
//! ```
//!
//! The protocol's types are in their own crate, `sealwire_protocol`. The edges (`edge`, `http`, `socket`) read and
//! write them, `metrics` takes label values from its tables, and `domain` re-exports ids, times and suites. Modules
//! below the edges use nothing else of the crate and serialize nothing for clients.
//!
//! `tests/it/architecture.rs` reads the imports and fails on any other.

pub mod app;
pub mod bus;
pub mod clock;
pub mod config;
pub mod domain;
pub mod edge;
pub mod http;
pub mod log_throttle;
pub mod metrics;
pub mod probe;
pub mod seed;
pub mod service;
pub mod shutdown;
pub mod socket;
pub mod sqlite_file;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod usage_limits;
