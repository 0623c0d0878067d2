//! Reads bearer tokens (RFC 6750).

use actix_web::http::header::{self, HeaderMap};

use crate::domain::token::Token;

/// Returns the token of the `Authorization` header. `None` if there is no such header or its scheme is not `Bearer`: a
/// proxy with its own authentication may leave its credentials there. `Some(None)` if the token is malformed.
#[must_use]
pub fn bearer_token(headers: &HeaderMap) -> Option<Option<Token>> {
    let value = headers.get(header::AUTHORIZATION)?;
    let Ok(text) = value.to_str() else { return Some(None) };
    let (scheme, token) = text.trim().split_once(' ').unwrap_or((text, ""));
    scheme.eq_ignore_ascii_case("bearer").then(|| Token::parse(token.trim()))
}
