//! `docs/openapi.json`: sign-in, sessions and health checks, as `OpenAPI` 3.1.

use std::collections::{BTreeMap, BTreeSet};

use sealwire_protocol::{Code, limits};

use super::{
    asyncapi::{default_limits, error_codes, info, token_scheme},
    json::{Json, list, map, reference},
    rust_types::RustTypes,
};

const VERSION: &str = "3.1.0";

/// An HTTP request that the server serves.
pub struct Endpoint {
    pub method: &'static str,
    pub path: &'static str,
    summary: &'static str,
    needs_token: bool,
    body: Option<&'static str>,
    /// Status and body type of each successful response.
    pub success: &'static [(u16, Option<&'static str>)],
    /// The errors in addition to [`GENERAL_ERRORS`].
    errors: &'static [Code],
}

/// The types of request bodies.
pub const REQUESTS: [&str; 3] = ["OtpRequest", "VerifyRequest", "PollApprovalRequest"];

pub const ENDPOINTS: [Endpoint; 8] = [
    Endpoint {
        method: "POST",
        path: "/v1/auth/otp",
        summary: "Mails a code to an address",
        needs_token: false,
        body: Some("OtpRequest"),
        success: &[(202, Some("OtpReply"))],
        errors: &[Code::BadRequest, Code::PayloadTooLarge],
    },
    Endpoint {
        method: "POST",
        path: "/v1/auth/verify",
        summary: "Signs in with a code",
        needs_token: false,
        body: Some("VerifyRequest"),
        success: &[(201, Some("SessionReply")), (202, Some("ApprovalRequestedReply"))],
        errors: &[
            Code::BadRequest,
            Code::PayloadTooLarge,
            Code::InvalidCode,
            Code::TooManyAttempts,
            Code::UnknownDevice,
            Code::ProofRequired,
            Code::DeviceLimit,
        ],
    },
    Endpoint {
        method: "POST",
        path: "/v1/auth/approval",
        summary: "Returns the outcome of a sign-in that waits for an approval",
        needs_token: false,
        body: Some("PollApprovalRequest"),
        success: &[(201, Some("SessionReply")), (202, Some("ApprovalPendingReply"))],
        errors: &[Code::BadRequest, Code::PayloadTooLarge, Code::NotFound, Code::Denied],
    },
    Endpoint {
        method: "GET",
        path: "/v1/auth/session",
        summary: "Returns the session of a token",
        needs_token: true,
        body: None,
        success: &[(200, Some("SessionReply"))],
        errors: &[Code::Unauthorized],
    },
    Endpoint {
        method: "DELETE",
        path: "/v1/auth/session",
        summary: "Ends a session",
        needs_token: true,
        body: None,
        success: &[(204, None)],
        errors: &[Code::Unauthorized],
    },
    Endpoint {
        method: "GET",
        path: "/v1/socket",
        summary: "Upgrades the connection to the socket, which asyncapi.json describes",
        needs_token: true,
        body: None,
        success: &[(101, None)],
        errors: &[Code::BadRequest, Code::Unauthorized, Code::ForbiddenOrigin],
    },
    Endpoint {
        method: "GET",
        path: "/healthz",
        summary: "Whether the process is running",
        needs_token: false,
        body: None,
        success: &[(200, Some("HealthReply"))],
        errors: &[],
    },
    Endpoint {
        method: "GET",
        path: "/readyz",
        summary: "Whether the server can serve clients",
        needs_token: false,
        body: None,
        success: &[(200, Some("HealthReply"))],
        errors: &[],
    },
];

/// The errors that every request may get.
const GENERAL_ERRORS: [Code; 3] = [Code::RateLimited, Code::Unavailable, Code::Internal];
/// The status if a request was not complete in time. Its code is `rate_limited`.
const TOO_SLOW: u16 = 408;

/// Generates the document. `protocol` is the text of `docs/protocol.md`.
pub fn document(types: &RustTypes, protocol: &str) -> Json {
    let mut paths: Vec<(String, Json)> = Vec::new();
    let mut used = BTreeSet::new();
    collect("HttpErrorBody", types, &mut used);
    for endpoint in &ENDPOINTS {
        for name in endpoint.body.iter().chain(endpoint.success.iter().filter_map(|(_, body)| body.as_ref())) {
            collect(name, types, &mut used);
        }
        let operation = (endpoint.method.to_lowercase(), operation(endpoint));
        match paths.iter_mut().find(|(path, _)| path == endpoint.path) {
            Some((_, Json::Map(operations))) => operations.push(operation),
            _ => paths.push((endpoint.path.to_owned(), Json::Map(vec![operation]))),
        }
    }
    let schemas = used.into_iter().map(|name| {
        let schema = types.schemas[&name].clone();
        (name, schema)
    });
    map([
        ("openapi", VERSION.into()),
        ("info", info("Sealwire over HTTP", DESCRIPTION)),
        ("servers", list([map([("url", "https://chat.example".into()), ("description", "Your server.".into())])])),
        ("paths", Json::Map(paths)),
        (
            "components",
            map([("schemas", Json::Map(schemas.collect())), ("securitySchemes", map([("token", token_scheme())]))]),
        ),
        ("x-error-codes", error_codes(protocol)),
        ("x-limits", map([("body_bytes", i64::try_from(limits::MAX_BODY_BYTES).unwrap().into())])),
        ("x-default-limits", default_limits(protocol)),
    ])
}

const DESCRIPTION: &str = "Sign-in, sessions and health checks. docs/protocol.md is the contract and has the rules; asyncapi.json \
    describes the socket. In requests, null means the same as an absent field. Clients ignore fields and names that they do not \
    know, and treat an unknown error code by its `retryable`.";

/// Adds a type and all types that it refers to.
fn collect(name: &str, types: &RustTypes, used: &mut BTreeSet<String>) {
    fn references<'a>(schema: &'a Json, found: &mut Vec<&'a str>) {
        match schema {
            Json::Map(fields) => {
                for (name, value) in fields {
                    match value {
                        Json::Text(pointer) if name == "$ref" => found.push(pointer),
                        _ => references(value, found),
                    }
                }
            }
            Json::List(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    if used.insert(name.to_owned()) {
        let mut found = Vec::new();
        references(&types.schemas[name], &mut found);
        for pointer in found {
            collect(pointer.rsplit('/').next().unwrap(), types, used);
        }
    }
}

fn content(name: &str) -> Json {
    map([("application/json", map([("schema", reference(&format!("#/components/schemas/{name}")))]))])
}

fn operation(endpoint: &Endpoint) -> Json {
    let success = |(status, body): &(u16, Option<&str>)| {
        let success = map([("description", endpoint.summary.into())]);
        let success = match body {
            Some(name) => success.with([("content", content(name))]),
            None => success,
        };
        (status.to_string(), success)
    };
    let mut responses: Vec<(String, Json)> = endpoint.success.iter().map(success).collect();
    let mut errors: BTreeMap<u16, Vec<&str>> = BTreeMap::from([(TOO_SLOW, vec![Code::RateLimited.name()])]);
    for code in endpoint.errors.iter().chain(&GENERAL_ERRORS) {
        errors.entry(code.http_status()).or_default().push(code.name());
    }
    responses.extend(errors.into_iter().map(|(status, codes)| (status.to_string(), error(endpoint, status, &codes))));
    let security = if endpoint.needs_token { vec![map([("token", Json::List(Vec::new()))])] } else { Vec::new() };
    let id = format!("{} {}", endpoint.method, endpoint.path);
    let id: Vec<&str> = id.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let operation = map([
        ("operationId", id.join("_").to_lowercase().into()),
        ("summary", endpoint.summary.into()),
        ("security", Json::List(security)),
    ]);
    let operation = match endpoint.body {
        Some(name) => operation.with([("requestBody", map([("required", true.into()), ("content", content(name))]))]),
        None => operation,
    };
    operation.with([("responses", Json::Map(responses))])
}

fn error(endpoint: &Endpoint, status: u16, codes: &[&str]) -> Json {
    let codes: Vec<String> = codes.iter().map(|code| format!("`{code}`")).collect();
    let response = map([("description", codes.join(", ").into())]);
    let wait = map([("type", "integer".into()), ("minimum", 1.into())]);
    let header = map([("description", "Seconds after which a retry can succeed.".into()), ("schema", wait)]);
    let waits = matches!(status, 408 | 429 | 503);
    let response = if waits { response.with([("headers", map([("Retry-After", header)]))]) } else { response };
    // A node that is not ready responds with a `HealthReply`; a node that refuses the connection, with an
    // `HttpErrorBody`.
    if endpoint.path == "/readyz" && status == 503 {
        let either = ["HealthReply", "HttpErrorBody"].map(|name| reference(&format!("#/components/schemas/{name}")));
        let schema = map([("anyOf", list(either))]);
        return response.with([("content", map([("application/json", map([("schema", schema)]))]))]);
    }
    response.with([("content", content("HttpErrorBody"))])
}
