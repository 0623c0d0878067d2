//! The routes of the operator's listener.

use std::sync::LazyLock;

use actix_web::{
    HttpRequest, HttpResponse,
    http::{
        StatusCode,
        header::{self, Accept, ContentType, Header, HeaderName},
    },
    middleware::{DefaultHeaders, from_fn},
    mime::Mime,
    web::{self, Data, ServiceConfig},
};

use super::{
    Admin,
    access::{check_access, refusal},
    runbook,
    status::StatusReport,
};
use crate::metrics::Metrics;

/// Lets the page use only its own script, style and server, and never write markup from script.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

/// The status page with the runbook in it.
static PAGE: LazyLock<String> =
    LazyLock::new(|| include_str!("status.html").replace("<!-- runbook -->", &runbook::html()));

/// Adds all routes, behind access control.
pub fn routes(admin: Data<Admin>) -> impl FnOnce(&mut ServiceConfig) {
    let headers = DefaultHeaders::new()
        .add((header::CACHE_CONTROL, "no-store"))
        .add((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .add((header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY))
        .add((header::REFERRER_POLICY, "no-referrer"))
        .add((HeaderName::from_static("cross-origin-resource-policy"), "same-origin"));
    let file = |content_type: &'static str, text: &'static str| {
        web::to(move || async move { HttpResponse::Ok().content_type(content_type).body(text) })
    };
    move |app| {
        let all = web::scope("")
            .wrap(from_fn(check_access))
            .wrap(headers)
            .route("/status", web::to(show))
            .route("/status.css", file("text/css; charset=utf-8", include_str!("status.css")))
            .route("/status.js", file("text/javascript; charset=utf-8", include_str!("status.js")))
            .route("/status.svg", file("image/svg+xml", include_str!("status.svg")))
            .route("/metrics", web::to(metrics))
            .route("/", web::to(home))
            .default_service(web::to(|| async {
                refusal(StatusCode::NOT_FOUND, "not found: see /status and /metrics")
            }));
        app.app_data(admin).service(all);
    }
}

/// `GET /`
async fn home() -> HttpResponse {
    HttpResponse::Found().insert_header((header::LOCATION, "/status")).finish()
}

/// `GET /status`: the page if the client prefers HTML, otherwise JSON. `?history` adds the last ten minutes to the
/// JSON.
async fn show(request: HttpRequest, admin: Data<Admin>) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    response.insert_header((header::VARY, "Accept"));
    if prefers_html(&request) {
        return response.content_type(ContentType::html()).body(PAGE.as_str());
    }
    let latency = admin.latency().await;
    response.json(StatusReport::of(&admin, latency, request.query_string() == "history"))
}

fn prefers_html(request: &HttpRequest) -> bool {
    let ranked = Accept::parse(request).map(|accept| accept.ranked()).unwrap_or_default();
    let known = ranked
        .iter()
        .map(Mime::essence_str)
        .find(|mime| matches!(*mime, "text/html" | "application/json" | "application/*" | "*/*"));
    known == Some("text/html")
}

/// `GET /metrics`
async fn metrics(admin: Data<Admin>) -> HttpResponse {
    admin.update_gauges().await;
    HttpResponse::Ok().content_type(Metrics::CONTENT_TYPE).body(admin.metrics.exposition())
}
