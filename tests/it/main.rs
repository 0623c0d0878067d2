//! Integration tests of the whole server over real sockets, in one binary. Each file covers one subject.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic fails the test")]
#![expect(clippy::disallowed_methods, reason = "tests create ids, clocks and environments themselves")]

mod admin;
mod alerts;
mod api_documents;
mod architecture;
mod auth;
mod bad_requests;
mod browser;
mod claims;
mod cli;
mod cluster;
mod cluster_bus;
mod cluster_claims;
mod cluster_messages;
mod cluster_mixed;
mod contract;
mod database_files;
mod deploy;
mod deploy_proxy;
mod docs;
mod drain;
mod events;
mod floods;
mod frames;
mod fuzz;
mod hostile;
mod hostile_http;
mod hostile_keys;
mod liveness;
mod log_lines;
mod logs;
mod mail;
mod messages;
mod metrics;
mod metrics_connections;
mod migrations;
mod outage;
mod redis_tls;
mod requests;
mod restore;
mod rolling;
mod sessions;
mod settings;
mod status_page;
mod stopping;
mod support;
mod tour;
mod transport;
mod upgrades;
