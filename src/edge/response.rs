//! Errors as HTTP responses.

use actix_web::{
    HttpResponse,
    http::{StatusCode, header},
};
use sealwire_protocol::{Code, error::HttpErrorBody};

use super::error::{Problem, REQUEST_TIMEOUT_STATUS};

impl Problem {
    /// Returns the error as a response of actix-web.
    #[must_use]
    pub fn response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status());
        if let Some(seconds) = self.body().retry_after_s() {
            response.insert_header((header::RETRY_AFTER, seconds.to_string()));
        }
        if self.http_status() == REQUEST_TIMEOUT_STATUS {
            // The rest of the request would be parsed as the next request.
            response.force_close();
        }
        if self.code() == Code::Unauthorized {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        response.insert_header((header::CACHE_CONTROL, "no-store")).json(HttpErrorBody { error: self.body() })
    }

    /// Returns the error as the bytes of an HTTP/1.1 response that closes the connection. For connections that no
    /// application handles yet.
    #[must_use]
    pub fn as_http1(&self) -> Vec<u8> {
        let status = self.status();
        let body = serde_json::to_vec(&HttpErrorBody { error: self.body() }).unwrap_or_default();
        let retry_after =
            self.body().retry_after_s().map(|seconds| format!("retry-after: {seconds}\r\n")).unwrap_or_default();
        let head = format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncache-control: no-store\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n{retry_after}\r\n",
            body.len()
        );
        [head.into_bytes(), body].concat()
    }

    fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}
