//! Bearer tokens.

use actix_web::http::header::{self, HeaderMap};

use crate::domain::token::Token;

/// The token of the `Authorization` header. `None` without such a header or with another scheme than `Bearer`, which a proxy with
/// passwords of its own leaves there; an inner `None` if the token is malformed.
#[must_use]
pub fn bearer_token(headers: &HeaderMap) -> Option<Option<Token>> {
    let value = headers.get(header::AUTHORIZATION)?;
    let Ok(text) = value.to_str() else { return Some(None) };
    let (scheme, token) = text.trim().split_once(' ').unwrap_or((text, ""));
    scheme.eq_ignore_ascii_case("bearer").then(|| Token::parse(token.trim()))
}
