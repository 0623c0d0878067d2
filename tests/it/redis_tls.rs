//! The bus over TLS.

use std::{path::Path, process::Command, sync::Arc};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use crate::support::{ServerProcess, Services, eventually, http::call, services::script};

/// Creates a self-signed certificate for 127.0.0.1, and its key.
pub fn certificate(folder: &Path) -> (std::path::PathBuf, std::path::PathBuf) {
    script(&["need", "openssl"]);
    let (certificate, key) = (folder.join("redis.crt"), folder.join("redis.key"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-out"])
        .args([certificate.as_os_str(), "-keyout".as_ref(), key.as_os_str()])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (certificate, key)
}

/// Terminates TLS in front of a server at this address, on the returned port.
pub async fn terminate_tls(certificate: &Path, key: &Path, server: String) -> u16 {
    let certificates = vec![CertificateDer::from_pem_file(certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, server) = (acceptor.clone(), server.clone());
            tokio::spawn(async move {
                // A client that does not trust the certificate disconnects.
                let Ok(mut client) = acceptor.accept(stream).await else { return };
                let mut server = TcpStream::connect(server).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_reached_over_tls_if_its_certificate_is_trusted() {
    let services = Services::shared();
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = certificate(folder.path());
    let redis = services.redis.trim_start_matches("redis://").trim_end_matches('/').to_owned();
    let url = format!("rediss://127.0.0.1:{}", terminate_tls(&certificate, &key, redis).await);
    let trusting = ServerProcess::start(&[("BUS__URL", &url), ("SSL_CERT_FILE", certificate.to_str().unwrap())]).await;
    let doubting = ServerProcess::start(&[("BUS__URL", &url)]).await;
    let status =
        |server| async move { call(server, reqwest::Method::GET, "/readyz", None, None).await.1["status"].clone() };
    eventually("the bus is up", || async { (status(&trusting).await == "ready").then_some(()) }).await;
    eventually("the other server logs why its bus is down", || async {
        let log = std::fs::read_to_string(doubting.path("server.log")).unwrap();
        log.lines().any(|line| line.contains("the bus is down") && line.contains("certificate")).then_some(())
    })
    .await;
    assert_eq!(status(&doubting).await, "degraded");
}
