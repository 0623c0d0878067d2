//! Many devices that are due to be woken at once: how fast they are woken, what it costs the server, and whether messages between
//! other devices keep their rate meanwhile.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sealwire_protocol::{
    Codec,
    frame::ReplyFrame,
    ids::{MessageId, UserId},
    messages::{DeviceMessage, MessageContent, SendMessageReply, SendMessageRequest},
    value::{List, Object},
};
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt, BufReader, stdin},
    time::{Instant, sleep, timeout},
};
use uuid::Uuid;

use crate::{
    Result,
    client::is_event,
    devices::{Connection, Seed, read_seeds, route_to},
    dice::Dice,
    messages::{self, Exchange, put_request},
    process::cpu_time,
    push_service::{PushServices, now},
    times::{Percentiles, Times},
};

/// How long the devices write to each other before anything is measured.
const WARM_UP: Duration = Duration::from_secs(2);
/// How long to wait for the last wake-up.
const LONGEST: Duration = Duration::from_mins(3);
/// How long to wait for the replies to the messages that wake the devices.
const REPLY_TIME: Duration = Duration::from_secs(30);
/// Of these messages, how many are in flight.
const IN_FLIGHT: usize = 32;
/// How long to look for second wake-ups after the last: longer than a server needs to look for wake-ups, and to record them.
const REPEAT_TIME: Duration = Duration::from_secs(2);
/// How often to look whether the last wake-up has arrived.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Options of `swarm push`.
#[derive(clap::Args)]
pub struct Options {
    /// The socket, such as `ws://127.0.0.1:8080/v1/socket`
    #[arg(long)]
    url: String,
    /// Seed file of the devices to wake; those of one user follow each other
    #[arg(long)]
    away: PathBuf,
    /// Seed file of users with one device each: of the sender to those devices, and of the devices that write to each other
    #[arg(long)]
    tokens: PathBuf,
    /// Number of devices that write to each other meanwhile
    #[arg(long, default_value_t = 0)]
    sockets: usize,
    /// Messages in flight on each of their sockets
    #[arg(long, default_value_t = 8)]
    pipeline: u32,
    /// Messages per second of all of them together; by default as many as possible
    #[arg(long)]
    rate: Option<u32>,
    /// How long to measure their messages before
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Number of push services, each with its own port
    #[arg(long, default_value_t = 4)]
    services: usize,
    /// Milliseconds that they take to answer
    #[arg(long, default_value_t = 50)]
    latency: u64,
    /// The server's `push.after_ms`
    #[arg(long, default_value_t = 1500)]
    after_ms: u64,
    /// Process id of the server, to read its CPU time
    #[arg(long)]
    pid: Option<u32>,
    /// Process id of a server to kill once the messages are accepted
    #[arg(long)]
    kill: Option<u32>,
}

/// The results.
#[derive(Debug, Serialize)]
struct Report {
    /// Devices that were woken.
    woken: usize,
    /// Devices that were not.
    missed: usize,
    /// Wake-ups of devices that had been woken before. If this is not 0, the server has a defect.
    repeated: usize,
    /// Wake-ups per second, from the first to the last.
    per_second: f64,
    /// Time from when the device was due to its wake-up.
    #[serde(flatten)]
    delay: Percentiles,
    /// Milliseconds from the commit of a message to its wake-up, at most.
    longest_ms: f64,
    /// The server's CPU time per wake-up, which includes that for other messages.
    server_cpu_micros: Option<f64>,
    /// The messages between other devices.
    messages: Option<Messages>,
    /// Failures of these messages, by error code or text.
    errors: BTreeMap<String, u64>,
}

/// Messages that were accepted before the first device was due, and from then until the last was woken.
#[derive(Debug, Serialize)]
struct Messages {
    sends_before: f64,
    sends_during: f64,
    sends_ratio: f64,
    reply_before: Percentiles,
    reply_during: Percentiles,
}

/// A moment, the number of replies until then, and the server's CPU time.
#[derive(Clone, Copy)]
struct Mark {
    at: Instant,
    replies: usize,
    cpu: Option<Duration>,
}

/// Runs the command: makes the devices due, waits until they are woken, and prints the results.
pub async fn run(options: Options) -> Result<()> {
    let services = PushServices::start(options.services, Duration::from_millis(options.latency))?;
    println!("{}", serde_json::to_string(&services.ports)?);
    let line = BufReader::new(stdin()).lines().next_line().await?;
    line.ok_or("no line on standard input, which says that the targets are registered")?;

    let away = read_seeds(&options.away)?;
    let sender = read_seeds(&options.tokens)?;
    let sender = sender.get(options.sockets).ok_or("the seed file has too few devices")?;
    let exchange = match options.sockets {
        0 => None,
        sockets => {
            let seconds = options.seconds + 2 * LONGEST.as_secs();
            let mut writers = messages::Options::new(options.url.clone(), options.tokens.clone(), 0..sockets, seconds);
            writers.pipeline = options.pipeline;
            writers.rate = options.rate;
            Some(Exchange::start(&writers).await?)
        }
    };
    let mark = || -> Result<Mark> {
        let replies = exchange.as_ref().map_or(0, Exchange::replies);
        Ok(Mark { at: Instant::now(), replies, cpu: options.pid.map(cpu_time).transpose()? })
    };
    let mut before = None;
    if exchange.is_some() {
        sleep(WARM_UP).await;
        let from = mark()?;
        sleep(Duration::from_secs(options.seconds)).await;
        before = Some((from, mark()?));
    }

    let committed = timeout(REPLY_TIME, send_to(&options.url, sender, &away)).await??;
    if let Some(pid) = options.kill {
        Command::new("kill").args(["-9", &pid.to_string()]).status()?;
    }
    let after = Duration::from_millis(options.after_ms);
    let first = committed.iter().map(|(_, at)| *at).min().ok_or("no device to wake")? + after;
    sleep(first.duration_since(now()).unwrap_or_default()).await;
    let from = mark()?;
    while services.arrivals().len() < away.len() && from.at.elapsed() < LONGEST {
        sleep(LOOK_EVERY).await;
    }
    let to = mark()?;
    sleep(REPEAT_TIME).await;

    let mut errors = BTreeMap::new();
    let mut messages = None;
    if let (Some(exchange), Some(before)) = (exchange, before) {
        exchange.stop();
        let tally = exchange.finish().await?;
        let [sends_before, sends_during] = [before, (from, to)].map(|(from, to)| per_second(from, to));
        let [reply_before, reply_during] =
            [before, (from, to)].map(|(from, to)| tally.replies_among(from.replies..to.replies));
        let sends_ratio = sends_during / sends_before;
        messages = Some(Messages { sends_before, sends_during, sends_ratio, reply_before, reply_during });
        errors = tally.errors;
    }
    let cpu = to.cpu.zip(from.cpu).map(|(to, from)| to.saturating_sub(from));
    let mut report = report(&services, &committed, after, cpu);
    report.messages = messages;
    report.errors = errors;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn per_second(from: Mark, to: Mark) -> f64 {
    (to.replies - from.replies) as f64 / (to.at - from.at).as_secs_f64()
}

/// Sends each user one message with a copy for each of its devices. Returns when the copy of each device was committed.
async fn send_to(url: &str, sender: &Seed, away: &[Seed]) -> Result<Vec<(Uuid, SystemTime)>> {
    let users: Vec<&[Seed]> = away.chunk_by(|one, next| one.user_id == next.user_id).collect();
    let mut connection = Connection::open(&route_to(url).await?, &sender.token, true).await?;
    let (mut dice, mut bytes) = (Dice::new(), Vec::new());
    let mut committed = Vec::with_capacity(away.len());
    let mut unsent = (1..).zip(&users);
    let mut in_flight = 0;
    while committed.len() < away.len() {
        for (id, devices) in unsent.by_ref().take(IN_FLIGHT - in_flight) {
            put_request(id, &message(dice.uuid(), devices[0].user_id, devices), &mut bytes)?;
            in_flight += 1;
        }
        connection.send(&mut bytes).await?;
        connection.receive().await?;
        connection.take(&mut bytes, |text, _| {
            if is_event(text) {
                return Ok(());
            }
            let reply: ReplyFrame<SendMessageReply> = Codec::Json.decode(text).map_err(io::Error::other)?;
            let devices = reply.id.get().checked_sub(1).and_then(|at| users.get(at as usize));
            let devices = devices.ok_or(io::ErrorKind::InvalidData)?;
            let reply = reply.result.map_err(|error| io::Error::other(error.code.name().to_owned()))?;
            let micros = u64::try_from(reply.accepted_at.as_micros()).map_err(io::Error::other)?;
            let at = UNIX_EPOCH + Duration::from_micros(micros);
            committed.extend(devices.iter().map(|device| (device.device_id.0, at)));
            in_flight -= 1;
            Ok(())
        })?;
    }
    Ok(committed)
}

fn message(id: Uuid, to: UserId, devices: &[Seed]) -> SendMessageRequest<'static> {
    let copy = |device: &Seed| {
        Object(DeviceMessage {
            device_id: device.device_id,
            kind: 1,
            content: MessageContent::new(Codec::Json, b"wake up"),
        })
    };
    SendMessageRequest {
        message_id: MessageId(id),
        to,
        ephemeral: None,
        ttl_s: None,
        urgent: None,
        messages: List(devices.iter().map(copy).collect()),
        skip: None,
        access: None,
    }
}

fn report(services: &PushServices, committed: &[(Uuid, SystemTime)], after: Duration, cpu: Option<Duration>) -> Report {
    let arrivals = services.arrivals();
    let since = |later: SystemTime, earlier: SystemTime| later.duration_since(earlier).unwrap_or_default();
    let mut delays = Times::default();
    let (mut firsts, mut longest) = (Vec::new(), Duration::ZERO);
    for (device, at) in committed {
        if let Some(first) = arrivals.get(device).and_then(|times| times.first()) {
            delays.add(since(*first, *at + after));
            longest = longest.max(since(*first, *at));
            firsts.push(*first);
        }
    }
    firsts.sort_unstable();
    let time = firsts.first().zip(firsts.last()).map_or(Duration::ZERO, |(first, last)| since(*last, *first));
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let woken = firsts.len() as f64;
    Report {
        woken: firsts.len(),
        missed: committed.len() - firsts.len(),
        repeated: arrivals.values().map(|times| times.len().saturating_sub(1)).sum(),
        per_second: woken / time.as_secs_f64(),
        delay: delays.percentiles(),
        longest_ms: longest.as_secs_f64() * 1e3,
        server_cpu_micros: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / woken),
        messages: None,
        errors: BTreeMap::new(),
    }
}
