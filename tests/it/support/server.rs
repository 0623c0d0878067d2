//! Starts servers on free ports, each with its own temporary folder.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use sealwire::{
    app::{AppError, Application, Stopper},
    clock::{Clock, Entropy, ManualClock},
    config::Config,
    domain::Timestamp,
    tasks::Tasks,
};
use tempfile::TempDir;
use tokio::net::TcpSocket;

use super::eventually;

/// Settings by environment variable without the `SEALWIRE__` prefix, e.g. `("LIMITS__CLAIM_BURST", "0")`. Processes also
/// take `RUST_LOG` and `SSL_CERT_FILE`.
pub type Settings<'a> = &'a [(&'a str, &'a str)];

/// A server that tests can send requests to.
pub trait Server {
    /// The address for clients.
    fn address(&self) -> SocketAddr;
    /// The folder of sent mails.
    fn mail(&self) -> &Path;
}

fn environment(folder: &Path, settings: Settings) -> BTreeMap<String, String> {
    let database = format!("sqlite://{}", folder.join("sealwire.db").display());
    let mail = format!("file:{}", folder.join("mail").display());
    let defaults = [
        ("SERVER__BIND", "127.0.0.1:0"),
        ("SERVER__WORKERS", "2"),
        ("ADMIN__BIND", "127.0.0.1:0"),
        ("DATABASE__URL", &database),
        ("MAILER__URL", &mail),
        // All tests share one client address and sign in often, so these limits are off unless a test sets them.
        ("LIMITS__OTP_PER_NETWORK_HOUR", "0"),
        ("LIMITS__OTP_PER_EMAIL_NETWORK_HOUR", "0"),
        ("LIMITS__OTP_PER_EMAIL_HOUR", "0"),
        ("LIMITS__OTP_PER_EMAIL_DAY", "0"),
        ("LIMITS__VERIFY_PER_NETWORK_MINUTE", "0"),
        // The accounts of a test are new, so all of them are strangers to each other. Only the tests of that set these.
        ("LIMITS__STRANGER_KEYS_PER_DEVICE_HOUR", "0"),
        ("MAILBOX__STRANGER_SHARE", "0"),
    ];
    let is_bare = |key: &str| matches!(key, "RUST_LOG" | "SSL_CERT_FILE");
    let name = |key: &str| if is_bare(key) { key.to_owned() } else { format!("SEALWIRE__{key}") };
    defaults.iter().chain(settings).map(|(key, value)| (name(key), (*value).to_owned())).collect()
}

/// A server in this process, built by the production constructor, optionally with a manual clock.
pub struct TestApp {
    address: SocketAddr,
    admin: SocketAddr,
    mail: PathBuf,
    /// Stops the server or one of its listeners.
    pub stopper: Stopper,
    /// The server's background tasks.
    pub tasks: Tasks,
    thread: Option<JoinHandle<Result<(), AppError>>>,
    clock: Option<Arc<ManualClock>>,
    postgres: Option<String>,
    folder: TempDir,
}

impl TestApp {
    /// Starts a server on the system clock.
    pub fn start(settings: Settings) -> Self {
        Self::build(settings, None)
    }

    /// Starts a server whose clock only moves with [`advance`](Self::advance).
    pub fn with_clock(settings: Settings) -> Self {
        Self::build(settings, Some(manual_clock(Timestamp::parse("2026-06-01T12:00:00Z").unwrap(), true)))
    }

    /// Starts a server whose clock is ahead of the database's, and stands still.
    pub fn with_clock_ahead(settings: Settings, ahead: Duration) -> Self {
        Self::build(settings, Some(manual_clock(Clock::System.now() + ahead, false)))
    }

    fn build(settings: Settings, clock: Option<Arc<ManualClock>>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::load(None, environment(folder.path(), settings).into_iter()).unwrap();
        let server_clock = clock.clone().map_or(Clock::System, Clock::Manual);
        let (built, building) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let application = Application::build(&config, server_clock, &Entropy::from_system().unwrap()).unwrap();
            built
                .send((application.port(), application.admin_port(), application.stopper(), application.tasks()))
                .unwrap();
            actix_rt::System::new().block_on(application.run_until_stopped())
        });
        let (port, admin_port, stopper, tasks) = building.recv().expect("the server did not start");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let admin = SocketAddr::from(([127, 0, 0, 1], admin_port));
        let database = settings.iter().find(|(name, _)| *name == "DATABASE__URL").map(|(_, url)| (*url).to_owned());
        let postgres = database.filter(|url| url.starts_with("postgres"));
        let mail = folder.path().join("mail");
        Self { address, admin, mail, stopper, tasks, thread: Some(thread), clock, postgres, folder }
    }

    /// Advances the manual clock: time passes.
    pub fn advance(&self, span: Duration) {
        let micros = i64::try_from(span.as_micros()).unwrap();
        self.manual_clock().elapsed.fetch_add(micros, Ordering::SeqCst);
        self.manual_clock().now.fetch_add(micros, Ordering::SeqCst);
    }

    /// Sets the time of day of the manual clock ahead or back, although no time has passed.
    pub fn jump(&self, seconds: i64) {
        self.manual_clock().now.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
    }

    fn manual_clock(&self) -> &ManualClock {
        self.clock.as_ref().expect("the server must be started by `with_clock`")
    }

    /// The address of the admin listener.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Returns the URL of the database, if it is PostgreSQL.
    pub fn postgres(&self) -> Option<&str> {
        self.postgres.as_deref()
    }

    /// Returns the path of the database file.
    pub fn database(&self) -> PathBuf {
        self.folder.path().join("sealwire.db")
    }

    /// Waits until the server stops by itself, and returns its result.
    pub async fn ended(mut self) -> Result<(), AppError> {
        let thread = self.thread.take().unwrap();
        tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap()
    }

    fn stop_and_join(&mut self) {
        if let Some(thread) = self.thread.take() {
            let stopper = self.stopper.clone();
            // Needs its own runtime, because the test's runtime must not be blocked.
            let stopping = std::thread::spawn(move || {
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(stopper.stop());
            });
            stopping.join().unwrap();
            thread.join().unwrap().unwrap();
        }
    }
}

fn manual_clock(now: Timestamp, is_of_database: bool) -> Arc<ManualClock> {
    let now = AtomicI64::new(now.as_micros());
    Arc::new(ManualClock { now, elapsed: AtomicI64::new(0), is_of_database })
}

impl Drop for TestApp {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop_and_join();
        }
    }
}

impl Server for TestApp {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn mail(&self) -> &Path {
        &self.mail
    }
}

/// A process of the built binary. It can be killed and restarted on the same files.
pub struct ServerProcess {
    child: Child,
    address: SocketAddr,
    mail: PathBuf,
    environment: BTreeMap<String, String>,
    folder: Arc<TempDir>,
    _port: ReservedPort,
}

impl ServerProcess {
    /// Starts a server on a free port, which it keeps across restarts.
    pub async fn start(settings: Settings<'_>) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let mut environment = environment(folder.path(), settings);
        let port = ReservedPort::new();
        let address = port.address;
        environment.insert("SEALWIRE__SERVER__BIND".to_owned(), address.to_string());
        let child = launch(&environment, folder.path());
        let mail = folder.path().join("mail");
        let process = Self { child, address, mail, environment, folder, _port: port };
        process.ready().await;
        process
    }

    /// Runs a subcommand with the server's settings, and returns its stdout.
    pub fn command(&self, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_sealwire"))
            .args(arguments)
            .envs(&self.environment)
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns the resident set size of the process in bytes.
    pub fn resident_bytes(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }

    /// Returns the address of the admin listener, read from the log because its port is chosen by the system.
    pub fn admin(&self) -> SocketAddr {
        let log = std::fs::read_to_string(self.path("server.log")).unwrap();
        let line = log.lines().rfind(|line| line.contains("listening for the operator")).unwrap();
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let port = line["fields"]["port"].as_u64().unwrap();
        SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()))
    }

    /// Limits the size of the files that the process writes, to simulate a full disk. `None` lifts the limit.
    pub fn limit_file_size(&self, bytes: Option<u64>) {
        use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let Rlimit { maximum, .. } = getrlimit(Resource::Fsize);
        prlimit(pid, Resource::Fsize, Rlimit { current: bytes.or(maximum), maximum }).unwrap();
    }

    /// Returns the path of a file in the server's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Kills the process (SIGKILL).
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM, waits until the process has stopped, and returns its exit status.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.send_sigterm();
        self.stopped().await
    }

    /// Sends SIGTERM.
    pub fn send_sigterm(&self) {
        self.send_signal(rustix::process::Signal::TERM);
    }

    /// Sends a signal.
    pub fn send_signal(&self, signal: rustix::process::Signal) {
        let id = i32::try_from(self.child.id()).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// Returns the exit status if the process has stopped.
    pub fn try_stopped(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until the process has stopped, and returns its exit status.
    pub async fn stopped(&mut self) -> ExitStatus {
        let child = Mutex::new(&mut self.child);
        eventually("the server has stopped", || async { child.lock().unwrap().try_wait().unwrap() }).await
    }

    /// Starts the server again on the same files and port.
    pub async fn restart(&mut self) {
        self.child = launch(&self.environment, self.folder.path());
        self.ready().await;
    }

    async fn ready(&self) {
        let url = format!("http://{}/readyz", self.address);
        eventually("the server is ready", || async {
            reqwest::get(&url).await.ok().filter(|response| response.status().is_success())
        })
        .await;
    }
}

impl Server for ServerProcess {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn mail(&self) -> &Path {
        &self.mail
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The test's own output does not say what the server did.
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.path("server.log")).unwrap_or_default();
            let skipped = log.lines().count().saturating_sub(60);
            let end: Vec<&str> = log.lines().skip(skipped).collect();
            println!("last log lines of the server at {}:\n{}", self.address, end.join("\n"));
        }
    }
}

/// Returns a command whose process is killed when the thread that spawned it ends, even if the test is killed.
pub fn child_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

fn launch(environment: &BTreeMap<String, String>, folder: &Path) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("server.log")).unwrap();
    // With SIGXFSZ ignored, a write beyond the file size limit fails with an error instead of killing the process.
    child_command("sh")
        .args(["-c", "trap '' XFSZ; exec \"$0\"", env!("CARGO_BIN_EXE_sealwire")])
        .envs(environment)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// A port on 127.0.0.1 that the system assigns to no other process while this value lives, even if no server listens on
/// it.
pub struct ReservedPort {
    pub address: SocketAddr,
    /// Bound but not listening. On Linux, only sockets that ask for this port explicitly and set `SO_REUSEADDR`, as
    /// servers do, can then listen on it.
    _socket: TcpSocket,
}

impl ReservedPort {
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self { address: socket.local_addr().unwrap(), _socket: socket }
    }
}
