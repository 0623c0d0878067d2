//! One process of a swarm: a process may open only 20,000 files, so a swarm is several.
//!
//! It does what the [`Order`]s on its standard input say, one JSON line each, and answers each with a
//! line on its standard output.

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

/// Handshakes in progress at once.
const OPENING: usize = 64;
/// How long one handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(30);
/// How long answers are waited for.
const ANSWER_TIME: Duration = Duration::from_secs(20);

/// What the parent passes on the command line.
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
    /// Seed file, of which this process takes `sockets` lines after `skip`
    #[arg(long)]
    pub tokens: Option<PathBuf>,
    #[arg(long)]
    pub skip: usize,
}

/// What the parent asks for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Open all sockets, a number of them at a time.
    Open,
    /// Close all sockets.
    Close,
    /// One round trip on every socket.
    Ask,
    /// Keep `pipeline` requests under way on each of the first `active` sockets.
    Load { active: usize, pipeline: u32, seconds: u64 },
}

/// What came of an order. Fields that the order does not concern are empty.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// Sockets open now.
    pub open: usize,
    /// Why others could not be opened, and how many.
    pub failures: BTreeMap<String, usize>,
    /// Sockets that answered.
    pub answered: usize,
    /// Round trips in all.
    pub round_trips: u64,
    /// What the order took.
    pub seconds: f64,
}

/// Serves the parent until it closes the standard input.
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
                Order::Open => self.open().await,
                Order::Close => self.close().await,
                Order::Ask => self.ask().await,
                Order::Load { active, pipeline, seconds } => {
                    self.load(active, pipeline, Duration::from_secs(seconds)).await
                }
            };
            outcome.open = self.sockets.iter().filter(|socket| !socket.ended.get()).count();
            println!("{}", serde_json::to_string(&outcome)?);
        }
        Ok(())
    }

    async fn open(&mut self) -> Outcome {
        let started = Instant::now();
        let mut outcome = Outcome::default();
        let mut opening = stream::iter(&self.tokens)
            .map(|token| timeout(HANDSHAKE_TIME, client::open(&self.swarm, &self.route, token.as_deref())))
            .buffer_unordered(OPENING);
        while let Some(opened) = opening.next().await {
            match opened.map_err(std::io::Error::from).flatten() {
                Ok(socket) => self.sockets.push(socket),
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
        // What is still under way must not be counted by the next order.
        let mut last = u64::MAX;
        while total.get() != last {
            last = total.get();
            sleep(Duration::from_millis(100)).await;
        }
        outcome
    }
}
