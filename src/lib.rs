//! Sealwire: the server side of an end-to-end-encrypted messenger. It signs people in by e-mail code, keeps their
//! devices, sessions and public keys, and hands out prekey bundles. It never sees a private key or a plaintext.
//!
//! Modules, and what they may import (left may import right):
//!
//! ```text
//! main → app → {http, socket} → edge → service → {store, bus} → domain
//! config is read by main and app alone; sqlite_file is a leaf for config, app and store; clock, log_throttle and tasks are
//! leaves for all; metrics is for all but domain
//! ```
//!
//! The shapes of the protocol are a crate of their own, `sealwire_protocol`. The edges read and write them (`edge`, `http`,
//! `socket`), `metrics` takes its labels from their tables, and `domain` re-exports their vocabulary: ids, times, suites.
//! Below the edges nothing else of it is used, and nothing is serialized for clients.
//!
//! A test reads the imports and fails on any other edge.

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
