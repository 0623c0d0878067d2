//! Serves `GET /v1/socket`: checks the upgrade request, chooses the codec and starts the connection. The checks run in
//! this order: browser origin, form of the request, rate of new connections, token, whether the node is stopping,
//! limits on open connections.

use std::{rc::Rc, sync::Arc, time::Instant};

use actix_http::ws::{CloseCode as WsCloseCode, CloseReason, OpCode, Parser};
use actix_web::{
    HttpMessage, HttpRequest, HttpResponse,
    body::BoxBody,
    http::header::{self, HeaderMap, HeaderValue},
    web::{self, BytesMut},
};

use sealwire_protocol::{CloseCode, Codec, events::Event};

use super::{
    device::{DeviceSocket, UpgradedConnection},
    networks::ConnectionKind,
    node::Node,
    ops::encode,
    transport::{Holder, RefusedAfterUpgrade, Wire},
};
use crate::{
    domain::{ClientNetwork, Refusal, Session, refusal::InvalidTokenReason, token::Token},
    edge::{EdgeError, Problem, bearer_token, client_address, is_proxy},
};

/// Prefix of the subprotocol with which a browser sends its token, because it cannot set headers.
const TOKEN_SUBPROTOCOL: &str = "sealwire.token.";

/// Handles the upgrade request. Returns the 101 response, or the response that refuses the upgrade.
pub async fn open(request: HttpRequest, body: web::Payload, node: web::Data<Node>) -> HttpResponse {
    let node = node.into_inner();
    match upgrade(&request, body, node.clone()).await {
        Ok(response) => response,
        Err(error) => {
            let problem = Problem::from(error);
            node.metrics.upgrades_refused.inc(problem.code());
            if let Some(response) = refusal_for_browser(&request, &node, &problem) {
                return response;
            }
            let mut response = problem.response();
            if actix_http::ws::verify_handshake(request.head()).is_err() {
                // RFC 6455, 4.4: the versions that the server supports.
                response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            }
            response
        }
    }
}

async fn upgrade(request: &HttpRequest, body: web::Payload, node: Arc<Node>) -> Result<HttpResponse, EdgeError> {
    let headers = request.headers();
    if let Some(origin) = headers.get(header::ORIGIN)
        && !node.origins.allows_or_logs(origin, headers.get(header::HOST))
    {
        return Err(EdgeError::ForbiddenOrigin);
    }
    let not_a_handshake = || EdgeError::Malformed("not a WebSocket handshake (RFC 6455, version 13)".into());
    actix_http::ws::verify_handshake(request.head()).map_err(|cause| {
        EdgeError::Malformed(format!("not a WebSocket handshake (RFC 6455, version 13): {cause}").into())
    })?;
    if has_body(headers) {
        return Err(EdgeError::Malformed("a WebSocket handshake has no body".into()));
    }
    if !is_upgraded_by_transport(headers) {
        return Err(not_a_handshake());
    }
    let offer = SubprotocolOffer::read(request)?;
    let client = client_address(request.peer_addr(), headers, &node.trusted_proxies);
    let network = ClientNetwork::from(client);
    // A client without a proxy was counted when its TCP connection was accepted.
    if request.peer_addr().is_none_or(|peer| is_proxy(peer.ip(), &node.trusted_proxies)) {
        node.networks.count_new(network, Instant::now())?;
    }
    let token = match bearer_token(headers) {
        Some(token) => token,
        None => offer.token,
    };
    let token = token.ok_or(Refusal::Unauthorized(InvalidTokenReason::Unknown))?;
    let session = authenticate(&node, &token, network).await?;
    if node.hub.is_draining() {
        return Err(Refusal::Unavailable.into());
    }
    // The transport adds a wire to every handshake.
    let wire = request.extensions().get::<Rc<Wire>>().cloned().ok_or_else(not_a_handshake)?;
    wire.hold_network_slot(node.networks.count_open(network, ConnectionKind::Socket, Instant::now())?);
    wire.take_seat(Holder { network, user: session.caller.user }).map_err(|_| Refusal::Unavailable)?;
    let mut response = actix_http::ws::handshake(request.head()).map_err(|_| not_a_handshake())?;
    if offer.is_codec_offered {
        response.insert_header((header::SEC_WEBSOCKET_PROTOCOL, offer.codec.subprotocol()));
    }
    let upgraded = UpgradedConnection { session, codec: offer.codec, payload: body.into_inner(), wire, client };
    let body = DeviceSocket::launch(node, upgraded);
    let response = response.message_body(BoxBody::new(body)).map_err(|_| not_a_handshake())?;
    Ok(HttpResponse::from(response))
}

/// Returns the session of a token. Presenting a token for the first time runs to completion even if the client
/// disconnects.
async fn authenticate(node: &Node, token: &Token, network: ClientNetwork) -> Result<Session, Refusal> {
    let token = node.service.look_up(token, network).await?;
    if let Some(session) = token.presented_before() {
        return Ok(session);
    }
    let service = node.service.clone();
    let present = node.runtime.spawn(async move {
        let (session, notifications) = service.present(token).await?;
        service.notify(notifications);
        Ok(session)
    });
    present.await.map_err(|_| Refusal::Internal)?
}

/// Returns a refusal that a browser passes on to its page, unlike an HTTP error: a 101 response, followed by one event
/// and the Close frame. `None` if the client is not a browser that may connect here, or if the refusal is not about the
/// token, a rate limit or the server's availability.
fn refusal_for_browser(request: &HttpRequest, node: &Node, problem: &Problem) -> Option<HttpResponse> {
    let headers = request.headers();
    let origin = headers.get(header::ORIGIN)?;
    let offer = SubprotocolOffer::read(request).ok()?;
    if !node.origins.allows(origin, headers.get(header::HOST)) || !offer.is_codec_offered || !offer.has_token {
        return None;
    }
    let close = match problem.http_status() {
        401 => CloseCode::Unauthorized,
        429 => CloseCode::RateLimited,
        503 if node.hub.is_draining() => CloseCode::Draining,
        503 => CloseCode::Unavailable,
        _ => return None,
    };
    let event = encode(offer.codec, &Event::Refused(Box::new(problem.body().clone())));
    let opcode = match offer.codec {
        Codec::Json => OpCode::Text,
        Codec::MsgPack => OpCode::Binary,
    };
    let mut frames = BytesMut::new();
    Parser::write_message(&mut frames, event, opcode, true, false);
    let reason = CloseReason { code: WsCloseCode::Other(close.number()), description: Some(close.reason().to_owned()) };
    Parser::write_close(&mut frames, Some(reason), false);
    let mut response = actix_http::ws::handshake(request.head()).ok()?;
    response.insert_header((header::SEC_WEBSOCKET_PROTOCOL, offer.codec.subprotocol()));
    let mut response = HttpResponse::from(response.message_body(BoxBody::new(frames.freeze())).ok()?);
    response.extensions_mut().insert(RefusedAfterUpgrade);
    Some(response)
}

/// Whether the transport has switched the connection to WebSocket. It does so only if an `Upgrade` header has exactly
/// this value.
fn is_upgraded_by_transport(headers: &HeaderMap) -> bool {
    let is_websocket = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket");
    headers.get_all(header::UPGRADE).any(is_websocket)
}

/// Whether the request announces a body. `Content-Length: 0`, which proxies and libraries add, does not.
fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH);
    let is_empty = length.is_none_or(|length| length.to_str().is_ok_and(|text| text.trim().parse() == Ok(0u64)));
    !is_empty || headers.contains_key(header::TRANSFER_ENCODING)
}

/// What the client offers in `Sec-WebSocket-Protocol`.
struct SubprotocolOffer {
    codec: Codec,
    /// Whether the client offered the codec; if so, the response has to name it. Otherwise JSON is the default.
    is_codec_offered: bool,
    token: Option<Token>,
    /// Whether a token was offered, valid or not.
    has_token: bool,
}

impl SubprotocolOffer {
    /// Reads the offer of an upgrade request. The first known codec is chosen, and the first well-formed token.
    ///
    /// # Errors
    /// `bad_request` if the client offers subprotocols, but no codec of the server among them.
    fn read(request: &HttpRequest) -> Result<Self, EdgeError> {
        let unknown = || EdgeError::Malformed("offer sealwire.v1.msgpack or sealwire.v1.json".into());
        let mut codec = None;
        let mut token = None;
        let mut has_token = false;
        let mut is_any_offered = false;
        for value in request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL) {
            let names = value.to_str().map_err(|_| unknown())?;
            for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                is_any_offered = true;
                if let Some(text) = name.strip_prefix(TOKEN_SUBPROTOCOL) {
                    has_token = true;
                    token = token.or_else(|| Token::parse(text));
                } else {
                    codec = codec.or_else(|| Codec::ALL.into_iter().find(|known| known.subprotocol() == name));
                }
            }
        }
        match codec {
            Some(codec) => Ok(Self { codec, is_codec_offered: true, token, has_token }),
            None if is_any_offered => Err(unknown()),
            None => Ok(Self { codec: Codec::Json, is_codec_offered: false, token, has_token }),
        }
    }
}
