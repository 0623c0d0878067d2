//! Devices of a seed file, and connections for load tests that read every answer.

use std::{collections::BTreeMap, future::Future, io, path::Path, time::Duration};

use futures_util::future::join_all;
use sealwire_protocol::ids::{DeviceId, UserId};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    Result,
    client::{Route, frame, take_texts, upgraded},
    hold::parse_url,
};

/// A line of a seed file.
#[derive(Clone, Deserialize)]
pub struct Seed {
    pub user_id: UserId,
    pub device_id: DeviceId,
    pub token: String,
}

/// Reads a seed file.
pub fn read_seeds(path: &Path) -> Result<Vec<Seed>> {
    let lines = std::fs::read_to_string(path)?;
    Ok(lines.lines().map(serde_json::from_str).collect::<std::result::Result<_, _>>()?)
}

/// The route from this process to the server of a `ws://` URL.
pub async fn route_to(url: &str) -> Result<Route> {
    let (address, path) = parse_url(url).await?;
    Ok(Route { address, path, part: 0 })
}

/// A device's connection.
pub struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    /// Opens the connection. If `welcome`, waits for the first frame.
    pub async fn open(route: &Route, token: &str, welcome: bool) -> io::Result<Self> {
        let mut connection = Self { stream: upgraded(route, Some(token)).await?, received: Vec::new() };
        while welcome && frame(&connection.received).is_none() {
            connection.receive().await?;
        }
        Ok(connection)
    }

    /// Waits until more is received. Cancelling it loses nothing.
    pub async fn receive(&mut self) -> io::Result<()> {
        self.received.reserve(64 * 1024);
        match self.stream.read_buf(&mut self.received).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Sends `bytes`, and clears it.
    pub async fn send(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        bytes.clear();
        Ok(())
    }

    /// Handles the complete frames that were received, like [`take_texts`].
    pub fn take(
        &mut self,
        answers: &mut Vec<u8>,
        each: impl FnMut(&[u8], &mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        let used = take_texts(&self.received, answers, each)?;
        self.received.drain(..used);
        Ok(())
    }
}

/// Runs the tasks of sockets concurrently, each for at most `longest`. Returns the number of failures by error text.
pub async fn side_by_side<Run>(runs: impl IntoIterator<Item = Run>, longest: Duration) -> Result<BTreeMap<String, u64>>
where
    Run: Future<Output = io::Result<()>> + 'static,
{
    let tasks = runs.into_iter().map(|run| tokio::task::spawn_local(timeout(longest, run)));
    let mut failures = BTreeMap::new();
    for end in join_all(tasks).await {
        if let Err(error) = end?.map_err(io::Error::from).flatten() {
            *failures.entry(format!("socket: {error}")).or_default() += 1;
        }
    }
    Ok(failures)
}
