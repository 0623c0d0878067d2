//! One process of a swarm. A process may open only 20,000 files, so a swarm consists of several.
//!
//! It reads [`Order`]s from standard input, one JSON line each, and answers each with an [`Outcome`] on standard output.

use std::{cell::Cell, collections::BTreeMap, net::SocketAddr, path::PathBuf, rc::Rc, time::Duration};

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader, stdin},
    time::{Instant, sleep, timeout},
};

use crate::{
    Result,
    client::{self, Route, Socket, Swarm},
};

/// How long one handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(30);
/// How long to wait for answers.
const ANSWER_TIME: Duration = Duration::from_secs(20);

/// Options of `swarm part`, set by the parent process.
#[derive(clap::Args)]
pub struct Options {
    #[arg(long)]
    pub address: SocketAddr,
    #[arg(long)]
    pub path: String,
    #[arg(long)]
    pub part: u8,
    #[arg(long)]
    pub sockets: usize,
    #[arg(long)]
    pub op: String,
    /// Seed file, of which this process uses `sockets` lines after the first `skip`
    #[arg(long)]
    pub tokens: Option<PathBuf>,
    #[arg(long)]
    pub skip: usize,
}

/// An order of the parent process.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Open all sockets, so many at a time.
    Open { at_once: usize },
    /// Close all sockets.
    Close,
    /// Make one round trip on every socket.
    Ask,
    /// Keep `pipeline` requests of `op` in flight on each of the first `active` sockets.
    Load { active: usize, pipeline: u32, op: String, seconds: u64 },
}

/// The outcome of an order. Fields that do not apply to the order are empty.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// Sockets open now.
    pub open: usize,
    /// Number of sockets that could not be opened, by error text.
    pub failures: BTreeMap<String, usize>,
    /// How long each took to open, until its welcome, in microseconds.
    pub opening: Vec<u32>,
    /// Sockets that answered.
    pub answered: usize,
    /// Round trips of all sockets.
    pub round_trips: u64,
    /// Duration of the order.
    pub seconds: f64,
}

/// Runs the command: carries out orders until standard input is closed.
pub async fn run(options: Options) -> Result<()> {
    let tokens = options.tokens.as_deref().map(std::fs::read_to_string).transpose()?;
    let tokens = match &tokens {
        Some(lines) => lines
            .lines()
            .skip(options.skip)
            .take(options.sockets)
            .map(|line| Ok(Some(serde_json::from_str::<Seed>(line)?.token)))
            .collect::<Result<Vec<_>>>()?,
        None => vec![None; options.sockets],
    };
    let part = Part {
        swarm: Swarm::new(options.op),
        route: Route { address: options.address, path: options.path, part: options.part },
        tokens,
        sockets: Vec::new(),
    };
    part.serve().await
}

/// A line of a seed file.
#[derive(Deserialize)]
struct Seed {
    token: String,
}

struct Part {
    swarm: Rc<Swarm>,
    route: Route,
    tokens: Vec<Option<String>>,
    sockets: Vec<Rc<Socket>>,
}

impl Part {
    async fn serve(mut self) -> Result<()> {
        let mut orders = BufReader::new(stdin()).lines();
        while let Some(order) = orders.next_line().await? {
            let mut outcome = match serde_json::from_str(&order)? {
                Order::Open { at_once } => self.open(at_once).await,
                Order::Close => self.close().await,
                Order::Ask => self.ask().await,
                Order::Load { active, pipeline, op, seconds } => {
                    self.swarm.op.replace(op);
                    self.load(active, pipeline, Duration::from_secs(seconds)).await
                }
            };
            outcome.open = self.sockets.iter().filter(|socket| !socket.ended.get()).count();
            println!("{}", serde_json::to_string(&outcome)?);
        }
        Ok(())
    }

    async fn open(&mut self, at_once: usize) -> Outcome {
        let started = Instant::now();
        let mut outcome = Outcome::default();
        let mut opening = stream::iter(&self.tokens)
            .map(|token| async {
                let began = Instant::now();
                let opened = timeout(HANDSHAKE_TIME, client::open(&self.swarm, &self.route, token.as_deref())).await;
                opened.map_err(std::io::Error::from).flatten().map(|socket| (socket, began.elapsed()))
            })
            .buffer_unordered(at_once);
        while let Some(opened) = opening.next().await {
            match opened {
                Ok((socket, took)) => {
                    self.sockets.push(socket);
                    outcome.opening.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
                }
                Err(error) => *outcome.failures.entry(error.to_string()).or_default() += 1,
            }
        }
        outcome.seconds = started.elapsed().as_secs_f64();
        outcome
    }

    async fn close(&mut self) -> Outcome {
        let started = Instant::now();
        for socket in &self.sockets {
            socket.leave();
        }
        while self.sockets.iter().any(|socket| !socket.ended.get()) && started.elapsed() < ANSWER_TIME {
            sleep(Duration::from_millis(20)).await;
        }
        self.sockets.clear();
        Outcome { seconds: started.elapsed().as_secs_f64(), ..Outcome::default() }
    }

    async fn ask(&self) -> Outcome {
        let started = Instant::now();
        let before: Vec<u64> = self.sockets.iter().map(|socket| socket.answers.get()).collect();
        for socket in &self.sockets {
            socket.request(1);
        }
        let answered = || {
            let pairs = self.sockets.iter().zip(&before);
            pairs.filter(|(socket, before)| socket.answers.get() > **before).count()
        };
        while answered() < self.sockets.len() && started.elapsed() < ANSWER_TIME {
            sleep(Duration::from_millis(20)).await;
        }
        Outcome { answered: answered(), seconds: started.elapsed().as_secs_f64(), ..Outcome::default() }
    }

    async fn load(&self, active: usize, pipeline: u32, time: Duration) -> Outcome {
        let started = Instant::now();
        let total: &Cell<u64> = &self.swarm.answers;
        let before = total.get();
        self.swarm.loading.set(true);
        for socket in self.sockets.iter().filter(|socket| !socket.ended.get()).take(active) {
            socket.request(pipeline);
        }
        sleep(time).await;
        self.swarm.loading.set(false);
        let outcome = Outcome {
            round_trips: total.get() - before,
            seconds: started.elapsed().as_secs_f64(),
            ..Outcome::default()
        };
        // Wait for the answers still in flight, so that the next order does not count them.
        let mut last = u64::MAX;
        while total.get() != last {
            last = total.get();
            sleep(Duration::from_millis(100)).await;
        }
        outcome
    }
}
