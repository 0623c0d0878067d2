//! Opens and closes sockets to a running server again and again, and measures how it handles the opening.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;
use tokio::time::sleep;

use crate::{
    Result,
    hold::parse_url,
    process::{AT_ONCE, Rate, Swarm, Target},
    times::{Percentiles, Times},
};

/// A pause between rounds, so that the work that follows closing does not count for the next round.
const REST: Duration = Duration::from_secs(1);

/// Options of `swarm connects`.
#[derive(clap::Args)]
pub struct Options {
    /// The socket, such as `ws://127.0.0.1:8080/v1/socket`
    #[arg(long)]
    url: String,
    /// Seed file: one JSON line per socket, with its token
    #[arg(long, required_unless_present = "anonymous")]
    tokens: Option<PathBuf>,
    /// Send no token
    #[arg(long, conflicts_with = "tokens")]
    anonymous: bool,
    /// Sockets to open in each round
    #[arg(long, default_value_t = 2_000)]
    sockets: usize,
    /// Handshakes in progress at once
    #[arg(long, default_value_t = AT_ONCE)]
    at_once: usize,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Count the first round too, instead of warming the server with one more
    #[arg(long)]
    cold: bool,
    /// Process id of the server, to read its CPU time
    #[arg(long)]
    pid: u32,
}

/// The measurements.
#[derive(Debug, Serialize)]
struct Connects {
    /// The median of the rounds' rates.
    per_second: f64,
    /// The median of the rounds' CPU times of the server for each connect, in microseconds.
    server_cpu_micros: f64,
    /// How long the connects of all rounds took, from the TCP connection to the welcome.
    #[serde(flatten)]
    took: Percentiles,
    /// All rounds, in order.
    rounds: Vec<Rate>,
}

/// Runs the command and prints one line of JSON.
pub async fn run(options: Options) -> Result<()> {
    let (address, path) = parse_url(&options.url).await?;
    let target = Target { address, path, tokens: options.tokens, op: String::new() };
    let mut swarm = Swarm::start(&target, 0..options.sockets)?;
    let mut rounds = Vec::with_capacity(options.rounds);
    let mut times = Times::default();
    if !options.cold {
        swarm.connect(options.pid, options.at_once).await?;
        sleep(REST).await;
    }
    for _ in 0..options.rounds {
        let (rate, took) = swarm.connect(options.pid, options.at_once).await?;
        rounds.push(rate);
        times.append(took);
        sleep(REST).await;
    }
    let median = |of: fn(&Rate) -> f64| crate::compare::median(rounds.iter().map(of));
    let (per_second, server_cpu_micros) = (median(|rate| rate.per_second), median(|rate| rate.cpu_micros));
    println!(
        "{}",
        serde_json::to_string(&Connects { per_second, server_cpu_micros, took: times.percentiles(), rounds })?
    );
    Ok(())
}
