//! Whether the process is up, and whether it should be sent clients.

use actix_web::{HttpResponse, http::StatusCode, web::Data};
use serde::Serialize;

use super::Http;

#[derive(Serialize)]
struct Readiness {
    status: &'static str,
    reasons: Vec<&'static str>,
}

/// `GET /healthz`: touches no backend.
pub async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(Readiness { status: "ok", reasons: vec![] })
}

/// `GET /readyz`: 200 while the store answers (degraded while the bus does not), 503 when it does not or the node is being stopped.
pub async fn readyz(http: Data<Http>) -> HttpResponse {
    let service = http.service.clone();
    let reachable = http.runtime.spawn(async move { service.store_is_reachable().await }).await.unwrap_or(false);
    let mut reasons = Vec::new();
    if !reachable {
        reasons.push("the store does not answer");
    }
    if (http.is_draining)() {
        reasons.push("draining");
    }
    let (code, status) = if !reasons.is_empty() {
        (StatusCode::SERVICE_UNAVAILABLE, "not_ready")
    } else if http.service.bus_is_up() {
        (StatusCode::OK, "ready")
    } else {
        reasons.push("the bus does not answer");
        (StatusCode::OK, "degraded")
    };
    HttpResponse::build(code).json(Readiness { status, reasons })
}
