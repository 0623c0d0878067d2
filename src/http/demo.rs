//! The try-it page: the static files of the page at `/`, and the codes that it shows.
//!
//! The page is for development, on this machine only. So every request must come directly from a loopback address to a
//! loopback host name; others are answered as if there were no page. A code is shown only to the page itself: the
//! request must have the `Origin` of the server. The files are built from `sdk/typescript` and committed in `assets`.

use std::sync::LazyLock;

use actix_web::{
    HttpMessage, HttpRequest, HttpResponse, HttpResponseBuilder,
    http::header::{self, EntityTag, Header, HeaderName, IfNoneMatch},
    web::{self, Data, Payload, ServiceConfig},
};
use sealwire_protocol::ids::ChallengeId;
use serde::{Deserialize, Serialize};
use tracing_actix_web::TracingLogger;

use super::{Http, auth::read, host::RequestHost, log, resource};
use crate::edge::{EdgeError, Origins, Problem};

/// Headers that proxies add. A proxy on this machine makes its clients look local.
const PROXY_HEADERS: [&str; 5] = ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"];

/// A file of the page.
struct Asset {
    path: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
}

static ASSETS: [Asset; 6] = [
    Asset { path: "/", content_type: "text/html; charset=utf-8", bytes: include_bytes!("demo/assets/index.html") },
    Asset {
        path: "/try-it/app.js",
        content_type: "text/javascript; charset=utf-8",
        bytes: include_bytes!("demo/assets/app.js"),
    },
    Asset {
        path: "/try-it/app.css",
        content_type: "text/css; charset=utf-8",
        bytes: include_bytes!("demo/assets/app.css"),
    },
    Asset {
        path: "/try-it/worker.js",
        content_type: "text/javascript; charset=utf-8",
        bytes: include_bytes!("demo/assets/worker.js"),
    },
    Asset { path: "/try-it/icon.svg", content_type: "image/svg+xml", bytes: include_bytes!("demo/assets/icon.svg") },
    Asset { path: "/try-it/icon.png", content_type: "image/png", bytes: include_bytes!("demo/assets/icon.png") },
];

/// One entity tag for all files, so that a browser never mixes those of two versions of the server.
static TAG: LazyLock<EntityTag> = LazyLock::new(|| {
    let mut hasher = blake3::Hasher::new();
    for asset in &ASSETS {
        hasher.update(&(asset.bytes.len() as u64).to_le_bytes()).update(asset.bytes);
    }
    EntityTag::new_strong(hasher.finalize().to_hex()[..32].to_owned())
});

/// Adds the routes of the page.
pub fn routes(app: &mut ServiceConfig) {
    for asset in &ASSETS {
        let respond = move |request: HttpRequest| async move { file(asset, &request) };
        app.service(resource(asset.path).route(web::get().to(respond)).route(web::head().to(respond)));
    }
    let code = resource("/try-it/code").route(web::post().to(code)).wrap(TracingLogger::<log::RequestSpan>::new());
    app.service(code);
}

fn file(asset: &Asset, request: &HttpRequest) -> HttpResponse {
    let Some(host) = local_host(request) else { return not_found_now() };
    let is_known = match IfNoneMatch::parse(request) {
        Ok(IfNoneMatch::Any) => true,
        Ok(IfNoneMatch::Items(tags)) => tags.iter().any(|tag| tag.weak_eq(&TAG)),
        Err(_) => false,
    };
    let mut response = if is_known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    add_headers(&mut response, &host);
    if is_known { response.finish() } else { response.content_type(asset.content_type).body(asset.bytes) }
}

/// Lets the page use only its own scripts, style and server, and never write markup from script. Of the policies for
/// trusted types, it needs one, for the URL of its service worker.
fn add_headers(response: &mut HttpResponseBuilder, host: &RequestHost) {
    // Not all browsers take 'self' to include WebSocket. An IPv6 address cannot be named in a policy.
    let sockets = match (host.name.contains(':'), host.port) {
        (true, _) => String::new(),
        (false, None) => format!(" ws://{0} wss://{0}", host.name),
        (false, Some(port)) => format!(" ws://{0}:{port} wss://{0}:{port}", host.name),
    };
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'{sockets}; \
         worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; trusted-types try-it-worker; \
         require-trusted-types-for 'script'"
    );
    response
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header((header::ETAG, TAG.to_string()))
        .insert_header((header::VARY, "Host"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::CONTENT_SECURITY_POLICY, policy))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .insert_header((HeaderName::from_static("cross-origin-opener-policy"), "same-origin"))
        .insert_header((HeaderName::from_static("cross-origin-resource-policy"), "same-origin"));
}

#[derive(Deserialize)]
struct CodeRequest {
    challenge_id: ChallengeId,
}

#[derive(Serialize)]
struct CodeReply<'a> {
    code: &'a str,
}

/// `POST /try-it/code`: the code of a challenge, for the page itself.
async fn code(http: Data<Http>, request: HttpRequest, body: Payload) -> HttpResponse {
    match shown_code(&http, &request, body).await {
        Ok(response) => response,
        Err(error) => Problem::from(error).response(),
    }
}

async fn shown_code(http: &Http, request: &HttpRequest, body: Payload) -> Result<HttpResponse, EdgeError> {
    if !comes_directly_from_this_machine(request) {
        return Err(EdgeError::NoSuchResource);
    }
    if !comes_from_the_page(request) {
        return Err(EdgeError::ForbiddenOrigin);
    }
    if !request.content_type().eq_ignore_ascii_case("application/json") {
        return Err(EdgeError::Malformed("the Content-Type must be application/json".into()));
    }
    let CodeRequest { challenge_id } = read(body).await?;
    let code = http.service.shown_code(challenge_id).ok_or(EdgeError::NoSuchResource)?;
    let mut response = HttpResponse::Ok();
    Ok(response.insert_header((header::CACHE_CONTROL, "no-store")).json(CodeReply { code: code.as_str() }))
}

/// Returns the loopback host that a request of this machine is addressed to; `None` for other requests.
fn local_host(request: &HttpRequest) -> Option<RequestHost> {
    let host = RequestHost::of(request.head()).filter(RequestHost::is_loopback);
    host.filter(|_| comes_directly_from_this_machine(request))
}

fn comes_directly_from_this_machine(request: &HttpRequest) -> bool {
    let is_local = request.peer_addr().is_some_and(|peer| peer.ip().to_canonical().is_loopback());
    is_local && !PROXY_HEADERS.iter().any(|name| request.headers().contains_key(*name))
}

/// Whether the request was made by a page of this server, under a loopback host name. Browsers send `Origin` with every
/// POST, and `Sec-Fetch-Site` too unless they are old.
fn comes_from_the_page(request: &HttpRequest) -> bool {
    let headers = request.headers();
    let mut origins = headers.get_all(header::ORIGIN);
    let (Some(origin), None) = (origins.next(), origins.next()) else { return false };
    let is_same_site = headers.get("sec-fetch-site").is_none_or(|site| site == "same-origin");
    is_same_site && local_host(request).is_some() && Origins::default().allows(origin, headers.get(header::HOST))
}

fn not_found_now() -> HttpResponse {
    Problem::from(EdgeError::NoSuchResource).response()
}
