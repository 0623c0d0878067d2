//! The two listeners of a node: that of its clients, and the operator's.

use std::{io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use actix_server::{Server, ServerHandle};
use actix_web::{App, web};
use futures_util::{
    FutureExt,
    future::{Fuse, FusedFuture},
};
use sealwire_protocol::limits::MAX_FRAME_BYTES;
use tokio::{runtime::Handle, sync::Semaphore};

use super::{AppError, NodeParts, bounds::Bounds, runtimes::cores};
use crate::{
    config::Config,
    edge::Origins,
    http::{
        self, Http,
        admin::{self, Access, Admin, Levels},
    },
    service::Service,
    shutdown::DrainTime,
    socket::{
        Budget, Node, open,
        transport::{self, Tuning},
    },
};

/// Connections that open at once: as many as one transaction of the store takes.
const OPENING: usize = 256;
/// How long a write may stand still after its actor has gone. Longer than the actor's own patience with a closing peer.
const WRITE_STALL: Duration = Duration::from_secs(35);

/// A bound listener. It serves once it is driven.
pub struct Listener {
    port: u16,
    server: Fuse<Server>,
    handle: ServerHandle,
}

impl Listener {
    fn new(port: u16, server: Server) -> Self {
        Self { port, handle: server.handle(), server: server.fuse() }
    }

    /// The port it listens on: the configured one, or the free one that was taken for port 0.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops it from elsewhere.
    pub fn handle(&self) -> ServerHandle {
        self.handle.clone()
    }

    /// Serves until it is stopped or fails.
    pub fn server(&mut self) -> Pin<&mut Fuse<Server>> {
        Pin::new(&mut self.server)
    }

    /// Serves until the end, if that has not come yet.
    pub async fn finish(&mut self) {
        if !self.server.is_terminated() {
            // However it ends, the node is ending with it.
            let _ = self.server().await;
        }
    }
}

/// Binds `server.bind`, for HTTP and sockets.
///
/// # Errors
/// [`AppError::Listen`] if the port cannot be had.
pub fn listen_to_clients(
    config: &Config,
    service: &Arc<Service>,
    node: &NodeParts,
    bounds: &Bounds,
    runtime: &Handle,
) -> Result<Listener, AppError> {
    let sockets = web::Data::new(sockets(config, service, node, bounds));
    let http = web::Data::new(http(config, service, node));
    let app = move || {
        let socket = web::resource("/v1/socket").route(web::get().to(open)).default_service(web::to(http::not_found));
        App::new().app_data(sockets.clone()).service(socket).configure(http::routes(http.clone()))
    };
    let tuning = Tuning {
        max_message: MAX_FRAME_BYTES as u64,
        inbound: bounds.inbound.clone(),
        admission: bounds.admission.clone(),
        connections: bounds.sockets.clone(),
        stall: WRITE_STALL,
    };
    let workers = if config.server.workers == 0 { cores() } else { config.server.workers };
    let time = DrainTime::from_secs(config.server.drain_s);
    listen("server.bind", config.server.bind, runtime, |listener| {
        let server = Server::build().workers(workers).disable_signals().shutdown_timeout(time.http_secs());
        Ok(transport::listen(server, listener, app, tuning)?.run())
    })
}

/// What the WebSocket handlers share.
fn sockets(config: &Config, service: &Arc<Service>, node: &NodeParts, bounds: &Bounds) -> Node {
    Node {
        service: service.clone(),
        hub: node.hub.clone(),
        runtime: node.tasks.work().clone(),
        budget: bounds.outbound.clone(),
        opening_permits: Semaphore::new(OPENING),
        outbox_bytes: config.server.outbox_bytes,
        requests_per_second: config.limits.requests_per_connection_second,
        networks: bounds.networks.clone(),
        trusted_proxies: config.server.trusted_proxies.clone(),
        origins: Origins::new(&config.server.allowed_origins),
        metrics: node.metrics.clone(),
    }
}

/// What the HTTP handlers share.
fn http(config: &Config, service: &Arc<Service>, node: &NodeParts) -> Http {
    let hub = node.hub.clone();
    Http {
        service: service.clone(),
        runtime: node.tasks.work().clone(),
        trusted_proxies: config.server.trusted_proxies.clone(),
        origins: Origins::new(&config.server.allowed_origins),
        metrics: node.metrics.clone(),
        is_draining: Box::new(move || hub.is_draining()),
    }
}

/// Binds `admin.bind`, for status and metrics. It has a thread of its own, so it answers whatever the clients do.
///
/// # Errors
/// [`AppError::Listen`] if the port cannot be had.
pub fn listen_to_operator(
    config: &Config,
    service: &Arc<Service>,
    node: &NodeParts,
    bounds: &Bounds,
    runtime: &Handle,
) -> Result<Listener, AppError> {
    let access = Access::new(config.admin.token.reveal(), &config.admin.allowed_hosts);
    let levels = levels(node, bounds);
    let admin =
        Admin::start(service.clone(), runtime.clone(), &node.tasks, node.metrics.clone(), levels, access, node.id);
    listen("admin.bind", config.admin.bind, runtime, |listener| admin::listen(listener, admin))
}

/// Reads what the operator's listener shows of the node.
fn levels(node: &NodeParts, bounds: &Bounds) -> Box<dyn Fn() -> Levels + Send + Sync> {
    let (hub, work) = (node.hub.clone(), node.tasks.work().clone());
    let (sockets, http) = (bounds.sockets.clone(), bounds.admission.http.clone());
    let (inbound, outbound) = (bounds.inbound.clone(), bounds.outbound.clone());
    let level = |budget: &Budget| (budget.in_use(), budget.limit());
    Box::new(move || Levels {
        connected: hub.connected(),
        sockets: level(&sockets),
        http: level(&http),
        work: work.unfinished(),
        inbound: level(&inbound),
        outbound: level(&outbound),
        is_draining: hub.is_draining(),
    })
}

/// Binds an address and makes a server of it, on a runtime that outlives it.
fn listen(
    setting: &'static str,
    bind: SocketAddr,
    runtime: &Handle,
    serve: impl FnOnce(std::net::TcpListener) -> io::Result<Server>,
) -> Result<Listener, AppError> {
    let _entered = runtime.enter();
    let listened = transport::bind(bind).and_then(|listener| {
        let port = listener.local_addr()?.port();
        Ok(Listener::new(port, serve(listener)?))
    });
    listened.map_err(|source| AppError::Listen { setting, bind, source })
}
