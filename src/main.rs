//! The command line: parses the arguments, reads the settings and runs the command.

use std::{
    fs::File,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use sealwire::{
    app::{self, Application},
    clock::{Clock, Entropy},
    config::{Config, LoadedConfig},
    probe,
    seed::{SeedPlan, seed},
    shutdown::{Signals, StartSignals},
    telemetry,
};
use tokio::runtime::Runtime;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code of a command that a signal ended before it was done: that of SIGTERM in a shell, 128 + 15.
const INTERRUPTED: i32 = 143;

type MainError = Box<dyn std::error::Error>;

/// Key and session server for end-to-end-encrypted chat.
#[derive(Parser)]
#[command(version)]
struct CliArguments {
    /// TOML file with settings that override the defaults.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<CliCommand>,
}

#[derive(Subcommand)]
enum CliCommand {
    /// Run the server until SIGTERM or Ctrl-C; a second one exits immediately (the default command).
    Serve,
    /// Migrate the database to this version.
    Migrate,
    /// Check the settings without starting the server, and print them as TOML with secrets hidden.
    CheckConfig {
        /// Also try the database, Redis and the mail server.
        #[arg(long)]
        connect: bool,
        /// Like --connect, and also send a test mail to this address.
        #[arg(long, value_name = "ADDRESS")]
        mail_to: Option<String>,
    },
    /// Check whether the server on this machine is ready; exits with 1 if not. For container health checks.
    Healthcheck,
    /// Fill the database with users, devices and keys for load tests.
    Seed {
        /// Number of users to create.
        #[arg(long)]
        users: usize,
        /// Number of devices per user.
        #[arg(long, default_value_t = 1)]
        devices: usize,
        /// Number of one-time prekeys per device.
        #[arg(long, default_value_t = 100)]
        prekeys: usize,
        /// File to write: one JSON line per device, with its user id, device id and token.
        #[arg(long)]
        out: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = CliArguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut stderr = std::io::stderr();
            // If standard error is closed, only the exit code reports the failure.
            let _ = writeln!(stderr, "sealwire: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: CliArguments) -> Result<(), MainError> {
    telemetry::init(levels().as_deref())?;
    let command = arguments.command.unwrap_or(CliCommand::Serve);
    // The first process of a container ignores SIGTERM unless it has a handler. Stopping a server that is starting is a
    // success; a command that is stopped has not done its work.
    let start = Signals::end_start(if matches!(command, CliCommand::Serve) { 0 } else { INTERRUPTED })?;
    let loaded = LoadedConfig::load(arguments.config.as_deref(), std::env::vars())?;
    for (given, meant) in &loaded.ignored {
        tracing::warn!("the environment variable {given} is ignored; did you mean {meant}?");
    }
    let config = &loaded.config;
    match command {
        CliCommand::Serve => serve(config, start),
        CliCommand::Migrate => migrate(config),
        CliCommand::CheckConfig { connect, mail_to } => check_config(&loaded, connect, mail_to.as_deref()),
        CliCommand::Healthcheck => Ok(probe::ask(config.server.bind)?),
        CliCommand::Seed { users, devices, prekeys, out } => fill(config, &SeedPlan { users, devices, prekeys }, &out),
    }
}

/// Returns the value of `RUST_LOG`. If it is not UTF-8, parsing it as levels will fail.
fn levels() -> Option<String> {
    std::env::var_os("RUST_LOG").map(|levels| levels.to_string_lossy().into_owned())
}

fn serve(config: &Config, start: StartSignals) -> Result<(), MainError> {
    let entropy = Entropy::from_system()?;
    let application = Application::build(config, Clock::System, &entropy)?;
    // As URLs, which many terminals open with a click.
    let url = |bind: SocketAddr, port: u16| format!("http://{}/", SocketAddr::new(bind.ip(), port));
    let (port, admin_port) = (application.port(), application.admin_port());
    tracing::info!(url = url(config.server.bind, port), port, "listening");
    tracing::info!(url = url(config.admin.bind, admin_port), port = admin_port, "listening for the operator");
    if config.serves_demo() {
        tracing::info!("to try it in a browser, open {}", url(config.server.bind, port));
    }
    let stopper = application.stopper();
    actix_rt::System::new().block_on(async move {
        actix_rt::spawn(Signals::new()?.stop(stopper));
        start.started();
        application.run_until_stopped().await?;
        tracing::info!("stopped");
        Ok(())
    })
}

fn migrate(config: &Config) -> Result<(), MainError> {
    Runtime::new()?.block_on(async {
        let store = app::open_store(config, &Entropy::from_system()?).await?;
        store.close().await;
        let applied = match store.migrated() {
            0 => "no migration was needed".to_owned(),
            1 => "1 migration was applied".to_owned(),
            count => format!("{count} migrations were applied"),
        };
        writeln!(std::io::stdout(), "the database is up to date: {applied}")?;
        Ok(())
    })
}

fn check_config(loaded: &LoadedConfig, connect: bool, mail_to: Option<&str>) -> Result<(), MainError> {
    let config = &loaded.config;
    app::check(config)?;
    let runtime = Runtime::new()?;
    // A SQLite file can be inspected without a connection.
    if config.database.url.reveal().starts_with("sqlite:") {
        runtime.block_on(app::inspect_store(config))?;
    }
    write!(std::io::stdout(), "{}", loaded.toml)?;
    if !connect && mail_to.is_none() {
        return Ok(());
    }
    runtime.block_on(async {
        let entropy = Entropy::from_system()?;
        let failed = [
            report("database", &app::inspect_store(config).await),
            report("bus", &app::try_bus(config).await),
            report("mailer", &app::try_mailer(config, &entropy, mail_to).await),
        ];
        if failed.contains(&true) { Err("the database, the bus or the mailer cannot be used".into()) } else { Ok(()) }
    })
}

/// Prints the outcome of a check to standard error. Returns whether it failed.
fn report(component: &str, outcome: &Result<&str, impl std::fmt::Display>) -> bool {
    // If standard error is closed, only the exit code reports the failure.
    let _ = match outcome {
        Ok(state) => writeln!(std::io::stderr(), "{component}: {state}"),
        Err(error) => writeln!(std::io::stderr(), "{component}: {error}"),
    };
    outcome.is_err()
}

fn fill(config: &Config, plan: &SeedPlan, out: &Path) -> Result<(), MainError> {
    Runtime::new()?.block_on(async {
        let entropy = Entropy::from_system()?;
        let store = app::open_store(config, &entropy).await?;
        let out = File::create(out)?;
        let made = seed(&store, plan, &app::policy(config), &Clock::System, &entropy, out).await?;
        store.close().await;
        writeln!(std::io::stderr(), "created {made} devices")?;
        Ok(())
    })
}
