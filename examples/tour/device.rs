//! A device: a client of the library, and the app around it, which has the keys and handles what arrives.

use std::{
    collections::{BTreeMap, VecDeque},
    io::IsTerminal,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sealwire_client::{
    Client, Codec, DeviceId, Direction, End, Event, Events, MemoryStorage, Message, Options, Outgoing, Server, Session,
    protocol::keys::PrekeyBundle,
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    Outcome, ensure,
    keys::{Keyring, Secret},
    say,
    sealed::{self, Hello},
};

/// Timeout for every step.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What the app knows and the server does not.
pub struct Secrets {
    device: DeviceId,
    pub keys: Keyring,
    /// The secrets shared with other devices.
    pub shared: BTreeMap<DeviceId, Secret>,
}

impl Secrets {
    /// Runs X3DH with the device that published this bundle. Returns what that device needs for its side.
    pub fn agree(&mut self, bundle: &PrekeyBundle) -> Outcome<Hello> {
        let (secret, hello) = self.keys.initiate(bundle)?;
        self.shared.insert(bundle.device_id, secret);
        Ok(hello)
    }

    /// Adds the ciphertext for one device to a message. The first message for a device includes `hello`.
    pub fn seal(&self, message: Outgoing, to: DeviceId, hello: Option<&Hello>, text: &str) -> Outcome<Outgoing> {
        let secret = self.shared.get(&to).ok_or("no secret is shared with that device")?;
        let context = format!("{} {}", self.device, message.message_id);
        let (kind, content) = sealed::seal(secret, self.keys.entropy(), &context, text, hello)?;
        Ok(message.device(to, kind, content))
    }

    /// The text of a message that has arrived. A first message makes a secret.
    fn open(&mut self, message: &Message) -> Outcome<String> {
        let from = message.from.device_id;
        let (hello, ciphertext) = sealed::split(message.kind, &message.content)?;
        if let Some(hello) = hello {
            let secret = self.keys.respond(&hello)?;
            self.shared.insert(from, secret);
        }
        let secret = self.shared.get(&from).ok_or("no secret is shared with that device")?;
        sealed::open(secret, &format!("{from} {}", message.message_id), ciphertext)
    }
}

/// What has arrived at a device.
enum Arrival {
    Text(String),
    Event(Event),
}

/// A device that is signed in, with its keys.
pub struct Device {
    pub name: String,
    pub email: String,
    pub client: Client,
    secrets: Arc<Mutex<Secrets>>,
    /// What the library keeps. A real app implements the trait over its database, or uses `FileStorage`.
    storage: MemoryStorage,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    /// What has arrived while the tour waited for something else.
    earlier: VecDeque<Arrival>,
    /// Whether its frames are omitted from the output.
    quiet: Arc<AtomicBool>,
}

impl Device {
    /// Starts the client of a device that has just signed in.
    pub async fn start(server: &Server, name: &str, email: &str, session: Session, keys: Keyring) -> Outcome<Self> {
        let secrets = Secrets { device: session.device_id, keys, shared: BTreeMap::new() };
        let parts = (Arc::new(Mutex::new(secrets)), MemoryStorage::new());
        Self::start_again(server, name.to_owned(), email.to_owned(), session, parts).await
    }

    async fn start_again(
        server: &Server,
        name: String,
        email: String,
        session: Session,
        (secrets, storage): (Arc<Mutex<Secrets>>, MemoryStorage),
    ) -> Outcome<Self> {
        let quiet = Arc::new(AtomicBool::new(false));
        // Without this, frames are MessagePack.
        let options = Options::default().codec(Codec::Json).observe_frames(show_frames(&name, &quiet));
        let (client, events) = Client::start_with(server, session, storage.clone(), options).await?;
        let (sender, arrivals) = mpsc::unbounded_channel();
        tokio::spawn(handle(name.clone(), secrets.clone(), events, sender));
        Ok(Self { name, email, client, secrets, storage, arrivals, earlier: VecDeque::new(), quiet })
    }

    /// The device's keys and secrets.
    pub fn secrets(&self) -> MutexGuard<'_, Secrets> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes offline.
    pub async fn leave(&self) {
        self.client.stop().await;
    }

    /// Comes back with a session, in place of the client that was there.
    pub async fn come_back(&mut self, server: &Server, session: Session) -> Outcome {
        let parts = (self.secrets.clone(), self.storage.clone());
        *self = Self::start_again(server, self.name.clone(), self.email.clone(), session, parts).await?;
        Ok(())
    }

    /// Comes back and reads the one message that waits.
    pub async fn find_waiting(&mut self, server: &Server) -> Outcome<String> {
        self.come_back(server, self.client.session()).await?;
        let welcome = self.client.connected().await?;
        ensure(welcome.mailbox.waiting == 1, "the welcome has the number of waiting messages")?;
        let read = self.read().await?;
        self.event(|event| matches!(event, Event::MailboxDrained).then_some(())).await?;
        Ok(read)
    }

    /// A message without ciphertexts, for the user of another device.
    pub fn message(&self, to: &Self) -> Outgoing {
        Outgoing::new(self.client.new_message_id(), to.client.user_id())
    }

    /// Waits for the next message. Returns its text.
    pub async fn read(&mut self) -> Outcome<String> {
        self.arrival(|arrival| match arrival {
            Arrival::Text(text) => Some(text.clone()),
            Arrival::Event(_) => None,
        })
        .await
    }

    /// Waits for the first event for which the function gives a value.
    pub async fn event<T>(&mut self, choose: impl Fn(&Event) -> Option<T>) -> Outcome<T> {
        self.arrival(|arrival| match arrival {
            Arrival::Text(_) => None,
            Arrival::Event(event) => choose(event),
        })
        .await
    }

    /// Waits until the client ends. Returns why.
    pub async fn end(&mut self) -> Outcome<End> {
        self.event(|event| match event {
            Event::Ended(end) => Some(end.clone()),
            _ => None,
        })
        .await
    }

    async fn arrival<T>(&mut self, choose: impl Fn(&Arrival) -> Option<T>) -> Outcome<T> {
        for at in 0..self.earlier.len() {
            if let Some(chosen) = choose(&self.earlier[at]) {
                self.earlier.remove(at);
                return Ok(chosen);
            }
        }
        loop {
            let arrival = timeout(TIMEOUT, self.arrivals.recv()).await.map_err(|_| "nothing arrived in time")?;
            let arrival = arrival.ok_or("the client has ended")?;
            match choose(&arrival) {
                Some(chosen) => return Ok(chosen),
                None => self.earlier.push_back(arrival),
            }
        }
    }

    /// Omits the frames from the output, or shows them again.
    pub fn quiet(&self, quiet: bool) {
        self.quiet.store(quiet, Ordering::Relaxed);
    }
}

/// What the app does all the time: it handles one event after the other. A message is acked when the loop asks for the
/// next event, so a real app stores it before. One that cannot be decrypted is acked too; otherwise it would come again.
async fn handle(
    name: String,
    secrets: Arc<Mutex<Secrets>>,
    mut events: Events,
    arrivals: mpsc::UnboundedSender<Arrival>,
) {
    while let Some(event) = events.next().await {
        let arrival = match event {
            Event::Message(message) => {
                let opened = secrets.lock().unwrap_or_else(PoisonError::into_inner).open(&message);
                let text = opened.unwrap_or_else(|error| format!("(cannot be decrypted: {error})"));
                say(&format!("{name} reads: {text}"));
                Arrival::Text(text)
            }
            event => Arrival::Event(event),
        };
        let _ = arrivals.send(arrival);
    }
}

/// Prints the frames of a device.
fn show_frames(name: &str, quiet: &Arc<AtomicBool>) -> impl Fn(Direction, &[u8]) + Send + Sync + 'static {
    let (name, quiet) = (name.to_owned(), quiet.clone());
    move |direction, frame| {
        if !quiet.load(Ordering::Relaxed) {
            let arrow = if direction == Direction::Sent { "→" } else { "←" };
            wire(&format!("{name} {arrow} {}", brief(frame)));
        }
    }
}

/// Prints what is on the wire, dimmed in a terminal.
pub fn wire(line: &str) {
    if std::io::stdout().is_terminal() {
        println!("      \x1b[2m{line}\x1b[0m");
    } else {
        println!("      {line}");
    }
}

/// A frame on one line, with ids, keys and tokens shortened.
fn brief(frame: &[u8]) -> String {
    fn shorten(value: &Value) -> Value {
        match value {
            Value::String(text) if text.len() > 32 && !text.contains(' ') => {
                format!("{}…", text.chars().take(8).collect::<String>()).into()
            }
            Value::Array(items) if items.len() > 2 => {
                json!([shorten(&items[0]), format!("… {} more", items.len() - 1)])
            }
            Value::Array(items) => items.iter().map(shorten).collect(),
            Value::Object(fields) => {
                Value::Object(fields.iter().map(|(name, field)| (name.clone(), shorten(field))).collect())
            }
            other => other.clone(),
        }
    }
    serde_json::from_slice(frame).map_or_else(|_| "(not JSON)".to_owned(), |value| shorten(&value).to_string())
}
