//! Health checks: whether the process runs, and whether it should receive clients.

use actix_web::{
    HttpResponse,
    http::{StatusCode, header},
    web::Data,
};
use sealwire_protocol::health::{HealthReply, HealthStatus};

use super::Http;

/// `GET /healthz`: always 200; does not use the database or the bus.
pub async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(reply(HealthStatus::Ok, &[]))
}

/// `GET /readyz`: 503 if the store does not answer or the node is stopping; otherwise 200, with the status `degraded`
/// if the bus is down. Pages of all origins may read it: it says nothing that is not public, and a page whose origin is
/// not allowed can so distinguish this from a server that is down.
pub async fn readyz(http: Data<Http>) -> HttpResponse {
    let service = http.service.clone();
    let store_answers = http.runtime.spawn(async move { service.store_is_reachable().await }).await.unwrap_or(false);
    let (status, reasons) = readiness(store_answers, http.service.bus_is_up(), (http.is_draining)());
    let code = if status == HealthStatus::NotReady { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    HttpResponse::build(code).insert_header((header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")).json(reply(status, &reasons))
}

fn reply(status: HealthStatus, reasons: &[&str]) -> HealthReply {
    HealthReply { status: status.into(), reasons: reasons.iter().map(|reason| (*reason).to_owned()).collect() }
}

/// Returns the status of a node, with the reasons if it is not `ready`.
pub fn readiness(store_answers: bool, bus_is_up: bool, is_draining: bool) -> (HealthStatus, Vec<&'static str>) {
    let mut reasons = Vec::new();
    if !store_answers {
        reasons.push("the store does not answer");
    }
    if is_draining {
        reasons.push("draining");
    }
    if !reasons.is_empty() {
        (HealthStatus::NotReady, reasons)
    } else if bus_is_up {
        (HealthStatus::Ready, reasons)
    } else {
        (HealthStatus::Degraded, vec!["the bus does not answer"])
    }
}
