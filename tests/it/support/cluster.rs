//! Nodes that share a PostgreSQL and a Redis, and somebody who gets in their way there.

use serde_json::Value;
use sqlx::{ConnectOptions, Executor, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

use super::{Codec, Person, ServerProcess, Services, Settings, Socket, eventually, http::call, sign_in};

/// Nodes, each a process, on one database and one Redis.
pub struct Cluster {
    pub nodes: Vec<ServerProcess>,
    /// The URL of their database.
    pub database: String,
}

impl Cluster {
    /// Starts nodes all at once on a new database.
    pub async fn start(services: &Services, nodes: usize, settings: Settings<'_>) -> Self {
        let database = services.database().await;
        let shared = [
            ("DATABASE__URL", database.as_str()),
            ("BUS__URL", services.redis.as_str()),
            ("AUTH__SECRET", "c2VhbHdpcmUtdGVzdC1zZWNyZXQtMzItYnl0ZXMtISE="),
        ];
        let settings: Vec<_> = settings.iter().copied().chain(shared).collect();
        let nodes = futures_util::future::join_all((0..nodes).map(|_| ServerProcess::start(&settings))).await;
        Self { nodes, database }
    }
    /// A connection to their database, of which they know nothing.
    pub async fn sql(&self) -> PgConnection {
        self.database.parse::<PgConnectOptions>().unwrap().connect().await.unwrap()
    }

    /// Two devices of one user, the first connected to the first node, the second to the second.
    pub async fn two_devices(&self, email: &str) -> [(Person, Socket); 2] {
        let mut devices = Vec::new();
        for node in &self.nodes[..2] {
            let person = sign_in(node, email).await;
            let socket = Socket::connect(node, &person.token, Codec::Json).await;
            devices.push((person, socket));
        }
        devices.try_into().ok().unwrap()
    }

    /// Waits until every node says that it is `ready`, or `degraded`.
    pub async fn all_are(&self, status: &str) {
        for node in &self.nodes {
            eventually(status, || async {
                let (_, body) = call(node, reqwest::Method::GET, "/readyz", None, None).await;
                (body["status"] == status).then_some(())
            })
            .await;
        }
    }

    /// The first node's or the second's record of connections that it opened for a device: their epochs, oldest first.
    pub fn epochs(&self, node: usize, device: &str) -> Vec<i64> {
        let log = std::fs::read_to_string(self.nodes[node].path("server.log")).unwrap();
        let lines = log.lines().filter(|line| line.contains("socket opened") && line.contains(device));
        let entries = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
        entries.map(|entry| entry["fields"]["epoch"].as_i64().unwrap()).collect()
    }
}

/// A foreign transaction that holds rows, so that whoever wants them has to wait.
pub struct Holder {
    holding: PgConnection,
    watching: PgConnection,
}

impl Holder {
    /// Takes the rows that a statement locks, given an id.
    pub async fn lock(cluster: &Cluster, statement: &'static str, id: &str) -> Self {
        let (mut holding, watching) = (cluster.sql().await, cluster.sql().await);
        holding.execute("BEGIN").await.unwrap();
        let locked = sqlx::query(statement).bind(Uuid::parse_str(id).unwrap()).execute(&mut holding).await.unwrap();
        assert_eq!(locked.rows_affected(), 1);
        Self { holding, watching }
    }

    /// Waits until so many statements wait for locks.
    pub async fn waited_for_by(&mut self, statements: i64) {
        let watching = tokio::sync::Mutex::new(&mut self.watching);
        eventually("the statements wait", || async {
            let (waiting,): (i64,) = sqlx::query_as(
                "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
            )
            .fetch_one(&mut **watching.lock().await)
            .await
            .unwrap();
            (waiting == statements).then_some(())
        })
        .await;
    }

    /// Ends the connections of those who wait, as an operator or a restart of the database would.
    pub async fn cut_off(&mut self) {
        let cut = self.watching.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        );
        cut.await.unwrap();
    }

    /// Lets them go on.
    pub async fn release(mut self) {
        self.holding.execute("ROLLBACK").await.unwrap();
    }
}
