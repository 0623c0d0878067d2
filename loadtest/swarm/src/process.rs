//! Processes: those of a swarm and of servers, and the memory and CPU time of a server.

use std::{
    future::Future,
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use futures_util::future::try_join_all;
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    task::LocalSet,
    time::{Instant, sleep},
};

use crate::{
    Result,
    echo::Transport,
    part::{Order, Outcome},
    times::Times,
};

/// Sockets of one process, well below the 20,000 files that it may open.
const SOCKETS_PER_PART: usize = 8_000;
/// Handshakes in progress at once, unless the command says otherwise.
pub const AT_ONCE: usize = 64;
/// A server's memory has settled when it changes by less than this fraction between two readings.
const SETTLED: f64 = 0.002;

/// Runs a command to its end on a single thread.
pub fn block_on(future: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, future)
}

/// Resident memory of a process in KiB.
pub fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no VmRSS")?;
    Ok(kib.parse()?)
}

/// CPU time that a process has used, user and system.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    /// Unit of the times in /proc, on all common Linux systems.
    const TICKS_PER_SECOND: u64 = 100;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may contain any characters. utime and stime are fields 14 and 15 of the line.
    let (_, fields) = stat.rsplit_once(')').ok_or("no name")?;
    let ticks: Vec<u64> =
        fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<std::result::Result<_, _>>()?;
    Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 1000 / TICKS_PER_SECOND))
}

/// [`resident_kib`] once it has settled, or after 30 seconds.
pub async fn settled_kib(pid: u32) -> Result<u64> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut before = resident_kib(pid)?;
    loop {
        sleep(Duration::from_secs(2)).await;
        let now = resident_kib(pid)?;
        #[expect(clippy::cast_precision_loss, reason = "memory is far below 2^52 KiB")]
        let change = now.abs_diff(before) as f64 / now as f64;
        if change < SETTLED || Instant::now() > deadline {
            return Ok(now);
        }
        before = now;
    }
}

/// The server and the identities of the clients.
#[derive(Debug, Clone)]
pub struct Target {
    /// Address of the server.
    pub address: SocketAddr,
    /// Path of the socket.
    pub path: String,
    /// Seed file with tokens; without it the sockets are anonymous.
    pub tokens: Option<PathBuf>,
    /// The op of the requests.
    pub op: String,
}

/// The load for measuring round trips.
#[derive(Debug, Clone, clap::Args)]
pub struct Load {
    /// Number of sockets that make round trips
    #[arg(long, default_value_t = 64)]
    pub active: usize,
    /// Requests in flight on each of them
    #[arg(long, default_value_t = 16)]
    pub pipeline: u32,
    /// The op of the requests; an unknown op is answered without using the store
    #[arg(long, default_value = "swarm.echo")]
    pub op: String,
}

/// The performance of a server under load.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Rate {
    /// Round trips or connects per second.
    pub per_second: f64,
    /// The server's CPU time for each, in microseconds. It depends little on other load on the machine.
    pub cpu_micros: f64,
}

impl Rate {
    fn of(count: u64, seconds: f64, cpu: Duration) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let count = count as f64;
        Self { per_second: count / seconds, cpu_micros: cpu.as_secs_f64() * 1e6 / count }
    }
}

/// Sockets in separate processes. Dropping this ends the processes.
pub struct Swarm {
    parts: Vec<Part>,
}

struct Part {
    /// Killed on drop.
    _process: Child,
    orders: ChildStdin,
    outcomes: Lines<BufReader<ChildStdout>>,
}

impl Swarm {
    /// Starts the processes for the sockets of the devices in this range of the seed file. Opens no socket yet.
    pub fn start(target: &Target, devices: Range<usize>) -> Result<Self> {
        let mut parts = Vec::new();
        // The number determines the source address. Swarms whose ranges do not overlap have different ones.
        let first = u8::try_from(devices.start.div_ceil(SOCKETS_PER_PART))?;
        for (number, start) in (first..).zip(devices.clone().step_by(SOCKETS_PER_PART)) {
            parts.push(Part::start(target, number, SOCKETS_PER_PART.min(devices.end - start), start)?);
        }
        Ok(Self { parts })
    }

    /// Gives an order to all processes at once, and adds up the outcomes.
    pub async fn order(&mut self, order: Order) -> Result<Outcome> {
        let each = self.shares(order);
        let outcomes = try_join_all(self.parts.iter_mut().zip(&each).map(|(part, order)| part.order(order)));
        let mut sum = Outcome::default();
        for outcome in outcomes.await? {
            sum.open += outcome.open;
            sum.answered += outcome.answered;
            sum.round_trips += outcome.round_trips;
            sum.seconds = sum.seconds.max(outcome.seconds);
            sum.opening.extend(outcome.opening);
            for (failure, count) in outcome.failures {
                *sum.failures.entry(failure).or_default() += count;
            }
        }
        Ok(sum)
    }

    /// Keeps requests in flight for some seconds, and measures the server `pid`.
    pub async fn load(&mut self, pid: u32, load: &Load, seconds: u64) -> Result<Rate> {
        let before = cpu_time(pid)?;
        let order = Order::Load { active: load.active, pipeline: load.pipeline, op: load.op.clone(), seconds };
        let outcome = self.order(order).await?;
        let cpu = cpu_time(pid)?.saturating_sub(before);
        Ok(Rate::of(outcome.round_trips, outcome.seconds, cpu))
    }

    /// Opens all sockets, so many at a time, closes them, and measures how the server `pid` handles the opening. Also
    /// returns how long each took.
    pub async fn connect(&mut self, pid: u32, at_once: usize) -> Result<(Rate, Times)> {
        let before = cpu_time(pid)?;
        let outcome = self.order(Order::Open { at_once }).await?;
        let cpu = cpu_time(pid)?.saturating_sub(before);
        self.order(Order::Close).await?;
        if let Some((failure, count)) = outcome.failures.first_key_value() {
            return Err(format!("{count} sockets failed: {failure}").into());
        }
        Ok((Rate::of(outcome.open as u64, outcome.seconds, cpu), Times::from(outcome.opening)))
    }

    /// The orders for the processes, among which sockets and handshakes are spread evenly.
    fn shares(&self, order: Order) -> Vec<Order> {
        let parts = self.parts.len();
        let share = |all: usize, n| all / parts + usize::from(n < all % parts);
        match order {
            Order::Load { active, pipeline, op, seconds } => {
                let load = |n| Order::Load { active: share(active, n), pipeline, op: op.clone(), seconds };
                (0..parts).map(load).collect()
            }
            Order::Open { at_once } => (0..parts).map(|n| Order::Open { at_once: share(at_once, n).max(1) }).collect(),
            other => vec![other; parts],
        }
    }
}

impl Part {
    fn start(target: &Target, number: u8, sockets: usize, skip: usize) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["part", "--address", &target.address.to_string(), "--path", &target.path])
            .args(["--part", &number.to_string(), "--op", &target.op])
            .args(["--sockets", &sockets.to_string(), "--skip", &skip.to_string()]);
        if let Some(tokens) = &target.tokens {
            command.arg("--tokens").arg(tokens);
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let orders = process.stdin.take().ok_or("no standard input")?;
        let outcomes = process.stdout.take().ok_or("no standard output")?;
        Ok(Self { _process: process, orders, outcomes: BufReader::new(outcomes).lines() })
    }

    async fn order(&mut self, order: &Order) -> Result<Outcome> {
        let line = serde_json::to_string(order)? + "\n";
        self.orders.write_all(line.as_bytes()).await?;
        let answer = self.outcomes.next_line().await?.ok_or("a part of the swarm ended")?;
        Ok(serde_json::from_str(&answer)?)
    }
}

/// A server process that was started here. Dropping this kills it; [`Server::stop`] also waits.
pub struct Server {
    process: Child,
}

impl Server {
    /// Starts `command`. Its output goes to `log`, or is discarded.
    pub fn start(command: &mut Command, log: Option<&Path>) -> Result<Self> {
        let output = || -> Result<Stdio> {
            Ok(match log {
                Some(path) => std::fs::OpenOptions::new().create(true).append(true).open(path)?.into(),
                None => Stdio::null(),
            })
        };
        let process = command.stdout(output()?).stderr(output()?).kill_on_drop(true).spawn()?;
        Ok(Self { process })
    }

    /// Starts `swarm echo` and waits until it listens.
    pub async fn start_echo(transport: Transport, workers: usize) -> Result<(Self, SocketAddr)> {
        let transport = match transport {
            Transport::Stock => "stock",
            Transport::Lean => "lean",
        };
        let mut process = Command::new(std::env::current_exe()?)
            .args(["echo", "--transport", transport, "--workers", &workers.to_string()])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = process.stdout.take().ok_or("no standard output")?;
        let line = BufReader::new(output).lines().next_line().await?.ok_or("the echo server ended")?;
        let said: serde_json::Value = serde_json::from_str(&line)?;
        let address = said["address"].as_str().ok_or("no address")?.parse()?;
        Ok((Self { process }, address))
    }

    /// The process id.
    ///
    /// # Errors
    /// If the server has ended.
    pub fn pid(&mut self) -> Result<u32> {
        if let Some(status) = self.process.try_wait()? {
            return Err(format!("the server ended: {status}").into());
        }
        Ok(self.process.id().ok_or("the server ended")?)
    }

    /// Kills the server and waits for its end.
    pub async fn stop(mut self) -> Result<()> {
        Ok(self.process.kill().await?)
    }
}
