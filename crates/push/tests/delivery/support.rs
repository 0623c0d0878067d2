//! Services on loopback, and senders for them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Response, StatusCode, Version, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ring::{
    aead::{AES_128_GCM, Aad, LessSafeKey, Nonce as AeadNonce, UnboundKey},
    agreement::{self, ECDH_P256, EphemeralPrivateKey},
    hkdf::{HKDF_SHA256, KeyType, Salt},
    rand::SystemRandom,
};
use sealwire_push::{
    CertificateDer, Limits, Notification, Payload, Resolve, Resolving, Sender, Settings, Target, Urgency, VapidKey,
    WebPushSettings, WebPushTarget,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring::default_provider,
        pki_types::{PrivateKeyDer, pem::PemObject},
    },
};

/// The time of the senders' clock at first.
pub const NOW: u64 = 1_800_000_000;

/// A request that a service received.
#[derive(Debug)]
pub struct Received {
    pub path: String,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name}")).to_str().unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What a service speaks.
#[derive(Clone, Copy, Debug)]
pub enum Speaks {
    Http1,
    Http2,
    /// HTTP/2 over TLS.
    Https2,
    /// HTTP/1.1 over TLS.
    Https1,
}

/// A service on loopback. Stops when it is dropped.
pub struct Service {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    connections: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

pub type Answer = Response<Full<Bytes>>;

/// An answer with a status and a body.
pub fn answer(status: u16, body: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
}

/// An answer with a header and no body.
pub fn answer_with(status: u16, name: &'static str, value: &str) -> Answer {
    let mut answer = answer(status, "");
    answer.headers_mut().insert(name, value.parse().unwrap());
    answer
}

impl Service {
    /// A service that answers each request by `respond`.
    pub async fn start(speaks: Speaks, respond: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> Self {
        let received = Arc::new(Mutex::new(Vec::new()));
        let respond = Arc::new(respond);
        let log = Arc::clone(&received);
        let mut service = Self::raw(move |stream| {
            let (respond, log) = (Arc::clone(&respond), Arc::clone(&log));
            async move {
                match speaks {
                    Speaks::Http1 => serve(stream, false, respond, log).await,
                    Speaks::Http2 => serve(stream, true, respond, log).await,
                    Speaks::Https1 | Speaks::Https2 => {
                        let is_http2 = matches!(speaks, Speaks::Https2);
                        let Ok(stream) = acceptor(is_http2).accept(stream).await else { return };
                        serve(stream, is_http2, respond, log).await;
                    }
                }
            }
        })
        .await;
        service.received = received;
        service
    }

    /// A service that does with each connection what `with` says.
    pub async fn raw<F>(with: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let ended = Arc::new(AtomicUsize::new(0));
        let (count, count_ended) = (Arc::clone(&connections), Arc::clone(&ended));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, SeqCst);
                let (work, count_ended) = (with(stream), Arc::clone(&count_ended));
                open.spawn(async move {
                    work.await;
                    count_ended.fetch_add(1, SeqCst);
                });
            }
        });
        Self { address, received: Arc::default(), connections, ended, _tasks: tasks }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The URL by a name of the certificate.
    pub fn https_url(&self, name: &str, path: &str) -> String {
        format!("https://{name}:{}{path}", self.address.port())
    }

    pub fn received(&self) -> MutexGuard<'_, Vec<Received>> {
        self.received.lock().unwrap()
    }

    /// Connections that the service is done with.
    pub fn ended(&self) -> usize {
        self.ended.load(SeqCst)
    }

    /// Connections that were accepted.
    pub fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    is_http2: bool,
    respond: Arc<impl Fn(&Received) -> Answer + Send + Sync + 'static>,
    log: Arc<Mutex<Vec<Received>>>,
) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (respond, log) = (Arc::clone(&respond), Arc::clone(&log));
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let path = parts.uri.path_and_query().unwrap().to_string();
            let received = Received { path, version: parts.version, headers: parts.headers, body };
            let answer = respond(&received);
            log.lock().unwrap().push(received);
            Ok::<_, hyper::Error>(answer)
        }
    });
    let stream = TokioIo::new(stream);
    // A client that goes away is no failure of the service.
    let _ = if is_http2 {
        hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await
    } else {
        hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await
    };
}

fn acceptor(is_http2: bool) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("keys/server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("keys/server-key.pem")).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![if is_http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    TlsAcceptor::from(Arc::new(config))
}

/// A clock that a test sets.
#[derive(Clone)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    pub fn new() -> Self {
        Self(Arc::new(AtomicU64::new(NOW)))
    }

    pub fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, SeqCst);
    }

    fn read(&self) -> impl Fn() -> SystemTime + Send + Sync + use<> {
        let clock = Arc::clone(&self.0);
        move || UNIX_EPOCH + Duration::from_secs(clock.load(SeqCst))
    }
}

/// A resolver that gives the next of its answers at each look-up, and the last one from then on.
pub struct Script {
    answers: Vec<Vec<IpAddr>>,
    look_ups: AtomicUsize,
}

impl Script {
    pub fn new(answers: &[&[&str]]) -> Arc<Self> {
        let parse = |addresses: &&[&str]| addresses.iter().map(|address| address.parse().unwrap()).collect();
        Arc::new(Self { answers: answers.iter().map(parse).collect(), look_ups: AtomicUsize::new(0) })
    }

    pub fn look_ups(&self) -> usize {
        self.look_ups.load(SeqCst)
    }
}

impl Resolve for Script {
    fn resolve(&self, _: &str) -> Resolving {
        let index = self.look_ups.fetch_add(1, SeqCst).min(self.answers.len() - 1);
        let answer = self.answers[index].clone();
        Box::pin(async move { io::Result::Ok(answer) })
    }
}

/// Settings for services on loopback, with the certificates of the tests and without any kind.
pub fn settings() -> Settings {
    let authority = CertificateDer::from_pem_slice(include_bytes!("keys/authority.pem")).unwrap();
    Settings { allow_insecure: true, extra_roots: vec![authority], ..Settings::default() }
}

/// Settings with Web Push.
pub fn web_push_settings() -> Settings {
    let key = VapidKey::parse(&VapidKey::generate().unwrap()).unwrap();
    let web_push = WebPushSettings { key, subject: "mailto:operator@example.test".into() };
    Settings { web_push: Some(web_push), ..settings() }
}

/// Settings with Web Push and a time limit that a test can wait for.
pub fn impatient_settings() -> Settings {
    let limits = Limits { timeout: Duration::from_millis(250), ..Limits::default() };
    Settings { limits, ..web_push_settings() }
}

pub fn sender(settings: Settings) -> Sender {
    Sender::new(settings, Clock::new().read()).unwrap()
}

pub fn sender_with_clock(settings: Settings, clock: &Clock) -> Sender {
    Sender::new(settings, clock.read()).unwrap()
}

/// A sender for which every name resolves as `script` says.
pub fn sender_with_names(settings: Settings, script: &Arc<Script>) -> Sender {
    Sender::with_resolver(settings, Clock::new().read(), Arc::clone(script) as Arc<dyn Resolve>).unwrap()
}

pub fn wake() -> Notification {
    Notification { payload: Payload::Wake, urgency: Urgency::High, time_to_live: Duration::from_hours(1) }
}

/// A user agent of Web Push. It can decrypt one message.
pub struct UserAgent {
    private_key: EphemeralPrivateKey,
    public_key: Vec<u8>,
}

const AUTH: [u8; 16] = [7; 16];

impl UserAgent {
    pub fn new() -> Self {
        let private_key = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new()).unwrap();
        let public_key = private_key.compute_public_key().unwrap().as_ref().to_vec();
        Self { private_key, public_key }
    }

    /// Subscribes at `endpoint`.
    pub fn target(&self, endpoint: &str, sender: &Sender) -> Target {
        let p256dh = URL_SAFE_NO_PAD.encode(&self.public_key);
        let auth = URL_SAFE_NO_PAD.encode(AUTH);
        Target::WebPush(WebPushTarget::parse(endpoint, &p256dh, &auth, sender.endpoint_rules()).unwrap())
    }

    /// Decrypts the body of a request (RFC 8291, RFC 8188).
    pub fn decrypt(self, body: &[u8]) -> String {
        struct Length(usize);
        impl KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }
        fn derive<const N: usize>(salt: &[u8], secret: &[u8], info: &[&[u8]]) -> [u8; N] {
            let mut output = [0; N];
            let key = Salt::new(HKDF_SHA256, salt).extract(secret);
            key.expand(info, Length(N)).unwrap().fill(&mut output).unwrap();
            output
        }
        let (salt, sender, record) = (&body[..16], &body[21..86], &body[86..]);
        let peer = agreement::UnparsedPublicKey::new(&ECDH_P256, sender);
        let input: [u8; 32] = agreement::agree_ephemeral(self.private_key, &peer, |secret| {
            derive(&AUTH, secret, &[b"WebPush: info\0", &self.public_key, sender])
        })
        .unwrap();
        let key: [u8; 16] = derive(salt, &input, &[b"Content-Encoding: aes128gcm\0"]);
        let nonce: [u8; 12] = derive(salt, &input, &[b"Content-Encoding: nonce\0"]);
        let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).unwrap());
        let mut record = record.to_vec();
        let opened = key.open_in_place(AeadNonce::assume_unique_for_key(nonce), Aad::empty(), &mut record).unwrap();
        let text = String::from_utf8(opened.to_vec()).unwrap();
        text.trim_end_matches('\0').strip_suffix('\u{2}').unwrap().to_owned()
    }
}

/// A target at `endpoint` of a user agent that never decrypts.
pub fn subscribe(endpoint: &str, sender: &Sender) -> Target {
    UserAgent::new().target(endpoint, sender)
}

/// The header and the claims of a token, without the signature, and what was signed, and the signature.
pub struct Jwt {
    pub header: serde_json::Value,
    pub claims: serde_json::Value,
    pub signed: String,
    pub signature: Vec<u8>,
}

impl Jwt {
    pub fn parse(token: &str) -> Self {
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        Self {
            header: serde_json::from_slice(&decode(header)).unwrap(),
            claims: serde_json::from_slice(&decode(claims)).unwrap(),
            signed: signed.to_owned(),
            signature: decode(signature),
        }
    }

    pub fn verify(&self, algorithm: &'static dyn ring::signature::VerificationAlgorithm, public_key: &[u8]) {
        ring::signature::UnparsedPublicKey::new(algorithm, public_key)
            .verify(self.signed.as_bytes(), &self.signature)
            .expect("the signature verifies");
    }
}

/// Waits until `condition` holds.
pub async fn until(mut condition: impl FnMut() -> bool) {
    let whole = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), whole).await.expect("the condition holds in time");
}
