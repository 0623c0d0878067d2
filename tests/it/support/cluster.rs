//! Nodes that share one PostgreSQL database and one Redis, and transactions that block them.

use serde_json::Value;
use sqlx::{ConnectOptions, Executor, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

use super::{Codec, Person, ServerProcess, Services, Settings, Socket, eventually, http::call, sign_in};

/// Server processes that share one database and one Redis.
pub struct Cluster {
    pub nodes: Vec<ServerProcess>,
    /// The URL of the shared database.
    pub database: String,
}

impl Cluster {
    /// Starts nodes concurrently on a new database.
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

    /// Opens a connection to the database that does not belong to any node.
    pub async fn sql(&self) -> PgConnection {
        self.database.parse::<PgConnectOptions>().unwrap().connect().await.unwrap()
    }

    /// Creates two devices of one user, the first connected to the first node, the second to the second.
    pub async fn two_devices(&self, email: &str) -> [(Person, Socket); 2] {
        let mut devices = Vec::new();
        for node in &self.nodes[..2] {
            let person = sign_in(node, email).await;
            let socket = Socket::connect(node, &person.token, Codec::Json).await;
            devices.push((person, socket));
        }
        devices.try_into().ok().unwrap()
    }

    /// Waits until every node reports this status: `ready` or `degraded`.
    pub async fn wait_for_status(&self, status: &str) {
        for node in &self.nodes {
            eventually(status, || async {
                let (_, body) = call(node, reqwest::Method::GET, "/readyz", None, None).await;
                (body["status"] == status).then_some(())
            })
            .await;
        }
    }

    /// Returns the epochs of the connections that a node opened for a device, oldest first, read from the node's log.
    pub fn epochs(&self, node: usize, device: &str) -> Vec<i64> {
        let log = std::fs::read_to_string(self.nodes[node].path("server.log")).unwrap();
        let lines = log.lines().filter(|line| line.contains("socket opened") && line.contains(device));
        let entries = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
        entries.map(|entry| entry["fields"]["epoch"].as_i64().unwrap()).collect()
    }
}

/// An open transaction that holds row locks, so that other statements on these rows wait.
pub struct RowLock {
    holding: PgConnection,
    watching: PgConnection,
}

impl RowLock {
    /// Locks the row that the statement selects by this id.
    pub async fn lock(cluster: &Cluster, statement: &'static str, id: &str) -> Self {
        let (mut holding, watching) = (cluster.sql().await, cluster.sql().await);
        holding.execute("BEGIN").await.unwrap();
        let locked = sqlx::query(statement).bind(Uuid::parse_str(id).unwrap()).execute(&mut holding).await.unwrap();
        assert_eq!(locked.rows_affected(), 1);
        Self { holding, watching }
    }

    /// Locks the table of requests for approvals, so that nobody can read it either.
    pub async fn lock_approvals(cluster: &Cluster) -> Self {
        Self::lock_table(cluster, "BEGIN; LOCK TABLE approvals IN ACCESS EXCLUSIVE MODE").await
    }

    /// Locks the table of sessions, so that no token can be looked up.
    pub async fn lock_sessions(cluster: &Cluster) -> Self {
        Self::lock_table(cluster, "BEGIN; LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE").await
    }

    async fn lock_table(cluster: &Cluster, statements: &'static str) -> Self {
        let (mut holding, watching) = (cluster.sql().await, cluster.sql().await);
        holding.execute(statements).await.unwrap();
        Self { holding, watching }
    }

    /// Locks an address, given without its tag, as a request for a code does.
    pub async fn lock_address(cluster: &Cluster, email: &str) -> Self {
        let (mut holding, watching) = (cluster.sql().await, cluster.sql().await);
        holding.execute("BEGIN").await.unwrap();
        let lock = sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))").bind(email.to_owned());
        lock.execute(&mut holding).await.unwrap();
        Self { holding, watching }
    }

    /// Returns how many statements in the database wait for locks.
    pub async fn waiters(&mut self) -> i64 {
        let (waiting,): (i64,) = sqlx::query_as(
            "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .fetch_one(&mut self.watching)
        .await
        .unwrap();
        waiting
    }

    /// Waits until exactly this many statements in the database wait for locks.
    pub async fn wait_for_waiters(&mut self, statements: i64) {
        let lock = tokio::sync::Mutex::new(self);
        eventually("the expected number of statements wait for locks", || async {
            (lock.lock().await.waiters().await == statements).then_some(())
        })
        .await;
    }

    /// Terminates the connections whose statements wait for locks, as an operator or a database restart would.
    pub async fn terminate_waiters(&mut self) {
        let cut = self.watching.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        );
        cut.await.unwrap();
    }

    /// Releases the locks.
    pub async fn release(mut self) {
        self.holding.execute("ROLLBACK").await.unwrap();
    }
}
