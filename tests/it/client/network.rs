//! A TCP proxy that behaves like bad networks: it cuts connections, forgets them while they stay open, loses what one
//! side sends, and is slow.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
    task::JoinHandle,
};

/// What happens to what one side sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It arrives.
    Pass,
    /// It is lost.
    Lose,
    /// It arrives this much later.
    Late(Duration),
}

#[derive(Clone, Copy)]
struct Weather {
    to_server: Flow,
    to_client: Flow,
    /// Connections with a smaller number are closed.
    cut_before: u64,
    /// Connections with a smaller number stay open, and nothing passes.
    forgotten_before: u64,
    /// On connections with a smaller number, what the server sends is lost.
    deaf_before: u64,
    /// The number of the next connection.
    next: u64,
}

/// A network between clients and a server.
pub struct Network {
    pub address: SocketAddr,
    weather: watch::Sender<Weather>,
    task: JoinHandle<()>,
}

impl Network {
    pub async fn start(server: SocketAddr) -> Self {
        Self::before(vec![server]).await
    }

    /// A load balancer before servers: each connection goes to the next one that accepts it.
    pub async fn before(servers: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let calm = Weather {
            to_server: Flow::Pass,
            to_client: Flow::Pass,
            cut_before: 0,
            forgotten_before: 0,
            deaf_before: 0,
            next: 0,
        };
        let weather = watch::Sender::new(calm);
        let sender = weather.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mut number = 0;
                sender.send_modify(|weather| {
                    number = weather.next;
                    weather.next += 1;
                });
                tokio::spawn(carry(client, servers.clone(), number, sender.subscribe()));
            }
        });
        Self { address, weather, task }
    }

    /// Changes what happens to what clients send.
    pub fn to_server(&self, flow: Flow) {
        self.weather.send_modify(|weather| weather.to_server = flow);
    }

    /// Changes what happens to what the server sends.
    pub fn to_client(&self, flow: Flow) {
        self.weather.send_modify(|weather| weather.to_client = flow);
    }

    /// Closes all connections.
    pub fn cut(&self) {
        self.weather.send_modify(|weather| weather.cut_before = weather.next);
    }

    /// Forgets all connections, as a router does after a restart: they stay open, but nothing passes any more.
    pub fn forget(&self) {
        self.weather.send_modify(|weather| weather.forgotten_before = weather.next);
    }

    /// On the connections that are open, what the server sends is lost from now on.
    pub fn deafen(&self) {
        self.weather.send_modify(|weather| weather.deaf_before = weather.next);
    }

    /// The number of connections so far.
    pub fn connections(&self) -> u64 {
        self.weather.borrow().next
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(client: TcpStream, mut servers: Vec<SocketAddr>, number: u64, weather: watch::Receiver<Weather>) {
    let count = servers.len();
    servers.rotate_left(usize::try_from(number).unwrap() % count);
    // Connects to the first address that accepts.
    let Ok(server) = TcpStream::connect(&servers[..]).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let mut cut = weather.clone();
    tokio::select! {
        _ = cut.wait_for(|weather| number < weather.cut_before) => {}
        _ = copy(from_client, to_server, number, weather.clone(), |weather| weather.to_server) => {}
        _ = copy(from_server, to_client, number, weather, |weather| {
            if number < weather.deaf_before { Flow::Lose } else { weather.to_client }
        }) => {}
    }
}

async fn copy(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    number: u64,
    mut weather: watch::Receiver<Weather>,
    flow: impl Fn(&Weather) -> Flow,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        // A forgotten connection stays so.
        let _ = weather.wait_for(|weather| number >= weather.forgotten_before).await;
        if length == 0 {
            return Ok(());
        }
        let flow = flow(&weather.borrow());
        match flow {
            Flow::Pass => to.write_all(&buffer[..length]).await?,
            Flow::Lose => {}
            Flow::Late(delay) => {
                tokio::time::sleep(delay).await;
                to.write_all(&buffer[..length]).await?;
            }
        }
    }
}
