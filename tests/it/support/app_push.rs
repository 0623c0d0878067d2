//! A service that stands for APNs and FCM: takes requests over HTTP/2 and HTTP/1.1 without TLS, records them, and answers as
//! a test says. The tests of `sealwire-push` verify the tokens of the requests.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use super::eventually;

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct AppPush {
    pub path: String,
    pub headers: HashMap<String, String>,
    /// `Null` unless it is JSON.
    pub body: Value,
}

#[derive(Default)]
struct State {
    pushes: Mutex<Vec<AppPush>>,
    /// Status and body, by path; others are accepted.
    answers: Mutex<HashMap<String, (u16, Value)>>,
}

pub struct AppPushService {
    pub address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Drop for AppPushService {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl AppPushService {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Arc::new(State::default()));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = shared.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| answer(request, state.clone()));
                    let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, state, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on, requests to this path are answered so.
    pub fn answer(&self, path: &str, status: u16, body: Value) {
        self.state.answers.lock().unwrap().insert(path.to_owned(), (status, body));
    }

    /// Waits until this many requests to a path have arrived, and returns them.
    pub async fn arrived(&self, path: &str, count: usize) -> Vec<AppPush> {
        eventually("the pushes have arrived", || async {
            let all = self.state.pushes.lock().unwrap();
            let found: Vec<AppPush> = all.iter().filter(|push| push.path == path).cloned().collect();
            (found.len() >= count).then_some(found)
        })
        .await
    }
}

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let headers = request.headers().iter();
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let (status, answer) = match path.as_str() {
        "/token" => (200, json!({ "access_token": "an-access-token", "expires_in": 3600, "token_type": "Bearer" })),
        path => state.answers.lock().unwrap().get(path).cloned().unwrap_or((200, json!({}))),
    };
    state.pushes.lock().unwrap().push(AppPush { path, headers, body });
    let body = Full::new(answer.to_string().into());
    Ok(Response::builder().status(status).header("content-type", "application/json").body(body).unwrap())
}
