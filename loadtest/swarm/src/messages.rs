//! Messages under load: how many stored messages per second go from device to device, how long each takes, and whether all
//! arrive once and in order.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    io,
    ops::Range,
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use futures_util::future::try_join_all;
use sealwire_protocol::{
    Codec,
    events::{Event, MessageEvent},
    frame::{ReplyFrame, RequestFrame, RequestId, RequestOutline, SocketRequest},
    ids::{DeviceId, MessageId},
    messages::{AckMessagesRequest, DeviceMessage, MessageContent, SendMessageRequest},
    value::{List, Object},
};
use serde::{Serialize, de::IgnoredAny};
use tokio::{
    task::{JoinHandle, spawn_local},
    time::{Instant, sleep_until},
};

use crate::{
    Result,
    client::{Route, TEXT, is_event, put_frame},
    devices::{Connection, Seed, read_seeds, route_to, side_by_side},
    dice::Dice,
    process::cpu_time,
    tally::{Report, Tally},
};

/// How long to wait for the last messages.
const ARRIVAL_TIME: Duration = Duration::from_secs(20);
/// Bytes of the timestamp at the beginning of a message's content: microseconds since the start, big-endian.
const STAMP: usize = 8;

/// Options of `swarm messages`.
#[derive(Clone, clap::Args)]
pub struct Options {
    /// The socket, such as `ws://127.0.0.1:8080/v1/socket`; once for each node, which share the devices
    #[arg(long, required = true)]
    url: Vec<String>,
    /// Seed file of users with one device each
    #[arg(long)]
    tokens: PathBuf,
    /// Number of devices that write to each other, with one socket each
    #[arg(long, default_value_t = 64)]
    sockets: usize,
    /// Devices to skip at the beginning of the seed file
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// Messages in flight on each socket
    #[arg(long, default_value_t = 8)]
    pub pipeline: u32,
    /// Messages per second of all devices together; by default as many as possible
    #[arg(long)]
    pub rate: Option<u32>,
    /// Bytes of content per message
    #[arg(long, default_value_t = 255)]
    bytes: usize,
    /// How long to write
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Process id of each server, to read its CPU time
    #[arg(long)]
    pid: Vec<u32>,
    /// The server is `swarm echo`: the echo counts as the delivery
    #[arg(long)]
    pub echo: bool,
}

impl Options {
    /// Options with which these devices of the seed file write to each other as fast as they can.
    pub fn new(url: String, tokens: PathBuf, devices: Range<usize>, seconds: u64) -> Self {
        Self {
            url: vec![url],
            tokens,
            sockets: devices.len(),
            skip: devices.start,
            pipeline: 8,
            rate: None,
            bytes: 255,
            seconds,
            pid: Vec::new(),
            echo: false,
        }
    }
}

/// Runs the command: measures, and prints the results.
pub async fn run(options: Options) -> Result<()> {
    println!("{}", serde_json::to_string(&exchange(&options).await?)?);
    Ok(())
}

/// Opens the sockets, lets the devices write to each other, and waits until all messages have arrived.
pub async fn exchange(options: &Options) -> Result<Report> {
    let cpu = || options.pid.iter().map(|pid| cpu_time(*pid)).sum::<Result<Duration>>();
    let exchange = Exchange::start(options).await?;
    let (before, started) = (cpu()?, exchange.swarm.borrow().started);
    let tally = exchange.finish().await?;
    let cpu = (!options.pid.is_empty()).then(|| cpu().map(|after| after.saturating_sub(before))).transpose()?;
    let time = tally.last.map_or(Duration::ZERO, |last| last - started);
    Ok(tally.report(time, cpu))
}

/// Devices that write to each other.
pub struct Exchange {
    swarm: Rc<RefCell<Swarm>>,
    /// The failures of the sockets, once all messages have arrived.
    talking: JoinHandle<Result<BTreeMap<String, u64>>>,
}

impl Exchange {
    /// Opens the sockets, and lets the devices write to each other.
    pub async fn start(options: &Options) -> Result<Self> {
        let mut routes = Vec::new();
        for url in &options.url {
            routes.push(route_to(url).await?);
        }
        let seeds = read_seeds(&options.tokens)?;
        let devices = options.skip..options.skip + options.sockets;
        let seeds = seeds.get(devices).ok_or("the seed file has too few devices")?.to_vec();
        let opening =
            seeds.iter().enumerate().map(|(n, seed)| Socket::open(&routes[n % routes.len()], seed, !options.echo));
        let sockets = try_join_all(opening).await?;
        let started = Instant::now();
        let swarm = Swarm {
            started,
            until: started + Duration::from_secs(options.seconds),
            peers: seeds,
            content: vec![0; options.bytes.max(STAMP)],
            dice: Dice::new(),
            echo: options.echo,
            tally: Tally::default(),
        };
        let swarm = Rc::new(RefCell::new(swarm));
        let sockets_sharing = f64::from(u32::try_from(sockets.len())?);
        let pace = options.rate.map(|rate| Duration::from_secs_f64(sockets_sharing / f64::from(rate.max(1))));
        let (shared, pipeline) = (Rc::clone(&swarm), options.pipeline);
        let talking = sockets.into_iter().map(move |socket| socket.talk(Rc::clone(&shared), pipeline, pace));
        let longest = Duration::from_secs(options.seconds) + ARRIVAL_TIME;
        Ok(Self { swarm, talking: spawn_local(side_by_side(talking, longest)) })
    }

    /// The number of replies so far.
    pub fn replies(&self) -> usize {
        self.swarm.borrow().tally.replies()
    }

    /// Ends the writing early.
    pub fn stop(&self) {
        self.swarm.borrow_mut().until = Instant::now();
    }

    /// Waits until the time is over and all messages have arrived.
    pub async fn finish(self) -> Result<Tally> {
        let failures = self.talking.await??;
        let mut tally = std::mem::take(&mut self.swarm.borrow_mut().tally);
        tally.errors.extend(failures);
        Ok(tally)
    }
}

/// What all sockets share.
struct Swarm {
    started: Instant,
    until: Instant,
    peers: Vec<Seed>,
    /// Buffer for the content of the message being written.
    content: Vec<u8>,
    dice: Dice,
    echo: bool,
    tally: Tally,
}

impl Swarm {
    /// Appends the frame of a message to a random device other than `own`.
    fn put_message(&mut self, id: u32, own: DeviceId, now: Instant, bytes: &mut Vec<u8>) -> io::Result<()> {
        let at = self.dice.below(self.peers.len());
        let peer = match &self.peers[at] {
            peer if peer.device_id == own => &self.peers[(at + 1) % self.peers.len()],
            peer => peer,
        };
        let stamp = u64::try_from((now - self.started).as_micros()).unwrap_or(u64::MAX);
        self.content[..STAMP].copy_from_slice(&stamp.to_be_bytes());
        let content = MessageContent::new(Codec::Json, &self.content);
        let send = SendMessageRequest {
            message_id: MessageId(self.dice.uuid()),
            to: peer.user_id,
            ephemeral: None,
            ttl_s: None,
            urgent: None,
            messages: List(vec![Object(DeviceMessage { device_id: peer.device_id, kind: 1, content })]),
            skip: None,
            access: None,
        };
        put_request(id, &send, bytes)
    }

    /// Whether the time is over, all sends are answered and all accepted messages have arrived.
    fn is_finished(&self) -> bool {
        Instant::now() >= self.until && self.tally.unanswered == 0 && self.tally.arrived >= self.tally.accepted
    }
}

/// The connection and state of one device.
struct Socket {
    connection: Connection,
    device: DeviceId,
    next_id: u32,
    /// Requests that wait for replies: the id, and for sends the time of sending.
    in_flight: VecDeque<(u32, Option<Instant>)>,
    /// `None` before the first message, whose number is unknown: the device may have had messages in earlier runs.
    last_seq: Option<i64>,
}

impl Socket {
    /// Opens the connection. If `welcome`, waits for the first frame.
    async fn open(route: &Route, seed: &Seed, welcome: bool) -> io::Result<Self> {
        let connection = Connection::open(route, &seed.token, welcome).await?;
        Ok(Self { connection, device: seed.device_id, next_id: 1, in_flight: VecDeque::new(), last_seq: None })
    }

    fn sends_in_flight(&self) -> u32 {
        u32::try_from(self.in_flight.iter().filter(|(_, sent)| sent.is_some()).count()).unwrap_or(u32::MAX)
    }

    /// Writes, reads and acks until all messages of all sockets have arrived.
    async fn talk(mut self, swarm: Rc<RefCell<Swarm>>, pipeline: u32, pace: Option<Duration>) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut due = Instant::now();
        if let Some(pace) = pace {
            due += pace.mul_f64(f64::from(u32::try_from(swarm.borrow_mut().dice.below(1000)).unwrap_or(0)) / 1000.0);
        }
        loop {
            {
                let mut swarm = swarm.borrow_mut();
                let now = Instant::now();
                while now < swarm.until && now >= due && self.sends_in_flight() < pipeline {
                    let id = self.next_id;
                    self.next_id += 1;
                    swarm.put_message(id, self.device, now, &mut bytes)?;
                    swarm.tally.unanswered += 1;
                    self.in_flight.push_back((id, Some(now)));
                    due += pace.unwrap_or_default();
                }
                if swarm.is_finished() && self.in_flight.is_empty() {
                    return Ok(());
                }
            }
            self.connection.send(&mut bytes).await?;
            let wake = if pace.is_some() { due } else { Instant::now() + Duration::from_secs(1) };
            let wake =
                wake.min(Instant::now() + Duration::from_millis(100)).max(Instant::now() + Duration::from_micros(200));
            tokio::select! {
                received = self.connection.receive() => received?,
                () = sleep_until(wake) => continue,
            }
            self.take(&mut swarm.borrow_mut(), &mut bytes)?;
        }
    }

    /// Handles the complete frames that were received. Appends acks to `bytes`.
    fn take(&mut self, swarm: &mut Swarm, bytes: &mut Vec<u8>) -> io::Result<()> {
        let mut seqs: Vec<u64> = Vec::new();
        let now = Instant::now();
        self.connection.take(bytes, |text, _| {
            if is_event(text) {
                let event = Codec::Json.decode(text).map_err(io::Error::other)?;
                if let Event::Message(MessageEvent { seq: Some(seq), content, .. }) = event {
                    let stamp = content.as_bytes().first_chunk().ok_or(io::ErrorKind::InvalidData)?;
                    let sent = swarm.started + Duration::from_micros(u64::from_be_bytes(*stamp));
                    swarm.tally.arrived(
                        self.last_seq.is_none_or(|last| seq == last + 1),
                        now.saturating_duration_since(sent),
                        now,
                    );
                    self.last_seq = Some(seq);
                    seqs.push(seq.unsigned_abs());
                }
                return Ok(());
            }
            let (id, error) = if swarm.echo {
                (RequestOutline::decode(Codec::Json, text).map_err(|fault| io::Error::other(fault.reason()))?.id, None)
            } else {
                let reply: ReplyFrame<IgnoredAny> = Codec::Json.decode(text).map_err(io::Error::other)?;
                (reply.id, reply.result.err())
            };
            let at = self.in_flight.iter().position(|(other, _)| *other == id.get());
            let at = at.ok_or(io::ErrorKind::InvalidData)?;
            if let Some((_, Some(sent))) = self.in_flight.remove(at) {
                swarm.tally.replied(error.map(|error| error.code.name().to_owned()), now - sent);
                if swarm.echo {
                    swarm.tally.arrived(true, now - sent, now);
                }
            }
            Ok(())
        })?;
        if !seqs.is_empty() {
            let id = self.next_id;
            self.next_id += 1;
            self.in_flight.push_back((id, None));
            put_request(id, &AckMessagesRequest { seqs: List(seqs) }, bytes)?;
        }
        Ok(())
    }
}

/// Appends the frame of a request.
pub fn put_request<T: SocketRequest + Serialize>(id: u32, params: &T, bytes: &mut Vec<u8>) -> io::Result<()> {
    let id = RequestId::new(id).ok_or(io::ErrorKind::InvalidInput)?;
    let text = Codec::Json.encode(&RequestFrame::new(id, params)).map_err(io::Error::other)?;
    put_frame(bytes, TEXT, &text);
    Ok(())
}
