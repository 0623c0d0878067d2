//! Claims under load: how many keys per second a server issues, how long a claim takes, and whether a key was issued
//! twice.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashSet},
    io,
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use futures_util::future::try_join_all;
use sealwire_protocol::{
    Codec,
    frame::{ReplyFrame, RequestFrame, RequestId},
    ids::{ClaimId, DeviceId, UserId},
    keys::{BundlesReply, ClaimKeysRequest, OneTimeOutcome},
    value::Named,
};
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use crate::{
    Result,
    client::{TEXT, is_event, put_frame},
    devices::{Connection, read_seeds, route_to, side_by_side},
    dice::Dice,
    process::cpu_time,
    times::{Percentiles, Times},
};

/// How long to wait for the last answers.
const ANSWER_TIME: Duration = Duration::from_secs(20);

/// Options of `swarm claims`.
#[derive(clap::Args)]
pub struct Options {
    /// The socket, such as `ws://127.0.0.1:8080/v1/socket`; once for each node, which share the devices
    #[arg(long, required = true)]
    url: Vec<String>,
    /// Seed file: its first devices claim keys of the other users
    #[arg(long)]
    tokens: PathBuf,
    /// Number of devices that claim, with one socket each
    #[arg(long, default_value_t = 64)]
    sockets: usize,
    /// Claims in flight on each socket
    #[arg(long, default_value_t = 8)]
    pipeline: usize,
    /// Claims per second of all sockets together; by default as many as possible
    #[arg(long)]
    rate: Option<u32>,
    /// How long to claim
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Maximum number of claims
    #[arg(long)]
    claims: Option<u64>,
    /// Process id of each server, to read its CPU time
    #[arg(long)]
    pid: Vec<u32>,
}

/// The results.
#[derive(Debug, Serialize)]
struct Report {
    /// Keys issued.
    claimed: u64,
    /// Bundles without a key because the pool was empty.
    exhausted: u64,
    /// Bundles without a key because of the drain limit.
    limited: u64,
    /// Claims that failed, by error code.
    errors: BTreeMap<String, u64>,
    /// Keys that had been issued before. If this is not 0, the server has a defect.
    duplicates: u64,
    seconds: f64,
    /// Keys issued per second.
    per_second: f64,
    /// Time from a claim to its answer.
    #[serde(flatten)]
    answer: Percentiles,
    /// The servers' CPU time per key.
    server_cpu_micros: Option<f64>,
}

/// Runs the command: opens the sockets, claims, and prints the results.
pub async fn run(options: Options) -> Result<()> {
    let mut routes = Vec::new();
    for url in &options.url {
        routes.push(route_to(url).await?);
    }
    let seeds = read_seeds(&options.tokens)?;
    let (claimers, others) = seeds.split_at_checked(options.sockets).ok_or("the seed file has too few devices")?;
    let own: HashSet<UserId> = claimers.iter().map(|seed| seed.user_id).collect();
    let others: HashSet<UserId> = others.iter().map(|seed| seed.user_id).collect();
    let targets: Vec<UserId> = others.difference(&own).copied().collect();
    if targets.is_empty() {
        return Err("the seed file has no user whose keys could be claimed".into());
    }

    let opening = claimers.iter().enumerate();
    let opening = opening.map(|(n, seed)| Connection::open(&routes[n % routes.len()], &seed.token, true));
    let sockets = try_join_all(opening).await?;
    let cpu = || options.pid.iter().map(|pid| cpu_time(*pid)).sum::<Result<Duration>>();
    let before = cpu()?;
    let started = Instant::now();
    let swarm = Swarm {
        targets,
        until: started + Duration::from_secs(options.seconds),
        left: options.claims.unwrap_or(u64::MAX),
        dice: Dice::new(),
        tally: Tally::default(),
    };
    let swarm = Rc::new(RefCell::new(swarm));
    let sharing = f64::from(u32::try_from(sockets.len())?);
    let pace = options.rate.map(|rate| Duration::from_secs_f64(sharing / f64::from(rate.max(1))));
    let claiming = sockets.into_iter().map(|socket| claim(socket, Rc::clone(&swarm), options.pipeline, pace));
    let failures = side_by_side(claiming, Duration::from_secs(options.seconds) + ANSWER_TIME).await?;
    let time = started.elapsed();
    let cpu = (!options.pid.is_empty()).then(|| cpu().map(|after| after.saturating_sub(before))).transpose()?;
    let mut tally = std::mem::take(&mut swarm.borrow_mut().tally);
    tally.errors.extend(failures);
    println!("{}", serde_json::to_string(&tally.report(time, cpu))?);
    Ok(())
}

/// What all sockets share.
struct Swarm {
    targets: Vec<UserId>,
    until: Instant,
    /// The number of claims that may still be sent.
    left: u64,
    dice: Dice,
    tally: Tally,
}

impl Swarm {
    /// Whether to claim no more.
    fn is_over(&self, now: Instant) -> bool {
        self.left == 0 || now >= self.until
    }

    /// Appends the frame of a claim.
    fn put_claim(&mut self, id: u32, bytes: &mut Vec<u8>) -> io::Result<()> {
        self.left -= 1;
        let id = RequestId::new(id).ok_or(io::ErrorKind::InvalidInput)?;
        let user_id = self.targets[self.dice.below(self.targets.len())];
        let claim = ClaimKeysRequest {
            user_id,
            device_ids: None,
            suites: None,
            access: None,
            claim_id: ClaimId(self.dice.uuid()),
        };
        let text = Codec::Json.encode(&RequestFrame::new(id, &claim)).map_err(io::Error::other)?;
        put_frame(bytes, TEXT, &text);
        Ok(())
    }
}

/// Keeps `pipeline` claims in flight on a socket until it is time to stop, or fewer if one is only due every `pace`. Returns
/// after the last answer.
async fn claim(
    mut socket: Connection,
    swarm: Rc<RefCell<Swarm>>,
    pipeline: usize,
    pace: Option<Duration>,
) -> io::Result<()> {
    let mut next_id = 1;
    let mut in_flight: Vec<(u32, Instant)> = Vec::with_capacity(pipeline);
    let mut bytes = Vec::new();
    let mut due = Instant::now();
    if let Some(pace) = pace {
        // The sockets do not claim at the same moments.
        due += pace.mul_f64(f64::from(u32::try_from(swarm.borrow_mut().dice.below(1000)).unwrap_or(0)) / 1000.0);
    }
    loop {
        let is_over = {
            let mut swarm = swarm.borrow_mut();
            let now = Instant::now();
            while !swarm.is_over(now) && now >= due && in_flight.len() < pipeline {
                swarm.put_claim(next_id, &mut bytes)?;
                in_flight.push((next_id, now));
                next_id += 1;
                due += pace.unwrap_or_default();
            }
            swarm.is_over(now)
        };
        if is_over && in_flight.is_empty() {
            return Ok(());
        }
        socket.send(&mut bytes).await?;
        if in_flight.len() < pipeline && !is_over {
            tokio::select! {
                received = socket.receive() => received?,
                () = sleep_until(due.max(Instant::now() + Duration::from_micros(200))) => continue,
            }
        } else {
            socket.receive().await?;
        }
        let mut swarm = swarm.borrow_mut();
        socket.take(&mut bytes, |text, _| {
            if is_event(text) {
                return Ok(());
            }
            let answer: ReplyFrame<BundlesReply> = Codec::Json.decode(text).map_err(io::Error::other)?;
            let id = answer.id.get();
            let at = in_flight.iter().position(|(other, _)| *other == id).ok_or(io::ErrorKind::InvalidData)?;
            let (_, sent) = in_flight.swap_remove(at);
            swarm.tally.count(answer, sent.elapsed());
            Ok(())
        })?;
    }
}

/// The answers so far.
#[derive(Default)]
struct Tally {
    keys: HashSet<(DeviceId, u32)>,
    answers: Times,
    claimed: u64,
    exhausted: u64,
    limited: u64,
    duplicates: u64,
    errors: BTreeMap<String, u64>,
}

impl Tally {
    fn count(&mut self, answer: ReplyFrame<BundlesReply>, took: Duration) {
        self.answers.add(took);
        let bundles = match answer.result {
            Ok(reply) => reply.bundles,
            Err(error) => {
                *self.errors.entry(error.code.name().to_owned()).or_default() += 1;
                return;
            }
        };
        for bundle in bundles {
            match (bundle.one_time_prekey, bundle.one_time) {
                (Some(key), _) => {
                    self.claimed += 1;
                    let is_new = self.keys.insert((bundle.device_id, key.key_id));
                    self.duplicates += u64::from(!is_new);
                }
                (None, Named::Known(OneTimeOutcome::Limited)) => self.limited += 1,
                (None, _) => self.exhausted += 1,
            }
        }
    }

    fn report(self, time: Duration, cpu: Option<Duration>) -> Report {
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let claimed = self.claimed as f64;
        Report {
            answer: self.answers.percentiles(),
            claimed: self.claimed,
            exhausted: self.exhausted,
            limited: self.limited,
            errors: self.errors,
            duplicates: self.duplicates,
            seconds: time.as_secs_f64(),
            per_second: claimed / time.as_secs_f64(),
            server_cpu_micros: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / claimed),
        }
    }
}
