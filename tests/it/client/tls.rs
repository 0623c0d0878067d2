//! `https` and `wss`.

use std::sync::Arc;

use sealwire_client::{
    HttpError, Server as Library,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, pem::PemObject},
    },
};

use super::{Device, code, session};
use crate::{
    redis_tls::{certificate, terminate_tls},
    support::{Server, TestApp},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_reached_over_tls_if_its_certificate_is_trusted() {
    let app = TestApp::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = certificate(folder.path());
    let url = format!("https://127.0.0.1:{}", terminate_tls(&certificate, &key, app.address().to_string()).await);

    // The system does not trust it.
    let error = Library::new(&url).unwrap().request_code("alice@example.org").await.unwrap_err();
    assert!(matches!(&error, HttpError::Connect { error, .. } if error.to_string().contains("certificate")), "{error}");

    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&certificate).unwrap()).unwrap();
    let provider = Arc::new(sealwire_client::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let server = Library::with_tls(&url, config).unwrap();
    let (challenge, code) = code(&app, "alice@example.org").await;
    let device = Device::start(&server, session(server.sign_in(&challenge, &code).await.unwrap())).await;
    assert_eq!(device.client.devices().await.unwrap().len(), 1);
}
