//! Sealwire beside two bare echo servers, one on its own transport and one on the stock one: the same swarm to each, one
//! after the other.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::{Instant, sleep},
};

use crate::{
    Result,
    echo::Transport,
    hold::{Held, hold},
    process::{Load, Rate, Server, Swarm, Target},
};

/// How long the server may take to become ready.
const READY_TIME: Duration = Duration::from_secs(30);
/// A rest between rounds, so that one server's last work is not charged to the other.
const REST: Duration = Duration::from_secs(1);

/// What to compare, and how thoroughly.
#[derive(clap::Args)]
pub struct Options {
    /// The binary to measure
    #[arg(long, default_value = "target/release/sealwire")]
    sealwire: PathBuf,
    #[arg(long, default_value_t = 10_000)]
    sockets: usize,
    /// How long the sockets idle before memory is read
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Rounds of load for each server, in turns
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long a round lasts
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    round_seconds: u64,
    /// Worker threads of each server
    #[arg(long, default_value_t = 2)]
    workers: usize,
    #[command(flatten)]
    load: Load,
}

/// The command: start the servers, measure each, print one table, stop them.
pub async fn run(options: Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let tokens = folder.path().join("tokens.jsonl");
    let sealwire = start_sealwire(&options, folder.path(), &tokens).await?;
    let mut contenders = vec![Contender::hold("sealwire", sealwire, ("/v1/socket", Some(tokens)), &options).await?];
    for (name, transport) in [("lean", Transport::Lean), ("stock", Transport::Stock)] {
        let echo = Server::start_echo(transport, options.workers).await?;
        contenders.push(Contender::hold(name, echo, ("/", None), &options).await?);
    }
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for step in 0..contenders.len() {
            // Each is the first now and then.
            let turn = (round + step) % contenders.len();
            let contender = &mut contenders[turn];
            sleep(REST).await;
            let pid = contender.server.pid()?;
            contender.rates.push(contender.swarm.load(pid, &options.load, options.round_seconds).await?);
        }
    }
    print_table(&options, &contenders);
    for contender in contenders {
        contender.server.stop().await?;
    }
    Ok(())
}

/// A server, the swarm that holds sockets to it, and what was measured.
struct Contender {
    name: &'static str,
    server: Server,
    swarm: Swarm,
    held: Held,
    rates: Vec<Rate>,
}

impl Contender {
    /// Holds sockets to a server that has just been started, at a path and with the tokens of a seed file, if any.
    async fn hold(
        name: &'static str,
        (mut server, address): (Server, SocketAddr),
        (path, tokens): (&str, Option<PathBuf>),
        options: &Options,
    ) -> Result<Self> {
        eprintln!("{name}: {} sockets for {} s", options.sockets, options.seconds);
        let target = Target { address, path: path.to_owned(), tokens, op: options.load.op.clone() };
        let time = Duration::from_secs(options.seconds);
        let (swarm, held) = hold(&target, server.pid()?, options.sockets, time).await?;
        for (failure, count) in &held.failures {
            eprintln!("{name}: {count} sockets failed: {failure}");
        }
        Ok(Self { name, server, swarm, held, rates: Vec::new() })
    }

    /// The median over the rounds.
    fn rate(&self, of: fn(&Rate) -> f64) -> f64 {
        median(self.rates.iter().map(of))
    }

    /// The median of the rounds' ratios to what another made of the same round: what disturbs a round disturbs both.
    fn ratio(&self, base: &Self, of: fn(&Rate) -> f64) -> f64 {
        median(self.rates.iter().zip(&base.rates).map(|(ours, theirs)| of(ours) / of(theirs)))
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Seeds a fresh store with a device for each socket, and serves it on free ports.
async fn start_sealwire(options: &Options, folder: &Path, tokens: &Path) -> Result<(Server, SocketAddr)> {
    let [public, admin] = free_addresses()?;
    let log = folder.join("sealwire.log");
    let command = || {
        let mut command = Command::new(&options.sealwire);
        command
            .env("SEALWIRE__DATABASE__URL", format!("sqlite://{}/x.db", folder.display()))
            .env("SEALWIRE__SERVER__BIND", public.to_string())
            .env("SEALWIRE__SERVER__WORKERS", options.workers.to_string())
            .env("SEALWIRE__ADMIN__BIND", admin.to_string())
            .env("SEALWIRE__MAILER__URL", format!("file:{}/mail", folder.display()))
            // All clients are of a few networks and busier than people are.
            .env("SEALWIRE__LIMITS__CONNECTIONS_PER_NETWORK", "0")
            .env("SEALWIRE__LIMITS__HTTP_CONNECTIONS_PER_NETWORK", "0")
            .env("SEALWIRE__LIMITS__CONNECTS_PER_NETWORK_SECOND", "0")
            .env("SEALWIRE__LIMITS__REQUESTS_PER_CONNECTION_SECOND", "0");
        command
    };
    eprintln!("sealwire: seeding {} devices", options.sockets);
    let seeded = command()
        .args(["seed", "--users", &options.sockets.to_string()])
        .args(["--devices", "1", "--prekeys", "1", "--out"])
        .arg(tokens)
        .stdout(std::process::Stdio::null())
        .status()
        .await?;
    if !seeded.success() {
        return Err(format!("seeding failed: {seeded}").into());
    }
    let mut server = Server::start(command().arg("serve"), Some(&log))?;
    let deadline = Instant::now() + READY_TIME;
    while !is_ready(public).await {
        if server.pid().is_err() || Instant::now() > deadline {
            let said = std::fs::read_to_string(&log)?;
            return Err(format!("sealwire did not become ready; it said:\n{said}").into());
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok((server, public))
}

/// Two loopback addresses that nobody listened on a moment ago.
fn free_addresses() -> Result<[SocketAddr; 2]> {
    let [one, two] = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    Ok([one.local_addr()?, two.local_addr()?])
}

/// Whether `/readyz` answers 200.
async fn is_ready(address: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with(b"HTTP/1.1 200"))
    };
    ask.await.unwrap_or(false)
}

/// One column for each server, and one for the ratio of each to the last.
fn print_table(options: &Options, contenders: &[Contender]) {
    println!(
        "\n{} sockets, {} s idle; round trips over {} sockets, {} under way on each, median of {} rounds\n",
        options.sockets, options.seconds, options.load.active, options.load.pipeline, options.rounds
    );
    let Some((base, others)) = contenders.split_last() else { return };
    let line = |name: &str, cells: &[String]| {
        print!("{name:<28}");
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
        row(name, decimals, &|one| get(&one.held), &|other| get(&other.held) / get(&base.held));
    };
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    held("sockets open", 0, |held| held.open as f64);
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    held("sockets that answered", 0, |held| held.answered as f64);
    held("idle KiB a socket", 2, |held| held.idle_kib_per_socket);
    held("KiB a socket after an answer", 2, |held| held.asked_kib_per_socket);
    let rate = |name: &str, decimals: usize, get: fn(&Rate) -> f64| {
        row(name, decimals, &|one| one.rate(get), &|other| other.ratio(base, get));
    };
    rate("round trips a second", 0, |rate| rate.per_second);
    rate("server CPU µs a round trip", 2, |rate| rate.cpu_micros);
}
