//! PostgreSQL and Redis servers for tests.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::{ChildStdin, Command, Stdio},
};

use sqlx::{ConnectOptions, Connection, Executor, postgres::PgConnectOptions};
use uuid::Uuid;

/// A PostgreSQL server and a Redis server.
pub struct Services {
    /// The URL without a database name.
    postgres: String,
    pub redis: String,
    /// The folder of their files, if they belong to this test alone.
    folder: Option<PathBuf>,
    /// Closing this pipe stops the services, so they stop even if the test is killed.
    lifeline: Option<ChildStdin>,
}

/// Runs `scripts/services` and returns its stdout.
pub fn script(arguments: &[&str]) -> String {
    run(arguments, Stdio::null()).0
}

/// Like [`script`], with this stdin. If it is a pipe, returns the open writing end.
fn run(arguments: &[&str], input: Stdio) -> (String, Option<ChildStdin>) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services");
    let mut command = Command::new(script);
    command.args(arguments).stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let input = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    (String::from_utf8(output.stdout).unwrap(), input)
}

fn split_url(url: &str) -> String {
    url.rsplit_once('/').expect("the URL must name a database").0.to_owned()
}

impl Services {
    /// Returns the services that all tests share. A test must not stop them.
    pub fn shared() -> Self {
        let url = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/test"));
        Self { postgres: split_url(&url("DATABASE_URL")), redis: url("REDIS_URL"), folder: None, lifeline: None }
    }

    /// Starts services for this test alone, which it may stop and start.
    pub fn private() -> Self {
        let folder = std::env::temp_dir().join(format!("sealwire-test-{}", Uuid::new_v4()));
        let (lines, lifeline) = run(&["hold", folder.to_str().unwrap()], Stdio::piped());
        let urls: HashMap<_, _> = lines.lines().filter_map(|line| line.split_once('=')).collect();
        let (postgres, redis) = (split_url(urls["DATABASE_URL"]), urls["REDIS_URL"].to_owned());
        Self { postgres, redis, folder: Some(folder), lifeline }
    }

    /// Runs `start`, `stop`, `kill` or `restart` on `postgres` or `redis`, or `pause` or `resume` on `redis`.
    pub async fn control(&self, action: &'static str, service: &'static str) {
        let folder = self.folder.clone().expect("only private services can be controlled");
        let run = move || script(&[action, service, folder.to_str().unwrap()]);
        tokio::task::spawn_blocking(run).await.unwrap();
    }

    /// Creates an empty database and returns its URL.
    pub async fn database(&self) -> String {
        let name = format!("test_{}", Uuid::new_v4().simple());
        let admin: PgConnectOptions = format!("{}/postgres", self.postgres).parse().unwrap();
        let mut connection = admin.connect().await.unwrap();
        connection.execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
        connection.close().await.unwrap();
        format!("{}/{name}", self.postgres)
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            script(&["down", folder.to_str().unwrap()]);
            drop(self.lifeline.take());
        }
    }
}
