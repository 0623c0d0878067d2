//! Push services on this machine, which accept every push and record when it arrived. They have a thread of their own, so that
//! other work of this process does not delay them.

use std::{
    collections::HashMap,
    io,
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    runtime::Builder,
    time::sleep,
};
use uuid::Uuid;

use crate::Result;

/// The pushes that arrived: when, by device.
pub type Arrivals = HashMap<Uuid, Vec<SystemTime>>;

/// The record of push services, which run until the process ends.
pub struct PushServices {
    /// The ports on 127.0.0.1. An endpoint is the root path followed by the id of its device.
    pub ports: Vec<u16>,
    arrivals: Arc<Mutex<Arrivals>>,
}

impl PushServices {
    /// Starts `count` services, which take `latency` to answer.
    pub fn start(count: usize, latency: Duration) -> Result<Self> {
        let mut listeners = Vec::new();
        for _ in 0..count {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            listeners.push(listener);
        }
        let ports = listeners.iter().map(|one| Ok(one.local_addr()?.port())).collect::<io::Result<_>>()?;
        let arrivals = Arc::<Mutex<Arrivals>>::default();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let accepting = {
            let _entered = runtime.enter();
            let listeners = listeners.into_iter().map(TcpListener::from_std).collect::<io::Result<Vec<_>>>()?;
            join_all(listeners.into_iter().map(|listener| accept(listener, latency, Arc::clone(&arrivals))))
        };
        std::thread::spawn(move || runtime.block_on(accepting));
        Ok(Self { ports, arrivals })
    }

    /// The pushes that arrived so far.
    pub fn arrivals(&self) -> MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves all connections until accepting one fails.
async fn accept(listener: TcpListener, latency: Duration, arrivals: Arc<Mutex<Arrivals>>) {
    while let Ok((stream, _)) = listener.accept().await {
        // An error ends the connection; the server repeats the push, which shows in the counts.
        tokio::spawn(serve(stream, latency, Arc::clone(&arrivals)));
    }
}

/// The time of day, to compare with times of the server, which is on the same machine.
#[expect(clippy::disallowed_methods, reason = "the server says by the time of day when it has committed")]
pub fn now() -> SystemTime {
    SystemTime::now()
}

async fn serve(stream: TcpStream, latency: Duration, arrivals: Arc<Mutex<Arrivals>>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let (mut line, mut body) = (String::new(), Vec::new());
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or_default();
        let device = Uuid::parse_str(path.trim_start_matches('/')).map_err(io::Error::other)?;
        let mut length = 0;
        loop {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end().split_once(':') {
                None => break,
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().map_err(io::Error::other)?;
                }
                Some(_) => {}
            }
        }
        body.resize(length, 0);
        stream.read_exact(&mut body).await?;
        let at = now();
        arrivals.lock().unwrap_or_else(PoisonError::into_inner).entry(device).or_default().push(at);
        sleep(latency).await;
        stream.write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n").await?;
    }
}
