//! Holds sockets to one server and measures its memory, answers and round trips.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use serde::Serialize;
use tokio::{net::lookup_host, time::sleep};

use crate::{
    Result,
    part::Order,
    process::{Load, Rate, Swarm, Target, settled_kib},
};

/// Options of `swarm hold`.
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
    #[arg(long)]
    sockets: usize,
    /// How long to hold the sockets before measuring
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Process id of the server, to read its memory
    #[arg(long)]
    pid: u32,
    /// How long to measure round trips afterwards; 0 for not at all
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    round_trips: u64,
    #[command(flatten)]
    load: Load,
}

/// The measurements of a held swarm. Memory is resident memory in KiB.
#[derive(Debug, Serialize)]
pub struct Held {
    /// Sockets open after each was asked for an answer.
    pub open: usize,
    /// Number of sockets that could not be opened, by error text.
    pub failures: BTreeMap<String, usize>,
    /// The server's memory before the sockets were opened.
    pub before_kib: u64,
    /// Its memory with all of them idle.
    pub idle_kib: u64,
    /// Its memory after a round trip on each.
    pub asked_kib: u64,
    /// Idle memory per socket.
    pub idle_kib_per_socket: f64,
    /// The same after a round trip on each.
    pub asked_kib_per_socket: f64,
    /// Sockets that answered when each was asked for an answer.
    pub answered: usize,
    /// The rate under load, if measured.
    pub load: Option<Rate>,
}

/// Opens a swarm, keeps it idle for `time`, then asks each socket for an answer.
pub async fn hold(target: &Target, pid: u32, sockets: usize, time: Duration) -> Result<(Swarm, Held)> {
    let mut swarm = Swarm::start(target, 0..sockets)?;
    let before_kib = settled_kib(pid).await?;
    let opened = swarm.order(Order::Open).await?;
    sleep(time).await;
    let idle_kib = settled_kib(pid).await?;
    let asked = swarm.order(Order::Ask).await?;
    let asked_kib = settled_kib(pid).await?;
    #[expect(clippy::cast_precision_loss, reason = "memory is far below 2^52 KiB")]
    let per_socket = |kib: u64| kib.saturating_sub(before_kib) as f64 / opened.open.max(1) as f64;
    let held = Held {
        open: asked.open,
        failures: opened.failures,
        before_kib,
        idle_kib,
        asked_kib,
        idle_kib_per_socket: per_socket(idle_kib),
        asked_kib_per_socket: per_socket(asked_kib),
        answered: asked.answered,
        load: None,
    };
    Ok((swarm, held))
}

/// Runs the command: holds the sockets, measures, and prints the results.
pub async fn run(options: Options) -> Result<()> {
    let (address, path) = parse_url(&options.url).await?;
    let target = Target { address, path, tokens: options.tokens, op: options.load.op.clone() };
    let time = Duration::from_secs(options.seconds);
    let (mut swarm, mut held) = hold(&target, options.pid, options.sockets, time).await?;
    if options.round_trips > 0 {
        held.load = Some(swarm.load(options.pid, &options.load, options.round_trips).await?);
    }
    println!("{}", serde_json::to_string_pretty(&held)?);
    Ok(())
}

/// The address and path of a `ws://` URL.
pub async fn parse_url(url: &str) -> Result<(SocketAddr, String)> {
    let rest = url.strip_prefix("ws://").ok_or("the URL must begin with ws://")?;
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let address = lookup_host(host).await?.next().ok_or("the host has no address")?;
    Ok((address, if path.is_empty() { "/" } else { path }.to_owned()))
}
