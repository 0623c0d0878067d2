//! The two listeners of a node: one for clients, one for the operator.

use std::{io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use actix_server::{Server, ServerHandle};
use actix_web::{App, web};
use futures_util::{
    FutureExt,
    future::{Fuse, FusedFuture},
};
use sealwire_protocol::limits::MAX_FRAME_BYTES;
use tokio::{runtime::Handle, sync::Semaphore};

use super::{AppError, NodeContext, node_limits::NodeLimits, runtimes::cores};
use crate::{
    config::Config,
    edge::Origins,
    http::{
        self, Http,
        admin::{self, Access, Admin, NodeUsage},
    },
    service::Service,
    shutdown::DrainTime,
    socket::{
        Node, open,
        transport::{self, Tuning},
    },
};

/// Maximum number of WebSocket connections that are being opened at once: as many as the service registers in one
/// transaction.
const MAX_OPENING: usize = 256;
/// How long a write may make no progress after the connection's actor has stopped. Longer than the actor's own timeout
/// for a closing peer.
const WRITE_STALL: Duration = Duration::from_secs(35);

/// A bound listener. It accepts connections once [`Self::server`] is polled.
pub struct Listener {
    port: u16,
    server: Fuse<Server>,
    handle: ServerHandle,
}

impl Listener {
    fn new(port: u16, server: Server) -> Self {
        Self { port, handle: server.handle(), server: server.fuse() }
    }

    /// The bound port. If port 0 is configured, the operating system has chosen it.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns a handle that stops the listener.
    pub fn handle(&self) -> ServerHandle {
        self.handle.clone()
    }

    /// The future that serves until the listener is stopped or fails.
    pub fn server(&mut self) -> Pin<&mut Fuse<Server>> {
        Pin::new(&mut self.server)
    }

    /// Waits until the listener has stopped. Returns at once if it already has.
    pub async fn finish(&mut self) {
        if !self.server.is_terminated() {
            // The node is stopping anyway, so an error does not matter.
            let _ = self.server().await;
        }
    }
}

/// Binds `server.bind`, and returns the listener for clients, which serves HTTP and WebSocket.
///
/// # Errors
/// [`AppError::Listen`]
pub fn listen_to_clients(
    config: &Config,
    service: &Arc<Service>,
    node: &NodeContext,
    limits: &NodeLimits,
    runtime: &Handle,
) -> Result<Listener, AppError> {
    let origins = Origins::new(&config.server.allowed_origins);
    let sockets = web::Data::new(sockets(config, service, node, limits, origins.clone()));
    let http = web::Data::new(http(config, service, node, origins));
    let app = move || {
        let socket = web::resource("/v1/socket").route(web::get().to(open)).default_service(web::to(http::not_found));
        App::new().app_data(sockets.clone()).service(socket).configure(http::routes(http.clone()))
    };
    let tuning = Tuning {
        max_message: MAX_FRAME_BYTES as u64,
        inbound: limits.inbound.clone(),
        limiter: limits.limiter.clone(),
        connections: limits.sockets.clone(),
        stall: WRITE_STALL,
    };
    let workers = if config.server.workers == 0 { cores() } else { config.server.workers };
    let time = DrainTime::from_secs(config.server.drain_s);
    listen("server.bind", config.server.bind, runtime, |listener| {
        let server = Server::build().workers(workers).disable_signals().shutdown_timeout(time.http_secs());
        Ok(transport::listen(server, listener, app, tuning)?.run())
    })
}

/// Returns the state that the WebSocket connections share.
fn sockets(config: &Config, service: &Arc<Service>, node: &NodeContext, limits: &NodeLimits, origins: Origins) -> Node {
    Node {
        service: service.clone(),
        hub: node.hub.clone(),
        runtime: node.tasks.work().clone(),
        budget: limits.outbound.clone(),
        opening_permits: Semaphore::new(MAX_OPENING),
        outbox_bytes: config.server.outbox_bytes,
        requests_per_second: config.limits.requests_per_connection_second,
        networks: limits.networks.clone(),
        trusted_proxies: config.server.trusted_proxies.clone(),
        origins,
        metrics: node.metrics.clone(),
    }
}

/// Returns the state that the HTTP handlers share.
fn http(config: &Config, service: &Arc<Service>, node: &NodeContext, origins: Origins) -> Http {
    let hub = node.hub.clone();
    Http {
        service: service.clone(),
        runtime: node.tasks.work().clone(),
        trusted_proxies: config.server.trusted_proxies.clone(),
        origins,
        metrics: node.metrics.clone(),
        serves_demo: config.serves_demo(),
        is_draining: Box::new(move || hub.is_draining()),
    }
}

/// Binds `admin.bind`, and returns the listener for the operator, which serves status and metrics. It has its own
/// thread, so it responds under any load.
///
/// # Errors
/// [`AppError::Listen`]
pub fn listen_to_operator(
    config: &Config,
    service: &Arc<Service>,
    node: &NodeContext,
    limits: &NodeLimits,
    runtime: &Handle,
) -> Result<Listener, AppError> {
    let access = Access::new(config.admin.token.reveal(), &config.admin.allowed_hosts);
    let usage = usage(node, limits);
    let admin =
        Admin::start(service.clone(), runtime.clone(), &node.tasks, node.metrics.clone(), usage, access, node.id);
    listen("admin.bind", config.admin.bind, runtime, |listener| admin::listen(listener, admin))
}

/// Returns a function that reads the node's current usage.
fn usage(node: &NodeContext, limits: &NodeLimits) -> Box<dyn Fn() -> NodeUsage + Send + Sync> {
    let (hub, work) = (node.hub.clone(), node.tasks.work().clone());
    let (sockets, http) = (limits.sockets.clone(), limits.limiter.http.clone());
    let (inbound, outbound) = (limits.inbound.clone(), limits.outbound.clone());
    Box::new(move || NodeUsage {
        connected: hub.connected(),
        sockets: (sockets.in_use(), sockets.limit()),
        http: (http.in_use(), http.limit()),
        work: work.unfinished(),
        inbound: (inbound.in_use(), inbound.limit()),
        outbound: (outbound.in_use(), outbound.limit()),
        is_draining: hub.is_draining(),
    })
}

/// Binds an address and builds its server. `setting` names the address in errors; `runtime` must outlive the server.
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
