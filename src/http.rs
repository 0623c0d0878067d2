//! The HTTP edge: sign-in and sessions, health checks, the try-it page, and the operator's listener.

pub mod admin;
mod auth;
mod demo;
mod health;
mod host;
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
    edge::{EdgeError, Origins, Problem},
    metrics::Metrics,
    service::Service,
    tasks::Work,
};

/// Timeout for receiving the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// Seconds for which a browser may cache the response to a CORS preflight.
const PREFLIGHT_SECONDS: usize = 600;

/// The state that the handlers share.
pub struct Http {
    /// The use cases.
    pub service: Arc<Service>,
    /// Runs the use cases.
    pub runtime: Work,
    /// Proxies whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// Origins of web pages that may use `/v1`.
    pub origins: Origins,
    /// Counts the responses.
    pub metrics: Arc<Metrics>,
    /// Whether the try-it page is served.
    pub serves_demo: bool,
    /// Whether the node is stopping.
    pub is_draining: Box<dyn Fn() -> bool + Send + Sync>,
}

/// Adds all routes except that of the socket, which is added elsewhere so that no tracing span lasts as long as a
/// connection.
pub fn routes(http: web::Data<Http>) -> impl FnOnce(&mut ServiceConfig) {
    move |app| {
        let origins = http.origins.clone();
        let cors = Cors::default()
            .allowed_origin_fn(move |origin, request| origins.allows_or_logs(origin, request.headers.get(header::HOST)))
            .allowed_methods([Method::GET, Method::POST, Method::DELETE])
            .allowed_headers([header::AUTHORIZATION, header::CONTENT_TYPE])
            .expose_headers([header::RETRY_AFTER])
            .block_on_origin_mismatch(false)
            .max_age(PREFLIGHT_SECONDS);
        let auth = web::scope("/auth")
            .wrap(TracingLogger::<log::RequestSpan>::new())
            .service(resource("/otp").route(web::post().to(auth::otp)))
            .service(resource("/verify").route(web::post().to(auth::verify)))
            .service(resource("/approval").route(web::post().to(auth::approval)))
            .service(resource("/session").route(web::get().to(auth::session)).route(web::delete().to(auth::logout)))
            .default_service(web::to(not_found));
        let v1 = web::scope("/v1").wrap(cors).service(auth).default_service(web::to(not_found));
        if http.serves_demo {
            demo::routes(app);
        }
        app.app_data(http)
            .service(v1)
            .service(resource("/healthz").route(web::get().to(health::healthz)))
            .service(resource("/readyz").route(web::get().to(health::readyz)))
            .default_service(web::to(not_found));
    }
}

/// A resource that answers an unsupported method as it would an unknown path.
fn resource(path: &str) -> actix_web::Resource {
    web::resource(path).default_service(web::to(not_found))
}

/// Responds with `not_found`, for unknown paths and unsupported methods.
pub async fn not_found() -> HttpResponse {
    Problem::from(EdgeError::NoSuchResource).response()
}
