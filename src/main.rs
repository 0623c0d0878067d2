//! The command line: parses the arguments, reads the settings and runs the command.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use sealwire::{
    app::{self, Application},
    clock::{Clock, Entropy},
    config::Config,
    probe,
    seed::{SeedPlan, seed},
    shutdown::Signals,
    telemetry,
};
use tokio::runtime::Runtime;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    /// Check the settings and the database without starting the server, and show the settings in force.
    CheckConfig,
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
    let config = Config::load(arguments.config.as_deref(), std::env::vars())?;
    match arguments.command.unwrap_or(CliCommand::Serve) {
        CliCommand::Serve => serve(&config),
        CliCommand::Migrate => migrate(&config),
        CliCommand::CheckConfig => check_config(&config),
        CliCommand::Healthcheck => Ok(probe::ask(config.server.bind)?),
        CliCommand::Seed { users, devices, prekeys, out } => fill(&config, &SeedPlan { users, devices, prekeys }, &out),
    }
}

/// Returns the value of `RUST_LOG`. If it is not UTF-8, parsing it as levels will fail.
fn levels() -> Option<String> {
    std::env::var_os("RUST_LOG").map(|levels| levels.to_string_lossy().into_owned())
}

fn serve(config: &Config) -> Result<(), MainError> {
    let entropy = Entropy::from_system()?;
    let application = Application::build(config, Clock::System, &entropy)?;
    tracing::info!(address = %config.server.bind.ip(), port = application.port(), "listening");
    tracing::info!(address = %config.admin.bind.ip(), port = application.admin_port(), "listening for the operator");
    let stopper = application.stopper();
    actix_rt::System::new().block_on(async move {
        actix_rt::spawn(Signals::new()?.stop(stopper));
        application.run_until_stopped().await?;
        tracing::info!("stopped");
        Ok(())
    })
}

fn migrate(config: &Config) -> Result<(), MainError> {
    Runtime::new()?.block_on(async {
        app::open_store(config, &Entropy::from_system()?).await?.close().await;
        Ok(())
    })
}

fn check_config(config: &Config) -> Result<(), MainError> {
    let found = Runtime::new()?.block_on(app::inspect_store(config))?;
    writeln!(std::io::stdout(), "{config:#?}\nthe settings are valid; {found}")?;
    Ok(())
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
