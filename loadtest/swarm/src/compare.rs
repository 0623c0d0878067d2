//! Compares sealwire with two bare echo servers, one on sealwire's transport and one on the stock one. Each gets the same
//! load, one after the other.

use std::{
    cell::RefCell,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::sleep;

use crate::{
    Result,
    echo::Transport,
    hold::{Held, Holding, PLAIN_READ, REST_AFTER_LOAD},
    messages::{self, exchange},
    process::{AT_ONCE, Load, Rate, Server, Swarm, Target},
    seeded::start_sealwire,
    tally::Report,
};

/// A pause between measurements, so that one server's remaining work does not count for the next.
const REST: Duration = Duration::from_secs(1);
/// Devices that connect and leave in a round.
const CONNECTS: usize = 2_000;
/// Devices that write to each other. They are different from those that connect and leave and from the idle ones.
const WRITERS: usize = 64;

/// Options of `swarm compare`.
#[derive(clap::Args)]
pub struct Options {
    /// The sealwire binary
    #[arg(long, default_value = "target/release/sealwire")]
    sealwire: PathBuf,
    #[arg(long, default_value_t = 10_000)]
    sockets: usize,
    /// How long the sockets are idle before memory is read
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How long all sockets make round trips at once before memory is read again
    #[arg(long, default_value_t = 8, value_name = "SECONDS")]
    busy_seconds: u64,
    /// Rounds of load for each server
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Duration of a round
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    round_seconds: u64,
    /// Worker threads of each server
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Also write the table to this file, with tabs between its cells
    #[arg(long)]
    results: Option<PathBuf>,
    #[command(flatten)]
    load: Load,
}

/// Runs the command: starts the servers, measures each, prints a table, and stops the servers.
pub async fn run(options: Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let tokens = folder.path().join("tokens.jsonl");
    let devices = options.sockets + CONNECTS + WRITERS;
    let sealwire = start_sealwire(&options.sealwire, options.workers, devices, folder.path(), &tokens).await?;
    let mut contenders = vec![Contender::start("sealwire", sealwire, "/v1/socket", &tokens, &options).await?];
    for (name, transport) in [("lean", Transport::Lean), ("stock", Transport::Stock)] {
        let echo = Server::start_echo(transport, options.workers).await?;
        contenders.push(Contender::start(name, echo, "/", &tokens, &options).await?);
    }
    eprintln!("all: idle for {} s", options.seconds);
    sleep(Duration::from_secs(options.seconds)).await;
    for contender in &mut contenders {
        contender.holding.ask().await?;
    }
    for contender in &mut contenders {
        eprintln!("{}: all sockets busy for {} s", contender.name, options.busy_seconds);
        contender.holding.keep_busy(PLAIN_READ, options.busy_seconds).await?;
    }
    sleep(REST_AFTER_LOAD).await;
    for contender in &mut contenders {
        contender.holding.read_rested().await?;
    }
    eprintln!("sealwire: maximum rate of messages");
    let most = contenders[0].exchange(None).await?.per_second;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some thousands")]
    let half = (most / 2.0) as u32;
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for step in 0..contenders.len() {
            // The server that goes first changes with every round.
            let turn = (round + step) % contenders.len();
            contenders[turn].round(&options, half).await?;
        }
    }
    print_table(&options, half, &contenders)?;
    for contender in contenders {
        contender.server.stop().await?;
    }
    Ok(())
}

/// A server, its clients, and its measurements.
struct Contender {
    name: &'static str,
    server: Server,
    holding: Holding,
    /// Sockets that connect and leave in each round.
    visitors: Swarm,
    writers: messages::Options,
    rounds: Vec<Round>,
}

/// The measurements of one round of load.
struct Round {
    trips: Rate,
    connects: Rate,
    messages: Report,
}

impl Contender {
    /// Opens sockets to a server that has just been started. Only sealwire gets tokens.
    async fn start(
        name: &'static str,
        (mut server, address): (Server, SocketAddr),
        path: &str,
        tokens: &Path,
        options: &Options,
    ) -> Result<Self> {
        eprintln!("{name}: {} sockets", options.sockets);
        let is_echo = name != "sealwire";
        let seed_file = (!is_echo).then(|| tokens.to_owned());
        let target = Target { address, path: path.to_owned(), tokens: seed_file, op: options.load.op.clone() };
        let holding = Holding::open(&target, server.pid()?, options.sockets).await?;
        for (failure, count) in &holding.held.failures {
            eprintln!("{name}: {count} sockets failed: {failure}");
        }
        let first_writer = options.sockets + CONNECTS;
        let visitors = Swarm::start(&target, options.sockets..first_writer)?;
        let url = format!("ws://{address}{path}");
        let devices = first_writer..first_writer + WRITERS;
        let mut writers = messages::Options::new(url, tokens.to_owned(), devices, options.round_seconds);
        writers.echo = is_echo;
        Ok(Self { name, server, holding, visitors, writers, rounds: Vec::new() })
    }

    async fn round(&mut self, options: &Options, half: u32) -> Result<()> {
        let pid = self.server.pid()?;
        sleep(REST).await;
        let trips = self.holding.swarm.load(pid, &options.load, options.round_seconds).await?;
        sleep(REST).await;
        let (connects, _) = self.visitors.connect(pid, AT_ONCE).await?;
        sleep(REST).await;
        let messages = self.exchange(Some(half)).await?;
        self.rounds.push(Round { trips, connects, messages });
        Ok(())
    }

    /// Exchanges messages at this rate, or as fast as possible.
    ///
    /// # Errors
    /// If a message fails, is lost, or arrives out of order.
    async fn exchange(&self, rate: Option<u32>) -> Result<Report> {
        let mut writers = self.writers.clone();
        writers.rate = rate;
        let report = exchange(&writers).await?;
        if let Some((failure, count)) = report.errors.first_key_value() {
            return Err(format!("{}: {count} messages failed: {failure}", self.name).into());
        }
        if report.arrived != report.accepted || report.misplaced > 0 {
            return Err(format!("{}: messages were lost or arrived out of order: {report:?}", self.name).into());
        }
        Ok(report)
    }

    /// The median over the rounds.
    fn median(&self, of: fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(of))
    }

    /// The median of the rounds' ratios to another server in the same round. Other load affects both alike.
    fn ratio(&self, base: &Self, of: fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().zip(&base.rounds).map(|(ours, theirs)| of(ours) / of(theirs)))
    }
}

/// The median of these values; NaN if there are none.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Prints one column for each server, and one for the ratio of each to the last. Also writes them to a file, if one is
/// given.
fn print_table(options: &Options, half: u32, contenders: &[Contender]) -> Result<()> {
    println!(
        "\n{} sockets, {} s idle; plain reads over all of them, one in flight on each; round trips over {} sockets, {} in flight on each; {CONNECTS} connects, 64 at a time;\n\
         {half} messages per second between {WRITERS} devices, an echo of the same text; median of {} rounds\n",
        options.sockets, options.seconds, options.load.active, options.load.pipeline, options.rounds
    );
    let Some((base, others)) = contenders.split_last() else { return Ok(()) };
    let results = RefCell::new(String::new());
    let line = |name: &str, cells: &[String]| {
        results.borrow_mut().extend([name, "\t", cells.join("\t").as_str(), "\n"]);
        print!("{name:<30}");
        for cell in cells {
            print!("{cell:>16}");
        }
        println!();
    };
    let names = contenders.iter().map(|contender| contender.name.to_owned());
    line("", &names.chain(others.iter().map(|other| format!("{}/{}", other.name, base.name))).collect::<Vec<_>>());
    let row = |name: &str, decimals: usize, value: &dyn Fn(&Contender) -> f64, ratio: &dyn Fn(&Contender) -> f64| {
        let values = contenders.iter().map(|contender| format!("{:.decimals$}", value(contender)));
        line(name, &values.chain(others.iter().map(|other| format!("{:.2}", ratio(other)))).collect::<Vec<_>>());
    };
    let held = |name: &str, decimals: usize, get: fn(&Held) -> f64| {
        let of = |one: &Contender| get(&one.holding.held);
        row(name, decimals, &of, &|other| of(other) / of(base));
    };
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    held("sockets open", 0, |held| held.open as f64);
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    held("sockets that answered", 0, |held| held.answered as f64);
    held("idle KiB a socket", 2, |held| held.idle_kib_per_socket);
    held("KiB a socket after an answer", 2, |held| held.asked_kib_per_socket);
    held("KiB a socket after a load", 2, |held| held.rested_kib_per_socket.unwrap_or(f64::NAN));
    held("plain reads a second", 0, |held| held.busy.map_or(f64::NAN, |rate| rate.per_second));
    held("server CPU µs a plain read", 1, |held| held.busy.map_or(f64::NAN, |rate| rate.cpu_micros));
    let measured = |name: &str, decimals: usize, get: fn(&Round) -> f64| {
        row(name, decimals, &|one| one.median(get), &|other| other.ratio(base, get));
    };
    measured("round trips a second", 0, |round| round.trips.per_second);
    measured("server CPU µs a round trip", 2, |round| round.trips.cpu_micros);
    measured("connects a second", 0, |round| round.connects.per_second);
    measured("server CPU µs a connect", 0, |round| round.connects.cpu_micros);
    measured("delivery at half load, p50 ms", 2, |round| round.messages.delivery.p50_ms);
    measured("delivery at half load, p99 ms", 2, |round| round.messages.delivery.p99_ms);
    if let Some(path) = &options.results {
        std::fs::write(path, results.take())?;
    }
    Ok(())
}
