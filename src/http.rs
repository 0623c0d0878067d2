//! The HTTP edge: sign-in, for those who have no session yet, and health; and the operator's listener.

pub mod admin;
mod auth;
mod health;
mod log;

use std::{sync::Arc, time::Duration};

use actix_cors::Cors;
use actix_web::{
    HttpResponse,
    http::{Method, header},
    web::{self, ServiceConfig},
};
use ipnet::IpNet;
use tracing_actix_web::TracingLogger;

use crate::{
    domain::Refusal,
    metrics::Metrics,
    protocol::{Problem, http::Origins},
    service::Service,
    tasks::Work,
};

/// Largest request body.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// How long all of a request body may take to come in.
const BODY_TIME: Duration = Duration::from_secs(20);
/// Seconds for which a browser may remember what a preflight allowed.
const PREFLIGHT_SECONDS: usize = 600;

/// What the handlers share.
pub struct Http {
    /// The use cases.
    pub service: Arc<Service>,
    /// The runtime on which they run.
    pub runtime: Work,
    /// Proxies whose word about the client is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Browser origins that may use `/v1`.
    pub origins: Origins,
    /// What counts the answers.
    pub metrics: Arc<Metrics>,
    /// Whether the node is being stopped.
    pub is_draining: Box<dyn Fn() -> bool + Send + Sync>,
}

/// Adds all routes but the socket's, which stays outside so that no span lives as long as a connection.
pub fn routes(http: web::Data<Http>) -> impl FnOnce(&mut ServiceConfig) {
    move |app| {
        let origins = http.origins.clone();
        let cors = Cors::default()
            .allowed_origin_fn(move |origin, request| origins.allows(origin, request.headers.get(header::HOST)))
            .allowed_methods([Method::GET, Method::POST, Method::DELETE])
            .allowed_headers([header::AUTHORIZATION, header::CONTENT_TYPE])
            .expose_headers([header::RETRY_AFTER])
            .block_on_origin_mismatch(false)
            .max_age(PREFLIGHT_SECONDS);
        let auth = web::scope("/auth")
            .wrap(TracingLogger::<log::RequestSpan>::new())
            .service(resource("/otp").route(web::post().to(auth::otp)))
            .service(resource("/verify").route(web::post().to(auth::verify)))
            .service(resource("/session").route(web::get().to(auth::session)).route(web::delete().to(auth::logout)))
            .default_service(web::to(not_found));
        let v1 = web::scope("/v1").wrap(cors).service(auth).default_service(web::to(not_found));
        app.app_data(http)
            .service(v1)
            .service(resource("/healthz").route(web::get().to(health::healthz)))
            .service(resource("/readyz").route(web::get().to(health::readyz)))
            .default_service(web::to(not_found));
    }
}

/// A resource that answers a wrong method as it answers a wrong path.
fn resource(path: &str) -> actix_web::Resource {
    web::resource(path).default_service(web::to(not_found))
}

/// The answer to whatever is not there.
pub async fn not_found() -> HttpResponse {
    Problem::from(Refusal::NotFound).response()
}
