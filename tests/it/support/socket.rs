//! A WebSocket client.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    sync::{Notify, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message, client::IntoClientRequest, http::HeaderValue, protocol::WebSocketConfig},
};

use super::{PATIENCE, Server, packed};

/// A subprotocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Json,
    MsgPack,
}

impl Codec {
    pub const ALL: [Self; 2] = [Self::Json, Self::MsgPack];

    pub fn subprotocol(self) -> &'static str {
        match self {
            Self::Json => "sealwire.v1.json",
            Self::MsgPack => "sealwire.v1.msgpack",
        }
    }

    pub fn encode(self, value: &Value) -> Message {
        match self {
            Self::Json => Message::text(value.to_string()),
            Self::MsgPack => Message::binary(rmp_serde::to_vec_named(&packed::Packed(value)).unwrap()),
        }
    }

    /// The value of a data frame; `None` for other frames.
    pub fn decode(self, message: &Message) -> Option<Value> {
        match (self, message) {
            (Self::Json, Message::Text(text)) => Some(serde_json::from_str(text).expect("the server sends JSON")),
            (Self::MsgPack, Message::Binary(bytes)) => {
                let packed::Unpacked(value) = rmp_serde::from_slice(bytes).expect("the server sends MessagePack");
                Some(value)
            }
            (_, Message::Text(_) | Message::Binary(_)) => {
                panic!("expected a frame of the negotiated kind, got {message:?}")
            }
            _ => None,
        }
    }
}

pub type Stream = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Opens a WebSocket with these subprotocols and this token, and returns the stream without reading the welcome.
pub async fn connect_raw(
    server: &impl Server,
    token: Option<&str>,
    subprotocols: &str,
) -> Result<Stream, tungstenite::Error> {
    let mut request = format!("ws://{}/v1/socket", server.address()).into_client_request()?;
    if let Some(token) = token {
        request.headers_mut().insert("authorization", HeaderValue::from_str(&format!("Bearer {token}")).unwrap());
    }
    if !subprotocols.is_empty() {
        request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_str(subprotocols).unwrap());
    }
    let _: WebSocketConfig = WebSocketConfig::default();
    Ok(connect_async(request).await?.0)
}

/// A connected device: sends requests, collects events and records the close code.
pub struct Socket {
    codec: Codec,
    next_id: AtomicU32,
    sink: tokio::sync::Mutex<SplitSink<Stream, Message>>,
    shared: Arc<Shared>,
    closed: watch::Receiver<Option<u16>>,
    reader: JoinHandle<()>,
    /// The data of the `welcome` event.
    pub welcome: Value,
}

#[derive(Default)]
struct Shared {
    pending: Mutex<HashMap<u32, oneshot::Sender<Value>>>,
    events: Mutex<VecDeque<Value>>,
    arrived: Notify,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Socket {
    /// Connects and waits for the welcome.
    pub async fn connect(server: &impl Server, token: &str, codec: Codec) -> Self {
        Self::try_connect(server, token, codec).await.expect("connected")
    }

    /// Like [`connect`](Self::connect), but returns `None` if the connection fails or closes before the welcome.
    pub async fn try_connect(server: &impl Server, token: &str, codec: Codec) -> Option<Self> {
        let stream = connect_raw(server, Some(token), codec.subprotocol()).await.ok()?;
        let (sink, mut stream) = stream.split();
        let welcome = loop {
            let message = timeout(PATIENCE, stream.next()).await.expect("a welcome")?.ok()?;
            if let Some(frame) = codec.decode(&message) {
                assert_eq!(frame["event"], "welcome", "expected a welcome as the first frame, got {frame}");
                break frame["data"].clone();
            }
            if message.is_close() {
                return None;
            }
        };
        let shared = Arc::new(Shared::default());
        let (close, closed) = watch::channel(None);
        let reader = tokio::spawn(read(stream, codec, shared.clone(), close));
        Some(Self {
            codec,
            next_id: AtomicU32::new(1),
            sink: tokio::sync::Mutex::new(sink),
            shared,
            closed,
            reader,
            welcome,
        })
    }

    /// Sends a frame unchanged.
    pub async fn send(&self, message: Message) {
        // A send error means that the server has closed the socket, which `close_code` reports.
        let _ = self.sink.lock().await.send(message).await;
    }

    /// Sends a request and returns the result or the error, or `None` if the socket closes first.
    pub async fn try_request(&self, op: &str, params: Value) -> Option<Result<Value, Value>> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let reply = self.expect_reply(id);
        self.send(self.codec.encode(&json!({ "id": id, "op": op, "params": params }))).await;
        let mut closed = self.closed.clone();
        let reply = tokio::select! {
            biased;
            reply = reply => reply.ok(),
            _ = closed.wait_for(Option::is_some) => None,
            () = tokio::time::sleep(PATIENCE) => panic!("no reply to {op}"),
        }?;
        Some(match reply.get("error") {
            None => Ok(reply["result"].clone()),
            Some(error) => Err(error.clone()),
        })
    }

    /// Registers a request id, and returns a receiver for its reply.
    pub fn expect_reply(&self, id: u32) -> oneshot::Receiver<Value> {
        let (sender, receiver) = oneshot::channel();
        self.shared.pending.lock().unwrap().insert(id, sender);
        receiver
    }

    /// Sends a request that must succeed.
    pub async fn request(&self, op: &str, params: Value) -> Value {
        match self.try_request(op, params).await {
            Some(Ok(result)) => result,
            other => panic!("{op}: {other:?}"),
        }
    }

    /// Sends a request that must fail, and returns the error.
    pub async fn refused(&self, op: &str, params: Value) -> Value {
        match self.try_request(op, params).await {
            Some(Err(error)) => error,
            other => panic!("expected {op} to be refused, got {other:?}"),
        }
    }

    /// Waits for an event of this name, removes the oldest and returns its data.
    pub async fn event(&self, name: &str) -> Value {
        let wait = async {
            loop {
                let arrived = self.shared.arrived.notified();
                if let Some(data) = self.take_event(name) {
                    return data;
                }
                arrived.await;
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("no event {name}"))
    }

    /// Like [`event`](Self::event), without a timeout; returns `None` once the socket has closed.
    pub async fn event_or_close(&self, name: &str) -> Option<Value> {
        let mut closed = self.closed.clone();
        loop {
            let arrived = self.shared.arrived.notified();
            if let Some(data) = self.take_event(name) {
                return Some(data);
            }
            tokio::select! {
                () = arrived => {}
                _ = closed.wait_for(Option::is_some) => return None,
            }
        }
    }

    /// Removes the oldest event of this name and returns its data, if one has arrived.
    pub fn take_event(&self, name: &str) -> Option<Value> {
        let mut events = self.shared.events.lock().unwrap();
        let at = events.iter().position(|event| event["event"] == name)?;
        events.remove(at).map(|event| event["data"].clone())
    }

    /// Returns the data of all events of this name that were not taken, oldest first, without removing them.
    pub fn seen_events(&self, name: &str) -> Vec<Value> {
        let events = self.shared.events.lock().unwrap();
        events.iter().filter(|event| event["event"] == name).map(|event| event["data"].clone()).collect()
    }

    /// Waits until the server closes the socket, and returns the close code (1006 if there is no close frame).
    pub async fn close_code(&self) -> u16 {
        let mut closed = self.closed.clone();
        let code = timeout(PATIENCE, closed.wait_for(Option::is_some)).await.expect("a close").unwrap();
        code.unwrap()
    }

    /// Like [`close_code`](Self::close_code), without a timeout.
    pub async fn closed(&self) -> u16 {
        self.closed.clone().wait_for(Option::is_some).await.unwrap().unwrap()
    }

    /// Returns the first `prekeys.low` event with this count, if it has arrived.
    pub fn low_event(&self, remaining: u64) -> Option<Value> {
        self.seen_events("prekeys.low").into_iter().find(|event| event["remaining"] == remaining)
    }

    /// Returns whether the socket has closed.
    pub fn is_closed(&self) -> bool {
        self.closed.borrow().is_some()
    }

    /// Sends a request and waits for its reply: everything sent earlier on this socket has then been handled.
    pub async fn barrier(&self) {
        self.request("keys.status", json!({})).await;
    }
}

async fn read(mut stream: SplitStream<Stream>, codec: Codec, shared: Arc<Shared>, close: watch::Sender<Option<u16>>) {
    let mut code = 1006;
    while let Some(Ok(message)) = stream.next().await {
        if let Message::Close(frame) = &message {
            code = frame.as_ref().map_or(1005, |frame| frame.code.into());
        }
        let Some(frame) = codec.decode(&message) else { continue };
        if frame.get("event").is_some() {
            shared.events.lock().unwrap().push_back(frame);
            shared.arrived.notify_waiters();
        } else {
            let id = u32::try_from(frame["id"].as_u64().unwrap()).unwrap();
            let receiver = shared.pending.lock().unwrap().remove(&id);
            let _ = receiver.unwrap_or_else(|| panic!("unexpected reply: {frame}")).send(frame);
        }
    }
    shared.pending.lock().unwrap().clear();
    let _ = close.send(Some(code));
}
