//! Servers on free ports, each with a folder of its own.

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
    clock::{Clock, Entropy},
    config::Config,
    domain::Timestamp,
    tasks::Tasks,
};
use tempfile::TempDir;
use tokio::net::TcpSocket;

use super::eventually;

/// Settings by environment name, without the prefix: `("LIMITS__CLAIM_BURST", "0")`. For processes also `RUST_LOG` and
/// `SSL_CERT_FILE`.
pub type Settings<'a> = &'a [(&'a str, &'a str)];

/// A server that tests can talk to.
pub trait Server {
    /// Where clients connect.
    fn address(&self) -> SocketAddr;
    /// Where its mails are.
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
        // All tests come from one address and sign in often; those that test limits set them.
        ("LIMITS__OTP_PER_NETWORK_HOUR", "0"),
        ("LIMITS__OTP_PER_EMAIL_NETWORK_HOUR", "0"),
        ("LIMITS__OTP_PER_EMAIL_HOUR", "0"),
        ("LIMITS__OTP_PER_EMAIL_DAY", "0"),
        ("LIMITS__VERIFY_PER_NETWORK_MINUTE", "0"),
    ];
    let is_bare = |key: &str| matches!(key, "RUST_LOG" | "SSL_CERT_FILE");
    let name = |key: &str| if is_bare(key) { key.to_owned() } else { format!("SEALWIRE__{key}") };
    defaults.iter().chain(settings).map(|(key, value)| (name(key), (*value).to_owned())).collect()
}

/// A server in this process, built by the production constructor, with a clock that the test may own.
pub struct TestApp {
    address: SocketAddr,
    admin: SocketAddr,
    mail: PathBuf,
    /// Stops it, or one of its listeners.
    pub stopper: Stopper,
    /// Its background tasks.
    pub tasks: Tasks,
    thread: Option<JoinHandle<Result<(), AppError>>>,
    clock: Option<Arc<AtomicI64>>,
    folder: TempDir,
}

impl TestApp {
    /// Starts one on the machine's clock.
    pub fn start(settings: Settings) -> Self {
        Self::build(settings, None)
    }

    /// Starts one whose clock stands still until the test moves it.
    pub fn with_clock(settings: Settings) -> Self {
        let now = Timestamp::parse("2026-06-01T12:00:00Z").unwrap();
        Self::build(settings, Some(Arc::new(AtomicI64::new(now.as_micros()))))
    }

    fn build(settings: Settings, clock: Option<Arc<AtomicI64>>) -> Self {
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
        let mail = folder.path().join("mail");
        Self { address, admin, mail, stopper, tasks, thread: Some(thread), clock, folder }
    }

    /// Moves the clock.
    pub fn advance(&self, span: Duration) {
        let clock = self.clock.as_ref().expect("started with a clock");
        clock.fetch_add(i64::try_from(span.as_micros()).unwrap(), Ordering::SeqCst);
    }

    /// Where its operator looks.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The database file.
    pub fn database(&self) -> PathBuf {
        self.folder.path().join("sealwire.db")
    }

    /// Waits until it has stopped by itself, and gives why.
    pub async fn ended(mut self) -> Result<(), AppError> {
        let thread = self.thread.take().unwrap();
        tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap()
    }

    fn stop_and_join(&mut self) {
        if let Some(thread) = self.thread.take() {
            let stopper = self.stopper.clone();
            // A runtime of its own, since the test's must not be blocked on.
            let stopping = std::thread::spawn(move || {
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(stopper.stop());
            });
            stopping.join().unwrap();
            thread.join().unwrap().unwrap();
        }
    }
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

/// The built binary as a process, which can be killed and started again on the same files.
pub struct ServerProcess {
    child: Child,
    address: SocketAddr,
    mail: PathBuf,
    environment: BTreeMap<String, String>,
    folder: Arc<TempDir>,
    _port: ReservedPort,
}

impl ServerProcess {
    /// Starts one on a free port, which it keeps over restarts.
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

    /// Runs a subcommand with the same settings and gives what it printed.
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

    /// Bytes of memory that the process holds.
    pub fn resident_bytes(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }

    /// Where its operator looks: a free port, of which the log tells.
    pub fn admin(&self) -> SocketAddr {
        let log = std::fs::read_to_string(self.path("server.log")).unwrap();
        let line = log.lines().rfind(|line| line.contains("listening for the operator")).unwrap();
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let port = line["fields"]["port"].as_u64().unwrap();
        SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()))
    }

    /// Keeps its files from growing beyond so many bytes, as a full disk would, or no longer does.
    pub fn limit_file_size(&self, bytes: Option<u64>) {
        use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let Rlimit { maximum, .. } = getrlimit(Resource::Fsize);
        prlimit(pid, Resource::Fsize, Rlimit { current: bytes.or(maximum), maximum }).unwrap();
    }

    /// A file in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Kills it without warning (SIGKILL).
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop (SIGTERM), waits until it has, and gives how it ended.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal();
        self.stopped().await
    }

    /// Sends SIGTERM.
    pub fn signal(&self) {
        self.send_signal(rustix::process::Signal::TERM);
    }

    /// Sends any signal.
    pub fn send_signal(&self, signal: rustix::process::Signal) {
        let id = i32::try_from(self.child.id()).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// How it ended, if it has.
    pub fn try_stopped(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until it has stopped, and gives how it ended.
    pub async fn stopped(&mut self) -> ExitStatus {
        let child = Mutex::new(&mut self.child);
        eventually("the server has stopped", || async { child.lock().unwrap().try_wait().unwrap() }).await
    }

    /// Starts it again on the same files and port.
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
        // What a failed test cannot tell.
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.path("server.log")).unwrap_or_default();
            let skipped = log.lines().count().saturating_sub(60);
            let end: Vec<&str> = log.lines().skip(skipped).collect();
            println!("the end of the log of the server at {}:\n{}", self.address, end.join("\n"));
        }
    }
}

/// A command for a process that ends with the thread that starts it, even if that is killed: with the test.
pub fn mortal(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

fn launch(environment: &BTreeMap<String, String>, folder: &Path) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("server.log")).unwrap();
    // A file that has reached its limit is an error to report, not a signal that kills.
    mortal("sh")
        .args(["-c", "trap '' XFSZ; exec \"$0\"", env!("CARGO_BIN_EXE_sealwire")])
        .envs(environment)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// A port of 127.0.0.1 that the system gives to nobody else as long as this lives, whether a server listens on it or not.
pub struct ReservedPort {
    pub address: SocketAddr,
    /// Bound and not listening: Linux then lets only those listen who ask for this very port, and allow it to be reused,
    /// as servers do.
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
