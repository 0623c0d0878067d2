//! Bearer tokens.

use actix_web::http::header::{self, HeaderMap};

use crate::domain::token::Token;

/// The token of the `Authorization` header: `None` without such a header, an inner `None` if it holds no valid token.
#[must_use]
pub fn bearer_token(headers: &HeaderMap) -> Option<Option<Token>> {
    let value = headers.get(header::AUTHORIZATION)?;
    let token = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| Token::parse(token.trim()))?
    });
    Some(token)
}
