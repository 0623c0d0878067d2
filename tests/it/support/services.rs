//! PostgreSQL and Redis for tests.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::{ChildStdin, Command, Stdio},
};

use sqlx::{ConnectOptions, Connection, Executor, postgres::PgConnectOptions};
use uuid::Uuid;

/// A PostgreSQL and a Redis.
pub struct Services {
    /// Without a database's name.
    postgres: String,
    pub redis: String,
    /// Where they run, if they are this test's own.
    folder: Option<PathBuf>,
    /// When this is closed they stop, even if the test is killed.
    lifeline: Option<ChildStdin>,
}

/// Runs `scripts/services` and gives what it printed.
pub fn script(arguments: &[&str]) -> String {
    run(arguments, Stdio::null()).0
}

/// The same with an input, whose other end it gives back open if it is a pipe.
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
    url.rsplit_once('/').expect("a URL with a database").0.to_owned()
}

impl Services {
    /// Those that all tests share. Nothing may be stopped in them.
    pub fn shared() -> Self {
        let url = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/test"));
        Self { postgres: split_url(&url("DATABASE_URL")), redis: url("REDIS_URL"), folder: None, lifeline: None }
    }

    /// The test's own, to be stopped and started at will.
    pub fn private() -> Self {
        let folder = std::env::temp_dir().join(format!("sealwire-test-{}", Uuid::new_v4()));
        let (lines, lifeline) = run(&["hold", folder.to_str().unwrap()], Stdio::piped());
        let urls: HashMap<_, _> = lines.lines().filter_map(|line| line.split_once('=')).collect();
        let (postgres, redis) = (split_url(urls["DATABASE_URL"]), urls["REDIS_URL"].to_owned());
        Self { postgres, redis, folder: Some(folder), lifeline }
    }

    /// `start`, `stop`, `kill` or `restart` of `postgres` or `redis`; `pause` or `resume` of `redis`.
    pub async fn control(&self, action: &'static str, service: &'static str) {
        let folder = self.folder.clone().expect("a test may only stop its own services");
        let run = move || script(&[action, service, folder.to_str().unwrap()]);
        tokio::task::spawn_blocking(run).await.unwrap();
    }

    /// Makes an empty database and gives its URL.
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
