//! A real browser: headless Chromium, driven over the `DevTools` protocol
//! (<https://chromedevtools.github.io/devtools-protocol/>).

use std::{
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::{SinkExt, StreamExt};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

use super::{PATIENCE, eventually, server::child_command};

/// Names of the browser's executable. If none is installed, `scripts/test` installs the first.
const NAMES: [&str; 5] =
    ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// A browser with one page open.
pub struct Page {
    child: Child,
    devtools: WebSocketStream<MaybeTlsStream<TcpStream>>,
    session: Option<String>,
    last_id: u64,
    /// Console output, violations of the content security policy, and uncaught exceptions.
    pub problems: Vec<String>,
    _profile: TempDir,
}

impl Page {
    /// Starts a browser and opens an empty page.
    pub async fn open() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut child = child_command(browser())
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"])
            .args(["--disable-dev-shm-usage", "--disable-background-networking", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Debian's command is a script that starts the browser's processes. One group lets `drop` kill all of them.
            .process_group(0)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let url = lines.find_map(|line| Some(line.ok()?.strip_prefix("DevTools listening on ")?.trim().to_owned()));
        // Read the rest of stderr, so that the pipe does not fill up.
        std::thread::spawn(move || lines.for_each(drop));
        let (devtools, _) = connect_async(url.expect("expected the browser to print its DevTools URL")).await.unwrap();
        let mut page = Self { child, devtools, session: None, last_id: 0, problems: Vec::new(), _profile: profile };
        let target = page.call("Target.createTarget", json!({ "url": "about:blank" })).await["targetId"].clone();
        let attached = page.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true })).await;
        page.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            page.call(domain, json!({})).await;
        }
        page
    }

    /// Sends a command and returns its result. Events that arrive before the result are recorded.
    pub async fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let id = self.last_id;
        let mut command = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            command["sessionId"] = json!(session);
        }
        self.devtools.send(Message::text(command.to_string())).await.unwrap();
        loop {
            let message = timeout(PATIENCE, self.devtools.next())
                .await
                .expect("timed out waiting for an answer from the browser")
                .unwrap()
                .unwrap();
            let Message::Text(text) = message else { continue };
            let mut message: Value = serde_json::from_str(&text).unwrap();
            if message["id"] == id {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].take();
            }
            self.record_event(&message);
        }
    }

    fn record_event(&mut self, event: &Value) {
        let params = &event["params"];
        match event["method"].as_str() {
            Some("Log.entryAdded") => self.problems.push(params["entry"].to_string()),
            Some("Runtime.exceptionThrown") => self.problems.push(params["exceptionDetails"].to_string()),
            Some("Runtime.consoleAPICalled") => self.problems.push(params["args"].to_string()),
            _ => {}
        }
    }

    /// Navigates to a URL and waits until the page has loaded.
    pub async fn navigate(&mut self, url: &str) {
        let navigated = self.call("Page.navigate", json!({ "url": url })).await;
        assert!(navigated["errorText"].is_null(), "{url}: {navigated}");
        self.wait_until("document.readyState === 'complete'").await;
    }

    /// Returns the value of a JavaScript expression.
    pub async fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.call("Runtime.evaluate", params).await;
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].take()
    }

    /// Waits until a JavaScript expression is true.
    pub async fn wait_until(&mut self, expression: &str) {
        let page = tokio::sync::Mutex::new(self);
        eventually(expression, || async { (page.lock().await.evaluate(expression).await == true).then_some(()) }).await;
    }

    /// Sets the window's size in CSS pixels, and the preferred colour scheme: `light` or `dark`.
    pub async fn set_viewport(&mut self, width: u32, height: u32, scheme: &str) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 2, "mobile": width < 500 });
        self.call("Emulation.setDeviceMetricsOverride", metrics).await;
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", features).await;
    }

    /// Saves a screenshot of the whole page in `target/artifacts`, and returns its path.
    pub async fn screenshot(&mut self, name: &str) -> PathBuf {
        let taken = self.call("Page.captureScreenshot", json!({ "captureBeyondViewport": true })).await;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/artifacts");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        std::fs::write(&path, STANDARD.decode(taken["data"].as_str().unwrap()).unwrap()).unwrap();
        path
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

fn browser() -> PathBuf {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders)
        .flat_map(|folder| NAMES.map(|name| folder.join(name)))
        .find(|path| path.is_file());
    found.expect("no browser found: apt-get install -y chromium-headless-shell")
}
