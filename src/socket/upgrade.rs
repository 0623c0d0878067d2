//! `GET /v1/socket`: checks the upgrade request and chooses the codec. Refusals come in the order origin, form, rate of
//! connects, token, capacity.

use std::{rc::Rc, sync::Arc, time::Instant};

use actix_web::{
    HttpMessage, HttpRequest, HttpResponse,
    http::header::{self, HeaderMap, HeaderValue},
    web,
};

use sealwire_protocol::{Codec, limits::MAX_FRAME_BYTES};

use super::{
    device::{DeviceSocket, Upgraded},
    networks::ConnectionKind,
    node::Node,
    transport::Wire,
};
use crate::{
    domain::{ClientNetwork, Refusal, token::Token},
    edge::{EdgeError, Problem, bearer_token, client_address, is_proxy},
    metrics::Limit,
};

/// The offered subprotocol that carries a browser's token.
const TOKEN_SUBPROTOCOL: &str = "sealwire.token.";

/// Answers the upgrade request.
pub async fn open(request: HttpRequest, body: web::Payload, node: web::Data<Node>) -> HttpResponse {
    let node = node.into_inner();
    match upgrade(&request, body, node.clone()).await {
        Ok(response) => response,
        Err(error) => {
            let problem = Problem::from(error);
            node.metrics.upgrades_refused.inc(problem.code());
            let mut response = problem.response();
            if actix_http::ws::verify_handshake(request.head()).is_err() {
                // RFC 6455, 4.4: what the server would understand.
                response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            }
            response
        }
    }
}

async fn upgrade(request: &HttpRequest, body: web::Payload, node: Arc<Node>) -> Result<HttpResponse, EdgeError> {
    let headers = request.headers();
    if let Some(origin) = headers.get(header::ORIGIN)
        && !node.origins.allows(origin, headers.get(header::HOST))
    {
        return Err(EdgeError::ForbiddenOrigin);
    }
    let not_a_handshake = || EdgeError::Malformed("not a WebSocket handshake (RFC 6455, version 13)".into());
    actix_http::ws::verify_handshake(request.head()).map_err(|_| not_a_handshake())?;
    if !is_upgraded_by_transport(headers) || has_body(headers) {
        return Err(not_a_handshake());
    }
    let offer = Offer::read(request)?;
    let client = client_address(request.peer_addr(), headers, &node.trusted_proxies);
    let network = ClientNetwork::from(client);
    // A client that connects without a proxy was counted when it connected.
    if request.peer_addr().is_none_or(|peer| is_proxy(peer.ip(), &node.trusted_proxies)) {
        node.networks.connect(network, Instant::now())?;
    }
    let token = match bearer_token(headers) {
        Some(token) => token,
        None => offer.token,
    };
    let token = token.ok_or(Refusal::Unauthorized)?;
    let service = node.service.clone();
    let presented = node.runtime.spawn(async move {
        let (session, notifications) = service.present(&token).await?;
        service.notify(notifications);
        Ok::<_, Refusal>(session)
    });
    let session = presented.await.map_err(|_| Refusal::Internal)??;
    if node.hub.is_draining() {
        return Err(Refusal::Unavailable.into());
    }
    // The transport gives every handshake its wire unless the node holds as many connections as it may.
    let Some(wire) = request.extensions().get::<Rc<Wire>>().cloned() else {
        node.metrics.connections_refused.inc(Limit::Sockets);
        return Err(Refusal::Unavailable.into());
    };
    wire.keep(node.networks.enter(network, ConnectionKind::Socket, Instant::now())?);
    let (mut response, ws, messages) = actix_ws::handle(request, body).map_err(|_| not_a_handshake())?;
    if offer.named {
        let name = HeaderValue::from_static(offer.codec.subprotocol());
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, name);
    }
    let messages = messages.max_frame_size(MAX_FRAME_BYTES);
    DeviceSocket::launch(node, Upgraded { session, codec: offer.codec, ws, messages, wire, client });
    Ok(response)
}

/// Whether the HTTP layer has taken the connection out of HTTP: it does so only for an `Upgrade` of exactly this value.
fn is_upgraded_by_transport(headers: &HeaderMap) -> bool {
    let is_websocket = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket");
    headers.get_all(header::UPGRADE).any(is_websocket)
}

/// Whether the request announces a body. Proxies and libraries add `Content-Length: 0`, which is none.
fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH);
    let is_empty = length.is_none_or(|length| length.to_str().is_ok_and(|text| text.trim().parse() == Ok(0u64)));
    !is_empty || headers.contains_key(header::TRANSFER_ENCODING)
}

/// What the client offers as subprotocols.
struct Offer {
    codec: Codec,
    /// Whether the codec was offered, so that the response has to name it.
    named: bool,
    token: Option<Token>,
}

impl Offer {
    fn read(request: &HttpRequest) -> Result<Self, EdgeError> {
        let unknown = || EdgeError::Malformed("offer sealwire.v1.msgpack or sealwire.v1.json".into());
        let mut codec = None;
        let mut token = None;
        let mut any = false;
        for value in request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL) {
            let names = value.to_str().map_err(|_| unknown())?;
            for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                any = true;
                if let Some(text) = name.strip_prefix(TOKEN_SUBPROTOCOL) {
                    token = token.or_else(|| Token::parse(text));
                } else {
                    codec = codec.or_else(|| Codec::ALL.into_iter().find(|known| known.subprotocol() == name));
                }
            }
        }
        match codec {
            Some(codec) => Ok(Self { codec, named: true, token }),
            None if any => Err(unknown()),
            None => Ok(Self { codec: Codec::Json, named: false, token }),
        }
    }
}
