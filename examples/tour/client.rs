//! A small client: signs in with JSON over HTTP, then opens one WebSocket per device.

use std::{collections::VecDeque, error::Error, fs, io::IsTerminal, path::PathBuf, time::Duration};

use futures_util::{SinkExt, StreamExt, stream::SplitSink};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue},
};

use crate::packed::{Packed, Unpacked};

/// The result of a step, or the error that ends the tour.
pub type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Timeout for every step.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The group of eight digits in a mail.
fn code_in(mail: &str) -> Option<&str> {
    mail.split(|c: char| !c.is_ascii_digit()).find(|digits| digits.len() == 8)
}

/// The server.
pub struct Server {
    /// URL, such as `http://127.0.0.1:8080`.
    pub url: String,
    /// Folder of its mails, if it is known.
    pub mail: Option<PathBuf>,
}

/// A session, from signing in.
pub struct Session {
    pub email: String,
    pub user: String,
    pub device: String,
    pub token: String,
}

impl Session {
    /// Reads a session from the response to a sign-in.
    pub fn new(email: &str, body: &Value) -> Outcome<Self> {
        Ok(Self {
            email: email.to_owned(),
            user: text(&body["user_id"])?,
            device: text(&body["device_id"])?,
            token: text(&body["token"])?,
        })
    }
}

impl Server {
    /// Makes one HTTP request. Returns the status and body of the response.
    pub async fn call(&self, method: Method, path: &str, token: &str, body: Option<Value>) -> Outcome<(u16, Value)> {
        wire(&format!("{method} {path} {}", body.as_ref().map(brief).unwrap_or_default()));
        let mut request = reqwest::Client::new().request(method, format!("{}{path}", self.url));
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? };
        wire(&format!("{status} {}", brief(&body)));
        Ok((status, body))
    }

    /// Signs in on a new device by mailed code.
    pub async fn sign_in(&self, email: &str, name: &str) -> Outcome<Session> {
        let code = self.request_code(email, "sign_in").await?;
        let (status, session) = self.verify(email, code, json!({ "name": name })).await?;
        ensure(status == 201, "the code opens a session")?;
        Session::new(email, &session)
    }

    /// Redeems a code of [`Self::request_code`] for a device. Returns the status and body of the response.
    pub async fn verify(&self, email: &str, mut code: Value, device: Value) -> Outcome<(u16, Value)> {
        code["email"] = json!(email);
        code["device"] = device;
        self.call(Method::POST, "/v1/auth/verify", "", Some(code)).await
    }

    /// Requests a code for a purpose, and waits until it is mailed or entered. Returns `challenge_id` and `code`.
    pub async fn request_code(&self, email: &str, purpose: &str) -> Outcome<Value> {
        let seen = self.mails_to(email)?;
        let body = json!({ "email": email, "purpose": purpose });
        let (status, challenge) = self.call(Method::POST, "/v1/auth/otp", "", Some(body)).await?;
        ensure(status == 202, "the server accepts the request for a code")?;
        let code = match self.mail {
            Some(_) => {
                let has_code = |mail: &str| !seen.iter().any(|old| old == mail) && code_in(mail).is_some();
                code_in(&self.wait_for_mail(email, has_code).await?).ok_or("the mail has a code")?.to_owned()
            }
            None => ask(&format!("      The code that the server printed for {email}: ")).await?,
        };
        Ok(json!({ "challenge_id": challenge["challenge_id"], "code": code }))
    }

    /// The subjects and bodies of all mails to an address, oldest first. Empty if the folder is unknown.
    pub fn mails_to(&self, email: &str) -> Outcome<Vec<String>> {
        let Some(folder) = &self.mail else { return Ok(vec![]) };
        let mut paths: Vec<PathBuf> = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Outcome<_>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "eml"));
        paths.sort();
        let mut found = Vec::new();
        for path in paths {
            let mail = fs::read_to_string(path)?;
            let (head, body) = mail.split_once("\r\n\r\n").ok_or("a mail has no body")?;
            if head.contains(&format!("To: {email}")) {
                let subject = head.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap_or_default();
                found.push(format!("{subject}: {}", body.trim().replace("\r\n", " ")));
            }
        }
        Ok(found)
    }

    /// Waits for a mail that fits.
    pub async fn wait_for_mail(&self, email: &str, fits: impl Fn(&str) -> bool) -> Outcome<String> {
        let wait = async {
            loop {
                match self.mails_to(email)?.into_iter().find(|mail| fits(mail)) {
                    Some(mail) => return Ok(mail),
                    None => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        timeout(TIMEOUT, wait).await.map_err(|_| "no mail arrived in time")?
    }

    /// Opens the socket of a session's device, and waits for the welcome.
    pub async fn connect(&self, name: &str, session: &Session, encoding: Encoding) -> Outcome<Socket> {
        let mut request = format!("{}/v1/socket", self.url.replacen("http", "ws", 1)).into_client_request()?;
        let headers = request.headers_mut();
        headers.insert("authorization", HeaderValue::from_str(&format!("Bearer {}", session.token))?);
        headers.insert("sec-websocket-protocol", HeaderValue::from_static(encoding.subprotocol()));
        wire(&format!("GET /v1/socket, upgrade to {}", encoding.subprotocol()));
        let (sink, mut stream) = connect_async(request).await?.0.split();
        // Always read, even while a person enters a code: the server's pings are answered by reading.
        let (arrived, incoming) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut end = 1006;
            while let Some(Ok(message)) = stream.next().await {
                if let Message::Close(frame) = &message {
                    end = frame.as_ref().map_or(1005, |frame| frame.code.into());
                } else if let Some(frame) = encoding.decode(&message) {
                    let _ = arrived.send(Incoming::Frame(frame));
                }
            }
            let _ = arrived.send(Incoming::Closed(end));
        });
        let mut socket = Socket {
            name: name.to_owned(),
            encoding,
            sink,
            incoming,
            events: VecDeque::new(),
            last_id: 0,
            welcome: Value::Null,
            quiet: false,
        };
        // The first frame of a socket is always the welcome.
        let first = socket.next_frame().await?;
        ensure(first["event"] == "welcome" && first["data"]["device_id"] == session.device, "a welcome comes first")?;
        socket.welcome = first["data"].clone();
        Ok(socket)
    }
}

/// The encoding of frames, chosen by the subprotocol of the upgrade.
#[derive(Clone, Copy)]
pub enum Encoding {
    /// In text frames.
    Json,
    /// In binary frames.
    MsgPack,
}

impl Encoding {
    fn subprotocol(self) -> &'static str {
        match self {
            Self::Json => "sealwire.v1.json",
            Self::MsgPack => "sealwire.v1.msgpack",
        }
    }

    fn encode(self, frame: &Value) -> Outcome<Message> {
        Ok(match self {
            Self::Json => Message::text(frame.to_string()),
            Self::MsgPack => Message::binary(rmp_serde::to_vec_named(&Packed(frame))?),
        })
    }

    fn decode(self, message: &Message) -> Option<Value> {
        match (self, message) {
            (Self::Json, Message::Text(text)) => serde_json::from_str(text).ok(),
            (Self::MsgPack, Message::Binary(bytes)) => rmp_serde::from_slice(bytes).ok().map(|Unpacked(frame)| frame),
            _ => None,
        }
    }
}

enum Incoming {
    Frame(Value),
    Closed(u16),
}

/// A connected device.
pub struct Socket {
    /// The name of the device in the output.
    pub name: String,
    encoding: Encoding,
    sink: SplitSink<WebSocketStream<MaybeTlsStream<TcpStream>>, Message>,
    incoming: mpsc::UnboundedReceiver<Incoming>,
    /// Events received while waiting for something else.
    events: VecDeque<Value>,
    last_id: u32,
    /// The data of the welcome event.
    pub welcome: Value,
    /// Whether its frames are omitted from the output.
    pub quiet: bool,
}

impl Socket {
    /// Sends a request and waits for its reply. Returns the result; an error reply ends the tour.
    pub async fn request(&mut self, op: &str, params: Value) -> Outcome<Value> {
        match self.ask(op, params).await? {
            Ok(result) => Ok(result),
            Err(error) => Err(format!("{op} was refused: {error}").into()),
        }
    }

    /// Like [`Self::request`], but returns an error reply as the inner `Err`.
    pub async fn ask(&mut self, op: &str, params: Value) -> Outcome<Result<Value, Value>> {
        self.last_id += 1;
        let request = json!({ "id": self.last_id, "op": op, "params": params });
        self.show("→", &brief(&request));
        self.sink.send(self.encoding.encode(&request)?).await?;
        loop {
            let frame = self.next_frame().await?;
            if frame.get("event").is_some() {
                self.events.push_back(frame);
                continue;
            }
            ensure(frame["id"] == self.last_id, "the reply has the id of its request")?;
            return Ok(frame.get("error").cloned().map_or_else(|| Ok(frame["result"].clone()), Err));
        }
    }

    /// Waits for the next event with this name. Returns its data.
    pub async fn event(&mut self, name: &str) -> Outcome<Value> {
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return Ok(self.events.remove(at).unwrap_or_default()["data"].take());
            }
            let frame = self.next_frame().await?;
            self.events.push_back(frame);
        }
    }

    /// Waits until the server closes the socket. Returns the close code.
    pub async fn close_code(&mut self) -> Outcome<u16> {
        loop {
            match timeout(TIMEOUT, self.incoming.recv())
                .await
                .map_err(|_| "the server did not close the socket in time")?
            {
                Some(Incoming::Frame(frame)) => self.events.push_back(frame),
                Some(Incoming::Closed(code)) => {
                    self.show("←", &format!("close {code}"));
                    return Ok(code);
                }
                None => return Err("the socket had closed before".into()),
            }
        }
    }

    /// Closes the socket and waits until it is closed.
    pub async fn leave(&mut self) -> Outcome {
        self.sink.close().await?;
        self.close_code().await.map(drop)
    }

    fn show(&self, arrow: &str, what: &str) {
        if !self.quiet {
            wire(&format!("{} {arrow} {what}", self.name));
        }
    }

    async fn next_frame(&mut self) -> Outcome<Value> {
        match timeout(TIMEOUT, self.incoming.recv()).await.map_err(|_| "no frame arrived in time")? {
            Some(Incoming::Frame(frame)) => {
                self.show("←", &brief(&frame));
                Ok(frame)
            }
            Some(Incoming::Closed(code)) => Err(format!("{} was closed with {code}", self.name).into()),
            None => Err("the socket is closed".into()),
        }
    }
}

/// Fails if `holds` is false; `what` says what was expected.
pub fn ensure(holds: bool, what: &str) -> Outcome {
    if holds { Ok(()) } else { Err(format!("expected, but false: {what}").into()) }
}

/// The text in a value.
pub fn text(value: &Value) -> Outcome<String> {
    Ok(value.as_str().ok_or("a value is not text")?.to_owned())
}

async fn ask(question: &str) -> Outcome<String> {
    eprint!("{question}");
    let line = tokio::task::spawn_blocking(|| std::io::stdin().lines().next().transpose()).await??;
    Ok(line.ok_or("no code was entered")?.trim().to_owned())
}

/// Prints traffic on the wire, dimmed in a terminal.
pub fn wire(line: &str) {
    if std::io::stdout().is_terminal() {
        println!("      \x1b[2m{line}\x1b[0m");
    } else {
        println!("      {line}");
    }
}

/// JSON on one line, with ids, keys and tokens shortened.
fn brief(value: &Value) -> String {
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
    if value.is_null() { String::new() } else { shorten(value).to_string() }
}
