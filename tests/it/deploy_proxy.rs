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

/// Caddy with `deploy/Caddyfile`, and an authority of its own.
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

    /// Those who trust its authority alone.
    async fn trust(&self) -> TlsConnector {
        let file = self.folder.path().join("caddy/pki/authorities/local/root.crt");
        let root =
            eventually("the proxy has an authority", || async { CertificateDer::from_pem_file(&file).ok() }).await;
        let mut roots = RootCertStore::empty();
        roots.add(root).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }

    /// A client at this address of the loopback network. It is a listener whose connections go to the proxy in TLS, so that
    /// tests talk to it as to a server.
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
                    // How a connection ends is seen by its two ends.
                    let _ = copy_bidirectional(&mut inner, &mut outer).await;
                });
            }
        });
        let client = Client { address, mail: mail.to_owned(), tunnel };
        eventually("a node is behind the proxy", || async {
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

/// Two nodes that believe a proxy on this machine and put their mails into one folder.
async fn cluster(mail: &Path) -> Cluster {
    let mailer = format!("file:{}", mail.display());
    Cluster::start(&Services::shared(), 2, &[("SERVER__TRUSTED_PROXIES", "127.0.0.1"), ("MAILER__URL", &mailer)]).await
}

/// On which node a device's last connection is.
fn node_of(cluster: &Cluster, device: &str) -> usize {
    let last = |node| cluster.epochs(node, device).last().copied();
    usize::from(last(1) > last(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_sign_in_and_connect_through_the_proxy_and_both_nodes_get_some() {
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
    // Events find them, on whichever node they are.
    let added = devices[0].1.event("devices.changed").await;
    assert_eq!(added["added"][0], devices[1].0.device.as_str());
    // Operators' paths are not for clients.
    for path in ["/readyz", "/metrics", "/status", "/"] {
        assert_eq!(call(&client, Method::GET, path, None, None).await.0, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_knows_the_client_s_address_and_not_the_one_that_the_client_claims() {
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
async fn a_node_that_goes_is_left_out_and_one_that_comes_back_is_used_again() {
    let mail = tempfile::tempdir().unwrap();
    let mut cluster = cluster(mail.path()).await;
    let proxy = Proxy::start(&cluster.nodes);
    let client = proxy.client([127, 0, 0, 1], mail.path()).await;
    let person = sign_in(&client, "ada@example.org").await;
    let socket = Socket::connect(&client, &person.token, Codec::Json).await;
    let gone = node_of(&cluster, &person.device);
    assert!(cluster.nodes[gone].terminate().await.success());
    assert_eq!(socket.closed().await, 4000, "the proxy passes on why");
    // At once, since a connection that is refused goes to the other.
    let _back = Socket::connect(&client, &person.token, Codec::Json).await;
    assert_eq!(node_of(&cluster, &person.device), 1 - gone);
    cluster.nodes[gone].restart().await;
    eventually("the node that came back is used", || async {
        let person = sign_in(&client, "bob@example.org").await;
        let socket = Socket::try_connect(&client, &person.token, Codec::Json).await?;
        let used = node_of(&cluster, &person.device) == gone;
        socket.request("devices.revoke", serde_json::json!({ "device_id": person.device })).await;
        used.then_some(())
    })
    .await;
}
