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
struct Conditions {
    to_server: Flow,
    to_client: Flow,
    /// Connections with a smaller number are closed.
    cut_before: u64,
    /// Connections with a smaller number stay open, and nothing passes.
    forgotten_before: u64,
    /// On connections with a smaller number, what the server sends is lost.
    replies_lost_before: u64,
    /// The number of the next connection.
    next: u64,
}

/// A network between clients and a server.
pub struct Network {
    pub address: SocketAddr,
    conditions: watch::Sender<Conditions>,
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
        let good = Conditions {
            to_server: Flow::Pass,
            to_client: Flow::Pass,
            cut_before: 0,
            forgotten_before: 0,
            replies_lost_before: 0,
            next: 0,
        };
        let conditions = watch::Sender::new(good);
        let sender = conditions.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mut number = 0;
                sender.send_modify(|conditions| {
                    number = conditions.next;
                    conditions.next += 1;
                });
                tokio::spawn(carry(client, servers.clone(), number, sender.subscribe()));
            }
        });
        Self { address, conditions, task }
    }

    /// Changes what happens to what clients send.
    pub fn to_server(&self, flow: Flow) {
        self.conditions.send_modify(|conditions| conditions.to_server = flow);
    }

    /// Changes what happens to what the server sends.
    pub fn to_client(&self, flow: Flow) {
        self.conditions.send_modify(|conditions| conditions.to_client = flow);
    }

    /// Closes all connections.
    pub fn cut(&self) {
        self.conditions.send_modify(|conditions| conditions.cut_before = conditions.next);
    }

    /// Forgets all connections, as a router does after a restart: they stay open, but nothing passes any more.
    pub fn forget(&self) {
        self.conditions.send_modify(|conditions| conditions.forgotten_before = conditions.next);
    }

    /// On the connections that are open, what the server sends is lost from now on.
    pub fn lose_replies(&self) {
        self.conditions.send_modify(|conditions| conditions.replies_lost_before = conditions.next);
    }

    /// The number of connections so far.
    pub fn connections(&self) -> u64 {
        self.conditions.borrow().next
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(client: TcpStream, mut servers: Vec<SocketAddr>, number: u64, conditions: watch::Receiver<Conditions>) {
    let count = servers.len();
    servers.rotate_left(usize::try_from(number).unwrap() % count);
    // Connects to the first address that accepts.
    let Ok(server) = TcpStream::connect(&servers[..]).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let mut cut = conditions.clone();
    tokio::select! {
        _ = cut.wait_for(|conditions| number < conditions.cut_before) => {}
        _ = copy(from_client, to_server, number, conditions.clone(), |conditions| conditions.to_server) => {}
        _ = copy(from_server, to_client, number, conditions, |conditions| {
            if number < conditions.replies_lost_before { Flow::Lose } else { conditions.to_client }
        }) => {}
    }
}

async fn copy(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    number: u64,
    mut conditions: watch::Receiver<Conditions>,
    flow: impl Fn(&Conditions) -> Flow,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        // A forgotten connection stays so.
        let _ = conditions.wait_for(|conditions| number >= conditions.forgotten_before).await;
        if length == 0 {
            return Ok(());
        }
        let flow = flow(&conditions.borrow());
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
