//! Sealwire beside the bare echo server: the same swarm to each, one after the other.

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

/// The command: start both, measure both, print one table, stop both.
pub async fn run(options: Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let tokens = folder.path().join("tokens.jsonl");
    let (mut sealwire, address) = start_sealwire(&options, folder.path(), &tokens).await?;
    let target = Target { address, path: "/v1/socket".to_owned(), tokens: Some(tokens), op: options.load.op.clone() };
    let ours = measure("sealwire", &mut sealwire, &target, &options).await?;

    let (mut echo, address) = Server::start_echo(options.workers).await?;
    let target = Target { address, path: "/".to_owned(), tokens: None, op: options.load.op.clone() };
    let theirs = measure("echo", &mut echo, &target, &options).await?;

    let (mut ours, mut theirs) = (ours, theirs);
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for (measured, server) in [(&mut ours, &mut sealwire), (&mut theirs, &mut echo)] {
            sleep(REST).await;
            let rate = measured.swarm.load(server.pid()?, &options.load, options.round_seconds).await?;
            measured.rates.push(rate);
        }
    }
    print_table(&options, &ours, &theirs);
    sealwire.stop().await?;
    echo.stop().await
}

/// A server's measurements, and the swarm that still holds its sockets.
struct Measured {
    held: Held,
    swarm: Swarm,
    rates: Vec<Rate>,
}

impl Measured {
    fn median(&self, of: impl Fn(&Rate) -> f64) -> f64 {
        let mut values: Vec<f64> = self.rates.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

async fn measure(name: &str, server: &mut Server, target: &Target, options: &Options) -> Result<Measured> {
    eprintln!("{name}: {} sockets for {} s", options.sockets, options.seconds);
    let time = Duration::from_secs(options.seconds);
    let (swarm, held) = hold(target, server.pid()?, options.sockets, time).await?;
    for (failure, count) in &held.failures {
        eprintln!("{name}: {count} sockets failed: {failure}");
    }
    Ok(Measured { held, swarm, rates: Vec::new() })
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
            .env("SEALWIRE__MAILER__URL", format!("file:{}/mail", folder.display()));
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

fn print_table(options: &Options, ours: &Measured, theirs: &Measured) {
    println!(
        "\n{} sockets, {} s idle; round trips over {} sockets, {} under way on each, median of {} rounds\n",
        options.sockets, options.seconds, options.load.active, options.load.pipeline, options.rounds
    );
    println!("{:<28}{:>12}{:>12}{:>10}", "", "sealwire", "echo", "ratio");
    let row = |name: &str, decimals: usize, one: f64, two: f64| {
        println!("{name:<28}{one:>12.decimals$}{two:>12.decimals$}{:>10.2}", one / two);
    };
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let count = |name: &str, get: &dyn Fn(&Held) -> usize| {
        row(name, 0, get(&ours.held) as f64, get(&theirs.held) as f64);
    };
    count("sockets open", &|held| held.open);
    count("sockets that answered", &|held| held.answered);
    let memory = |name: &str, get: &dyn Fn(&Held) -> f64| {
        row(name, 2, get(&ours.held), get(&theirs.held));
    };
    memory("idle KiB a socket", &|held| held.idle_kib_per_socket);
    memory("KiB a socket after an answer", &|held| held.asked_kib_per_socket);
    let rate = |name: &str, decimals: usize, get: fn(&Rate) -> f64| {
        row(name, decimals, ours.median(get), theirs.median(get));
    };
    rate("round trips a second", 0, |rate| rate.per_second);
    rate("server CPU µs a round trip", 2, |rate| rate.cpu_micros);
}
