//! Holds sockets to one server and measures its memory, answers and round trips.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use serde::Serialize;
use tokio::{net::lookup_host, time::sleep};

use crate::{
    Result,
    part::{Order, Outcome},
    process::{AT_ONCE, Load, Rate, Swarm, Target, settled_kib},
};

/// An op that only reads, once for each socket.
pub const PLAIN_READ: &str = "keys.status";
/// Between the load on all sockets and the reading of the memory.
pub const REST_AFTER_LOAD: Duration = Duration::from_secs(30);

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
    /// How long all sockets then make round trips of `--busy-op`, one at a time each; 0 for not at all
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    busy: u64,
    /// The op of these round trips
    #[arg(long, default_value = PLAIN_READ)]
    busy_op: String,
    /// How long to measure round trips afterwards; 0 for not at all
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    round_trips: u64,
    #[command(flatten)]
    load: Load,
}

/// The measurements of a held swarm. Memory is resident memory in KiB.
#[derive(Debug, Default, Serialize)]
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
    /// The rate while all sockets were busy, if measured.
    pub busy: Option<Rate>,
    /// Memory per socket half a minute after that.
    pub rested_kib_per_socket: Option<f64>,
    /// The rate under load, if measured.
    pub load: Option<Rate>,
}

/// A swarm whose sockets stay open, and the measurements so far.
pub struct Holding {
    pub swarm: Swarm,
    pub held: Held,
    pid: u32,
}

impl Holding {
    /// Opens the sockets of a swarm.
    pub async fn open(target: &Target, pid: u32, sockets: usize) -> Result<Self> {
        let mut swarm = Swarm::start(target, 0..sockets)?;
        let before_kib = settled_kib(pid).await?;
        let Outcome { open, failures, .. } = swarm.order(Order::Open { at_once: AT_ONCE }).await?;
        Ok(Self { swarm, held: Held { open, failures, before_kib, ..Held::default() }, pid })
    }

    /// Reads the memory of idle sockets, then asks each for an answer and reads it again.
    pub async fn ask(&mut self) -> Result<()> {
        self.held.idle_kib = settled_kib(self.pid).await?;
        let opened = self.held.open;
        let asked = self.swarm.order(Order::Ask).await?;
        self.held.asked_kib = settled_kib(self.pid).await?;
        self.held.idle_kib_per_socket = self.held.per_socket(self.held.idle_kib, opened);
        self.held.asked_kib_per_socket = self.held.per_socket(self.held.asked_kib, opened);
        (self.held.open, self.held.answered) = (asked.open, asked.answered);
        Ok(())
    }

    /// Keeps a request of `op` in flight on every socket for some seconds.
    pub async fn keep_busy(&mut self, op: &str, seconds: u64) -> Result<()> {
        let load = Load { active: usize::MAX, pipeline: 1, op: op.to_owned() };
        self.held.busy = Some(self.swarm.load(self.pid, &load, seconds).await?);
        Ok(())
    }

    /// Reads the memory of sockets that were busy and are idle again.
    pub async fn read_rested(&mut self) -> Result<()> {
        let rested_kib = settled_kib(self.pid).await?;
        self.held.rested_kib_per_socket = Some(self.held.per_socket(rested_kib, self.held.open));
        Ok(())
    }
}

impl Held {
    #[expect(clippy::cast_precision_loss, reason = "memory is far below 2^52 KiB")]
    fn per_socket(&self, kib: u64, sockets: usize) -> f64 {
        kib.saturating_sub(self.before_kib) as f64 / sockets.max(1) as f64
    }
}

/// Runs the command: holds the sockets, measures, and prints the results.
pub async fn run(options: Options) -> Result<()> {
    let (address, path) = parse_url(&options.url).await?;
    let target = Target { address, path, tokens: options.tokens, op: options.load.op.clone() };
    let mut holding = Holding::open(&target, options.pid, options.sockets).await?;
    sleep(Duration::from_secs(options.seconds)).await;
    holding.ask().await?;
    if options.busy > 0 {
        holding.keep_busy(&options.busy_op, options.busy).await?;
        sleep(REST_AFTER_LOAD).await;
        holding.read_rested().await?;
    }
    let Holding { mut swarm, mut held, .. } = holding;
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
