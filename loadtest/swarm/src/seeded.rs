//! Starts a sealwire server on a fresh store.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::{Instant, sleep},
};

use crate::{Result, process::Server};

/// How long the server may take to become ready.
const READY_TIME: Duration = Duration::from_secs(30);

/// Seeds a fresh store with this many devices, writes the seed file to `tokens`, and starts a server on free ports.
pub async fn start_sealwire(
    binary: &Path,
    workers: usize,
    devices: usize,
    folder: &Path,
    tokens: &Path,
) -> Result<(Server, SocketAddr)> {
    let [public, admin] = free_addresses()?;
    let log = folder.join("sealwire.log");
    let command = || {
        let mut command = Command::new(binary);
        command
            .env("SEALWIRE__DATABASE__URL", format!("sqlite://{}/x.db", folder.display()))
            .env("SEALWIRE__SERVER__BIND", public.to_string())
            .env("SEALWIRE__SERVER__WORKERS", workers.to_string())
            .env("SEALWIRE__ADMIN__BIND", admin.to_string())
            .env("SEALWIRE__MAILER__URL", format!("file:{}/mail", folder.display()))
            // Seeded accounts are new, so all of them are strangers to each other, and would share a part of each mailbox.
            .env("SEALWIRE__MAILBOX__STRANGER_SHARE", "0")
            .envs(limits().map(|limit| (format!("SEALWIRE__LIMITS__{}", limit.to_uppercase()), "0")));
        command
    };
    eprintln!("sealwire: seeding {devices} devices");
    let seeded = command()
        .args(["seed", "--users", &devices.to_string()])
        .args(["--devices", "1", "--prekeys", "1", "--out"])
        .arg(tokens)
        .stdout(std::process::Stdio::null())
        .status()
        .await?;
    if !seeded.success() {
        return Err(format!("seeding failed: {seeded}").into());
    }
    let mut server = Server::start(command().arg("serve"), Some(&log))?;
    let deadline = Instant::now() + READY_TIME;
    while !is_ready(public).await {
        if server.pid().is_err() || Instant::now() > deadline {
            let said = std::fs::read_to_string(&log)?;
            return Err(format!("sealwire did not become ready; its log:\n{said}").into());
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok((server, public))
}

/// The names of all limits, to be turned off because a swarm exceeds them. Settings that end in `_s` are times.
fn limits() -> impl Iterator<Item = &'static str> {
    let section = include_str!("../../../config/default.toml").lines().skip_while(|line| *line != "[limits]").skip(1);
    let settings = section.take_while(|line| !line.starts_with('[')).filter(|line| !line.starts_with('#'));
    settings.filter_map(|line| Some(line.split_once('=')?.0.trim())).filter(|name| !name.ends_with("_s"))
}

/// Two loopback addresses with ports that were free a moment ago.
fn free_addresses() -> Result<[SocketAddr; 2]> {
    let [one, two] = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    Ok([one.local_addr()?, two.local_addr()?])
}

/// Whether `/readyz` answers 200.
async fn is_ready(address: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with(b"HTTP/1.1 200"))
    };
    ask.await.unwrap_or(false)
}
