//! A TCP proxy that can stop forwarding without closing connections, as when a machine freezes or a network drops
//! packets.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
    task::JoinHandle,
};

/// Forwards TCP connections to a server.
pub struct Proxy {
    pub address: SocketAddr,
    silent: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy in front of a server.
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (silent, is_silent) = watch::channel(false);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server, is_silent.clone()));
            }
        });
        Self { address, silent, task }
    }

    /// Stops forwarding. Connections are still accepted.
    pub fn stop_forwarding(&self) {
        self.silent.send_replace(true);
    }

    /// Forwards what was held back and everything after it.
    pub fn resume_forwarding(&self) {
        self.silent.send_replace(false);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(client: TcpStream, server: SocketAddr, mut silent: watch::Receiver<bool>) {
    if silent.wait_for(|silent| !silent).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::join!(copy(from_client, to_server, silent.clone()), copy(from_server, to_client, silent));
}

async fn copy(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, mut silent: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length) = from.read(&mut buffer).await {
        let speaks = silent.wait_for(|silent| !silent).await.is_ok();
        if length == 0 || !speaks || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
