//! The proxy's configuration, run for real: TLS in front of two nodes.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::Arc,
};

use reqwest::{Method, StatusCode};
use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket},
    task::JoinHandle,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};
use tokio_tungstenite::{connect_async, tungstenite::client::IntoClientRequest};

use crate::support::{
    Cluster, Codec, Server, Services, Socket, eventually,
    http::call,
    server::{ReservedPort, child_command},
    services::script,
    sign_in,
};

/// Caddy with `deploy/Caddyfile` and its own certificate authority.
struct Proxy {
    process: Child,
    address: SocketAddr,
    folder: TempDir,
    _ports: [ReservedPort; 2],
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Proxy {
    fn start(nodes: &[impl Server]) -> Self {
        script(&["need", "caddy"]);
        let folder = tempfile::tempdir().unwrap();
        let ports = [ReservedPort::new(), ReservedPort::new()];
        let [plain, address] = ports.each_ref().map(|port| port.address);
        let upstreams: Vec<_> = nodes.iter().map(|node| node.address().to_string()).collect();
        let log = std::fs::File::create(folder.path().join("caddy.log")).unwrap();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/Caddyfile");
        let process = child_command("caddy")
            .args(["run", "--adapter", "caddyfile", "--config"])
            .arg(file)
            .env("HOME", folder.path())
            .env("XDG_DATA_HOME", folder.path())
            .env("XDG_CONFIG_HOME", folder.path())
            .env("BIND", "127.0.0.1")
            .env("HTTP_PORT", plain.port().to_string())
            .env("HTTPS_PORT", address.port().to_string())
            .env("SITE_ADDRESS", "127.0.0.1")
            .env("NODES", upstreams.join(" "))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { process, address, folder, _ports: ports }
    }

    /// Returns a connector that trusts only the proxy's certificate authority.
    async fn trust(&self) -> TlsConnector {
        let file = self.folder.path().join("caddy/pki/authorities/local/root.crt");
        let root =
            eventually("the proxy has created its authority", || async { CertificateDer::from_pem_file(&file).ok() })
                .await;
        let mut roots = RootCertStore::empty();
        roots.add(root).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }

    /// Starts a client with this loopback address. It is a listener that forwards its connections to the proxy over
    /// TLS, so that tests can use it like a server.
    async fn client(&self, from: [u8; 4], mail: &Path) -> Client {
        let (connector, proxy) = (self.trust().await, self.address);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tunnel = tokio::spawn(async move {
            loop {
                let (mut inner, _) = listener.accept().await.unwrap();
                let connector = connector.clone();
                tokio::spawn(async move {
                    let socket = TcpSocket::new_v4().unwrap();
                    socket.bind(SocketAddr::from((from, 0))).unwrap();
                    let Ok(outer) = socket.connect(proxy).await else { return };
                    let name = ServerName::from(IpAddr::from([127, 0, 0, 1]));
                    let Ok(mut outer) = connector.connect(name, outer).await else { return };
                    // Both ends of the connection see how it ends.
                    let _ = copy_bidirectional(&mut inner, &mut outer).await;
                });
            }
        });
        let client = Client { address, mail: mail.to_owned(), tunnel };
        eventually("the proxy reaches a node", || async {
            let url = format!("http://{}/v1/auth/session", client.address);
            (reqwest::get(url).await.ok()?.status() == StatusCode::UNAUTHORIZED).then_some(())
        })
        .await;
        client
    }
}

struct Client {
    address: SocketAddr,
    mail: PathBuf,
    tunnel: JoinHandle<()>,
}

impl Server for Client {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn mail(&self) -> &Path {
        &self.mail
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.tunnel.abort();
    }
}

/// Starts two nodes that trust a proxy on this machine and write their mails into one folder.
async fn cluster(mail: &Path) -> Cluster {
    let mailer = format!("file:{}", mail.display());
    Cluster::start(&Services::shared(), 2, &[("SERVER__TRUSTED_PROXIES", "127.0.0.1"), ("MAILER__URL", &mailer)]).await
}

/// Returns the node of a device's last connection.
fn node_of(cluster: &Cluster, device: &str) -> usize {
    let last = |node| cluster.epochs(node, device).last().copied();
    usize::from(last(1) > last(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_sign_in_and_connect_to_both_nodes_through_the_proxy() {
    let mail = tempfile::tempdir().unwrap();
    let cluster = cluster(mail.path()).await;
    let proxy = Proxy::start(&cluster.nodes);
    let client = proxy.client([127, 0, 0, 1], mail.path()).await;
    let mut devices = Vec::new();
    for _ in 0..4 {
        let person = sign_in(&client, "ada@example.org").await;
        let socket = Socket::connect(&client, &person.token, Codec::MsgPack).await;
        assert_eq!(socket.welcome["device_id"], person.device.as_str());
        devices.push((person, socket));
    }
    let nodes: Vec<usize> = devices.iter().map(|(person, _)| node_of(&cluster, &person.device)).collect();
    assert!(nodes.contains(&0) && nodes.contains(&1), "all are on one node: {nodes:?}");
    // Events reach the devices on either node.
    let added = devices[0].1.event("devices.changed").await;
    assert_eq!(added["added"][0], devices[1].0.device.as_str());
    // The proxy does not serve the operator's paths.
    for path in ["/readyz", "/metrics", "/status", "/"] {
        assert_eq!(call(&client, Method::GET, path, None, None).await.0, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_the_proxy_a_node_sees_the_real_address_of_a_client_and_not_a_forged_one() {
    let mail = tempfile::tempdir().unwrap();
    let cluster = cluster(mail.path()).await;
    let proxy = Proxy::start(&cluster.nodes);
    let client = proxy.client([127, 0, 7, 9], mail.path()).await;
    let person = sign_in(&client, "ada@example.org").await;
    let mut request = format!("ws://{}/v1/socket", client.address).into_client_request().unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {}", person.token).parse().unwrap());
    request.headers_mut().insert("x-forwarded-for", "203.0.113.5".parse().unwrap());
    let _socket = connect_async(request).await.unwrap();
    let opened = eventually("a socket was opened", || async {
        let logs = cluster.nodes.iter().map(|node| std::fs::read_to_string(node.path("server.log")).unwrap());
        logs.flat_map(|log| log.lines().map(str::to_owned).collect::<Vec<_>>())
            .find(|line| line.contains("socket opened"))
    })
    .await;
    let opened: serde_json::Value = serde_json::from_str(&opened).unwrap();
    assert_eq!(opened["fields"]["client"], "127.0.7.9", "{opened}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_skips_a_stopped_node_and_uses_it_again_after_its_restart() {
    let mail = tempfile::tempdir().unwrap();
    let mut cluster = cluster(mail.path()).await;
    let proxy = Proxy::start(&cluster.nodes);
    let client = proxy.client([127, 0, 0, 1], mail.path()).await;
    let person = sign_in(&client, "ada@example.org").await;
    let socket = Socket::connect(&client, &person.token, Codec::Json).await;
    let stopped = node_of(&cluster, &person.device);
    assert!(cluster.nodes[stopped].terminate().await.success());
    assert_eq!(socket.closed().await, 4000, "the proxy forwards the close code");
    // This works at once, because the proxy tries the other node if one refuses a connection.
    let _reconnected = Socket::connect(&client, &person.token, Codec::Json).await;
    assert_eq!(node_of(&cluster, &person.device), 1 - stopped);
    cluster.nodes[stopped].restart().await;
    eventually("the restarted node is used", || async {
        let person = sign_in(&client, "bob@example.org").await;
        let socket = Socket::try_connect(&client, &person.token, Codec::Json).await?;
        let used = node_of(&cluster, &person.device) == stopped;
        socket.request("devices.revoke", serde_json::json!({ "device_id": person.device })).await;
        used.then_some(())
    })
    .await;
}
