//! Health checks: whether the process runs, and whether it should receive clients.

use actix_web::{
    HttpResponse,
    http::{StatusCode, header},
    web::Data,
};
use sealwire_protocol::health::{HealthReply, HealthStatus};

use super::Http;
use crate::service::BusState;

/// `GET /healthz`: always 200; does not use the database or the bus.
pub async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(reply(HealthStatus::Ok, Vec::new()))
}

/// `GET /readyz`: 503 if the store does not answer, the clock is wrong or the node is stopping; otherwise 200, with the status `degraded`
/// unless the bus is up. Pages of all origins may read it: the response contains no secret, and it lets a page whose
/// origin is not allowed find out that the server runs.
pub async fn readyz(http: Data<Http>) -> HttpResponse {
    let service = http.service.clone();
    let store_answers = http.runtime.spawn(async move { service.store_is_reachable().await }).await.unwrap_or(false);
    let clock_is_wrong = http.service.is_clock_wrong();
    let (status, reasons) = readiness(store_answers, clock_is_wrong, http.service.bus_state(), (http.is_draining)());
    let code = if status == HealthStatus::NotReady { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    HttpResponse::build(code).insert_header((header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")).json(reply(status, reasons))
}

fn reply(status: HealthStatus, reasons: Vec<String>) -> HealthReply {
    HealthReply { status: status.into(), reasons }
}

/// Returns the status of a node, with the reasons if it is not `ready`.
pub fn readiness(
    store_answers: bool,
    clock_is_wrong: bool,
    bus: BusState,
    is_draining: bool,
) -> (HealthStatus, Vec<String>) {
    let mut reasons = Vec::new();
    if !store_answers {
        reasons.push("the store does not answer".to_owned());
    }
    if clock_is_wrong {
        reasons.push("clock".to_owned());
    }
    if is_draining {
        reasons.push("draining".to_owned());
    }
    if !reasons.is_empty() {
        return (HealthStatus::NotReady, reasons);
    }
    let degraded = |reason: String| (HealthStatus::Degraded, vec![reason]);
    match bus {
        BusState::Up => (HealthStatus::Ready, reasons),
        BusState::Down => degraded("the bus does not answer".to_owned()),
        BusState::NodeUnreachable(node) => degraded(format!("the bus does not reach node {node}")),
        BusState::ForeignDeployment => {
            degraded("another deployment with the same auth.secret uses this bus".to_owned())
        }
    }
}
