//! PostgreSQL and Redis for tests.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
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
}

/// Runs `scripts/services` and gives what it printed.
pub fn script(arguments: &[&str]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services");
    let output = Command::new(script).args(arguments).stdin(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn split_url(url: &str) -> String {
    url.rsplit_once('/').expect("a URL with a database").0.to_owned()
}

impl Services {
    /// Those that all tests share. Nothing may be stopped in them.
    pub fn shared() -> Self {
        let url = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/test"));
        Self { postgres: split_url(&url("DATABASE_URL")), redis: url("REDIS_URL"), folder: None }
    }

    /// The test's own, to be stopped and started at will.
    pub fn private() -> Self {
        let folder = std::env::temp_dir().join(format!("sealwire-test-{}", Uuid::new_v4()));
        let lines = script(&["up", folder.to_str().unwrap()]);
        let urls: HashMap<_, _> = lines.lines().filter_map(|line| line.split_once('=')).collect();
        Self { postgres: split_url(urls["DATABASE_URL"]), redis: urls["REDIS_URL"].to_owned(), folder: Some(folder) }
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
        }
    }
}
