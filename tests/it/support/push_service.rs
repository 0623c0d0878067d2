//! A push service for browsers: takes pushes over HTTP, records them, and answers as a test says.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral},
    hkdf::{HKDF_SHA256, KeyType, Salt},
    rand::{SecureRandom, SystemRandom},
    signature,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};
use uuid::Uuid;

use super::eventually;

/// How the service answers.
#[derive(Clone, Debug)]
pub enum Answer {
    /// With a status and more header lines.
    Status(u16, &'static str),
    /// Never.
    Never,
    /// With a status, once the semaphore has a permit.
    Held(Arc<Semaphore>, u16),
    /// One byte a second.
    Drip,
    /// With bytes that are not HTTP.
    Garbage,
    /// With a redirect to this URL.
    Redirect(String),
}

/// A push that arrived.
#[derive(Clone, Debug)]
pub struct Push {
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
    /// When it had arrived.
    pub at: Instant,
}

impl Push {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}"))
    }
}

#[derive(Default)]
struct State {
    /// By path.
    pushes: Mutex<HashMap<String, Vec<Push>>>,
    connections: Mutex<usize>,
    /// By path; others are accepted.
    answers: Mutex<HashMap<String, Answer>>,
}

pub struct PushService {
    pub address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Drop for PushService {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl PushService {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Arc::new(State::default()));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                *shared.connections.lock().unwrap() += 1;
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Self { address, state, task }
    }

    /// A new subscription at this service.
    pub fn subscribe(&self) -> Subscription {
        let path = format!("/push/{}", Uuid::new_v4().simple());
        let private = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new()).unwrap();
        let public = private.compute_public_key().unwrap().as_ref().to_vec();
        let mut auth = [0; 16];
        SystemRandom::new().fill(&mut auth).unwrap();
        let endpoint = format!("http://{}{path}", self.address);
        Subscription { endpoint, path, public, auth, private: Mutex::new(Some(private)) }
    }

    /// From now on, pushes to this subscription are answered so.
    pub fn answer(&self, subscription: &Subscription, answer: Answer) {
        self.state.answers.lock().unwrap().insert(subscription.path.clone(), answer);
    }

    /// The pushes to a subscription so far.
    pub fn pushes(&self, subscription: &Subscription) -> Vec<Push> {
        self.state.pushes.lock().unwrap().get(&subscription.path).cloned().unwrap_or_default()
    }

    /// Waits until this many pushes to a subscription have arrived, and returns them.
    pub async fn arrived(&self, subscription: &Subscription, count: usize) -> Vec<Push> {
        eventually("the pushes have arrived", || async {
            Some(self.pushes(subscription)).filter(|pushes| pushes.len() >= count)
        })
        .await
    }

    /// The number of connections that were made to the service.
    pub fn connections(&self) -> usize {
        *self.state.connections.lock().unwrap()
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let path = lines[0].split(' ').nth(1).unwrap().to_owned();
        let headers: HashMap<String, String> = lines[1..]
            .iter()
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let mut body = vec![0; headers["content-length"].parse().unwrap()];
        stream.read_exact(&mut body).await.ok()?;
        let answer = state.answers.lock().unwrap().get(&path).cloned().unwrap_or(Answer::Status(201, ""));
        let push = Push { headers, body, at: Instant::now() };
        state.pushes.lock().unwrap().entry(path).or_default().push(push);
        let response = match answer {
            Answer::Status(status, more) => format!("HTTP/1.1 {status} x\r\n{more}content-length: 0\r\n\r\n"),
            Answer::Redirect(to) => format!("HTTP/1.1 307 x\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n"),
            Answer::Garbage => "\u{0}\u{1}never HTTP\r\n\r\n".to_owned(),
            Answer::Never => std::future::pending().await,
            Answer::Held(permits, status) => {
                permits.acquire().await.unwrap().forget();
                format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n")
            }
            Answer::Drip => loop {
                stream.write_all(b"H").await.ok()?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            },
        };
        stream.write_all(response.as_bytes()).await.ok()?;
    }
}

/// A subscription as a browser makes it. Its key decrypts one push, because ring keeps no private key for longer.
pub struct Subscription {
    pub endpoint: String,
    path: String,
    public: Vec<u8>,
    auth: [u8; 16],
    private: Mutex<Option<EphemeralPrivateKey>>,
}

impl Subscription {
    /// The parameters of `push.register`.
    pub fn params(&self) -> Value {
        let (p256dh, auth) = (URL_SAFE_NO_PAD.encode(&self.public), URL_SAFE_NO_PAD.encode(self.auth));
        json!({ "kind": "webpush", "endpoint": self.endpoint, "p256dh": p256dh, "auth": auth })
    }

    /// The texts that must not be shown anywhere.
    pub fn secrets(&self) -> Vec<String> {
        let params = self.params();
        let text = |field: &str| params[field].as_str().unwrap().to_owned();
        vec![self.path.trim_start_matches("/push/").to_owned(), text("p256dh"), text("auth")]
    }

    /// Decrypts a push (RFC 8291), once.
    pub fn decrypt(&self, push: &Push) -> Value {
        struct Length(usize);
        impl KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }
        let (salt, rest) = push.body.split_at(16);
        let (sender, record) = rest[5..].split_at(usize::from(rest[4]));
        let private = self.private.lock().unwrap().take().expect("one push is decrypted");
        let mut input = [0; 32];
        agree_ephemeral(private, &UnparsedPublicKey::new(&ECDH_P256, sender), |shared| {
            let combined = Salt::new(HKDF_SHA256, &self.auth).extract(shared);
            combined
                .expand(&[b"WebPush: info\0", &self.public, sender], HKDF_SHA256)
                .unwrap()
                .fill(&mut input)
                .unwrap();
        })
        .unwrap();
        let content = Salt::new(HKDF_SHA256, salt).extract(&input);
        let key = UnboundKey::from(content.expand(&[b"Content-Encoding: aes128gcm\0"], &AES_128_GCM).unwrap());
        let mut nonce = [0; 12];
        content.expand(&[b"Content-Encoding: nonce\0"], Length(12)).unwrap().fill(&mut nonce).unwrap();
        let mut record = record.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let plain = LessSafeKey::new(key).open_in_place(nonce, Aad::empty(), &mut record).unwrap();
        let end = plain.iter().rposition(|byte| *byte != 0).unwrap();
        assert_eq!(plain[end], 2, "the delimiter of the last record");
        serde_json::from_slice(&plain[..end]).unwrap()
    }
}

/// Verifies the authorization of a push (RFC 8292) with the server's public key, and returns the claims.
pub fn verified_claims(push: &Push, public_key: &str) -> Value {
    let (token, key) = push.header("authorization").strip_prefix("vapid t=").unwrap().split_once(", k=").unwrap();
    assert_eq!(key, public_key);
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let public = signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, decode(key));
    public.verify(signed.as_bytes(), &decode(signature)).unwrap();
    serde_json::from_slice(&decode(signed.split_once('.').unwrap().1)).unwrap()
}
