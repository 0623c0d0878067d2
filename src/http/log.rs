//! Logging of HTTP requests: one line for each, and a span around everything logged while it is handled.

use std::time::Instant;

use actix_web::{
    Error, HttpMessage,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    web::Data,
};
use tracing::Span;
use tracing_actix_web::RootSpanBuilder;

use super::Http;
use crate::edge::client_address;

/// When the server had read the head of a request.
struct RequestStart(Instant);

/// Creates a span with method, route and client for each request, and logs its status and duration at the end. The URL
/// is not logged, because clients may put secrets into it.
pub struct RequestSpan;

impl RootSpanBuilder for RequestSpan {
    fn on_request_start(request: &ServiceRequest) -> Span {
        let route = request.match_pattern().unwrap_or_else(|| "unmatched".to_owned());
        let trusted = request.app_data::<Data<Http>>().map_or(&[][..], |http| &http.trusted_proxies);
        let client = client_address(request.request().peer_addr(), request.headers(), trusted);
        request.extensions_mut().insert(RequestStart(Instant::now()));
        tracing::info_span!(
            "http",
            method = %request.method(),
            route,
            %client,
        )
    }

    fn on_request_end<B: MessageBody>(_: Span, outcome: &Result<ServiceResponse<B>, Error>) {
        match outcome {
            Ok(response) => {
                let took = response.request().extensions().get::<RequestStart>().map(|RequestStart(at)| at.elapsed());
                // Tenths of a millisecond.
                let ms = took.map(|took| (took.as_secs_f64() * 10_000.0).round() / 10.0);
                tracing::info!(status = response.status().as_u16(), ms, "request");
            }
            Err(error) => {
                tracing::info!(status = error.as_response_error().status_code().as_u16(), "request");
            }
        }
    }
}
