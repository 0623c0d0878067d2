//! What browsers need: CORS for sign-in, the Origin check at the upgrade, and tokens offered as a subprotocol.

use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio_tungstenite::{
    connect_async,
    tungstenite::{
        Error,
        client::IntoClientRequest,
        http::{HeaderName, HeaderValue},
    },
};

use crate::support::{Codec, Person, Server, Socket, TestApp, code, http::call, sign_in};

const ALLOWED: &str = "https://chat.example";
const FOREIGN: &str = "https://evil.example";
const JSON: &str = "sealwire.v1.json";
const MSGPACK: &str = "sealwire.v1.msgpack";

fn app() -> TestApp {
    TestApp::start(&[("SERVER__ALLOWED_ORIGINS", ALLOWED)])
}

fn own_origin(app: &TestApp) -> String {
    format!("http://{}", app.address())
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

/// Sends a request as a page of this origin does, without a token.
async fn from_page(app: &TestApp, method: Method, path: &str, origin: &str) -> Response {
    let url = format!("http://{}{path}", app.address());
    Client::new().request(method, url).header("Origin", origin).body("{}").send().await.unwrap()
}

/// Sends the request that a browser sends before the real one.
async fn preflight(app: &TestApp, path: &str, method: &str, headers: &str, origin: &str) -> Response {
    let url = format!("http://{}{path}", app.address());
    let request = Client::new().request(Method::OPTIONS, url).header("Origin", origin);
    let request = request.header("Access-Control-Request-Method", method);
    request.header("Access-Control-Request-Headers", headers).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_the_allowed_and_the_own_origin_may_read_responses() {
    let app = app();
    let paths = [
        (Method::POST, "/v1/auth/otp", 400),
        (Method::POST, "/v1/auth/verify", 400),
        (Method::GET, "/v1/auth/session", 401),
        (Method::DELETE, "/v1/auth/session", 401),
        (Method::GET, "/v1/auth/nothing", 404),
    ];
    for (method, path, status) in paths {
        for origin in [ALLOWED.to_owned(), own_origin(&app)] {
            let response = from_page(&app, method.clone(), path, &origin).await;
            assert_eq!(response.status(), status, "refusals are readable too");
            assert_eq!(header(&response, "access-control-allow-origin"), Some(&*origin), "{path}");
            assert!(header(&response, "vary").unwrap().to_ascii_lowercase().contains("origin"));
            let exposed = header(&response, "access-control-expose-headers").unwrap().to_ascii_lowercase();
            assert!(exposed.contains("retry-after"), "{exposed}");
        }
        for origin in [FOREIGN, "null", "https://chat.example:444", "http://chat.example"] {
            let response = from_page(&app, method.clone(), path, origin).await;
            assert_eq!(response.status(), status);
            assert_eq!(header(&response, "access-control-allow-origin"), None, "{origin}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn preflights_allow_the_methods_and_headers_of_the_api() {
    let app = app();
    for (path, method, headers) in [
        ("/v1/auth/otp", "POST", "content-type"),
        ("/v1/auth/verify", "POST", "content-type"),
        ("/v1/auth/session", "GET", "authorization"),
        ("/v1/auth/session", "DELETE", "authorization,content-type"),
    ] {
        for origin in [ALLOWED.to_owned(), own_origin(&app)] {
            let response = preflight(&app, path, method, headers, &origin).await;
            assert!(response.status().is_success(), "{path} {}", response.status());
            assert_eq!(header(&response, "access-control-allow-origin"), Some(&*origin));
            let allowed = |name: &str| header(&response, name).unwrap_or_default().to_ascii_lowercase();
            assert!(allowed("access-control-allow-methods").contains(&method.to_ascii_lowercase()));
            for name in headers.split(',') {
                assert!(allowed("access-control-allow-headers").contains(name), "{name}");
            }
        }
        let response = preflight(&app, path, method, headers, FOREIGN).await;
        assert_eq!(header(&response, "access-control-allow-origin"), None);
        assert_eq!(header(&response, "access-control-allow-methods"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_all_origins_may_read_whether_the_server_is_ready() {
    let app = app();
    for origin in [ALLOWED, FOREIGN, "null"] {
        let response = from_page(&app, Method::GET, "/readyz", origin).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(header(&response, "access-control-allow-origin"), Some("*"), "{origin}");
        assert_eq!(header(&response, "access-control-allow-credentials"), None);
    }
}

/// Browsers cannot see why an upgrade was refused, so they ask here whether their token is valid.
#[tokio::test(flavor = "multi_thread")]
async fn a_browser_can_check_its_session_over_http() {
    let app = app();
    let person = sign_in(&app, "alice@example.org").await;
    let (status, body) = call(&app, Method::GET, "/v1/auth/session", Some(&person.token), None).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body["user_id"], person.user);
    assert_eq!(body["device_id"], person.device);
    assert_eq!(body["session_id"], person.session);
    assert_eq!(body.as_object().unwrap().len(), 4, "and no token: {body}");
    let unknown = person.token.replace(|c: char| c.is_ascii_lowercase(), "A");
    for token in [None, Some(""), Some("x"), Some(unknown.as_str()), Some(&person.token[1..])] {
        let (status, body) = call(&app, Method::GET, "/v1/auth/session", token, None).await;
        assert_eq!((status.as_u16(), code(&body["error"])), (401, "unauthorized"), "{token:?}");
    }
    let url = format!("http://{}/v1/auth/session", app.address());
    for value in [person.token.clone(), format!("Basic {}", person.token), format!("Bearer{}", person.token)] {
        let response = Client::new().get(&url).header("Authorization", value).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    }
    let response = Client::new().get(&url).header("Authorization", format!("bearer {}", person.token));
    assert_eq!(response.send().await.unwrap().status(), StatusCode::OK, "the scheme's case does not matter");
}

/// Requests an upgrade. Returns the chosen subprotocol, or status and error code of the refusal.
async fn upgrade(app: &TestApp, headers: &[(&str, &str)]) -> Result<Option<String>, (u16, String)> {
    let mut request = format!("ws://{}/v1/socket", app.address()).into_client_request().unwrap();
    for (name, value) in headers {
        let name: HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
    }
    match connect_async(request).await {
        Ok((_, response)) => {
            let chosen = response.headers().get("sec-websocket-protocol");
            Ok(chosen.map(|value| value.to_str().unwrap().to_owned()))
        }
        Err(Error::Http(response)) => {
            let body: Value = serde_json::from_slice(response.body().as_deref().unwrap_or_default()).unwrap();
            Err((response.status().as_u16(), code(&body["error"]).to_owned()))
        }
        // This client fails if it offers subprotocols and the server chooses none.
        Err(error) => panic!("{error}"),
    }
}

fn refused(status: u16, code: &str) -> Result<Option<String>, (u16, String)> {
    Err((status, code.to_owned()))
}

fn bearer(person: &Person) -> String {
    format!("Bearer {}", person.token)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_is_checked_for_its_origin_then_its_form_then_its_token() {
    let app = app();
    let person = sign_in(&app, "alice@example.org").await;
    let good = ("Authorization", bearer(&person));
    let good = (good.0, good.1.as_str());
    let (bad, chat) = (("Authorization", "Bearer nonsense"), ("Sec-WebSocket-Protocol", "chat"));
    for origin in [FOREIGN, "null", "https://chat.example.evil", ""] {
        let origin = ("Origin", origin);
        assert_eq!(upgrade(&app, &[origin, good]).await, refused(403, "forbidden_origin"));
        assert_eq!(upgrade(&app, &[origin, bad, chat]).await, refused(403, "forbidden_origin"));
        assert_eq!(upgrade(&app, &[origin]).await, refused(403, "forbidden_origin"));
    }
    let own = own_origin(&app);
    for origin in [ALLOWED, &own] {
        let origin = ("Origin", origin);
        assert_eq!(upgrade(&app, &[origin, bad, chat]).await, refused(400, "bad_request"));
        assert_eq!(upgrade(&app, &[origin, good, chat]).await, refused(400, "bad_request"));
        assert_eq!(upgrade(&app, &[origin, bad]).await, refused(401, "unauthorized"));
        assert_eq!(upgrade(&app, &[origin]).await, refused(401, "unauthorized"));
        assert_eq!(upgrade(&app, &[origin, good]).await, Ok(None));
    }
    assert_eq!(upgrade(&app, &[good]).await, Ok(None), "a client that sends no Origin is not a browser");
}

/// Requests that are not a WebSocket handshake are refused in the same order.
#[tokio::test(flavor = "multi_thread")]
async fn a_plain_request_to_the_socket_is_a_bad_request() {
    let app = app();
    let url = format!("http://{}/v1/socket", app.address());
    let plain = Client::new().get(&url).send().await.unwrap();
    assert_eq!(plain.status(), StatusCode::BAD_REQUEST);
    let foreign = Client::new().get(&url).header("Origin", FOREIGN).send().await.unwrap();
    assert_eq!(foreign.status(), StatusCode::FORBIDDEN);
    let posted = Client::new().post(&url).send().await.unwrap();
    assert_eq!(posted.status(), StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_may_be_offered_as_a_subprotocol_and_is_never_echoed() {
    let app = app();
    let person = sign_in(&app, "alice@example.org").await;
    let token = format!("sealwire.token.{}", person.token);
    let offer = |names: &[&str]| names.join(", ");
    for (names, chosen) in [
        (offer(&[JSON, &token]), JSON),
        (offer(&[&token, MSGPACK]), MSGPACK),
        (offer(&["chat", MSGPACK, &token, JSON]), MSGPACK),
        (offer(&["sealwire.v2.json", JSON, &token]), JSON),
    ] {
        let headers = [("Origin", ALLOWED), ("Sec-WebSocket-Protocol", names.as_str())];
        assert_eq!(upgrade(&app, &headers).await, Ok(Some(chosen.to_owned())), "the first known subprotocol is chosen");
    }
    for names in [offer(&[&token]), offer(&[&token, "chat"]), offer(&["chat"])] {
        let headers = [("Origin", ALLOWED), ("Sec-WebSocket-Protocol", names.as_str())];
        assert_eq!(upgrade(&app, &headers).await, refused(400, "bad_request"), "{names}");
    }
    let headers = [("Origin", ALLOWED), ("Sec-WebSocket-Protocol", JSON)];
    assert_eq!(upgrade(&app, &headers).await, refused(401, "unauthorized"), "no token at all");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authorization_header_takes_precedence_over_an_offered_token() {
    let app = app();
    let (alice, bob) = (sign_in(&app, "alice@example.org").await, sign_in(&app, "bob@example.org").await);
    let offer = format!("{JSON}, sealwire.token.{}", bob.token);
    let offer = ("Sec-WebSocket-Protocol", offer.as_str());
    for wrong in ["Bearer nonsense", "Bearer"] {
        assert_eq!(upgrade(&app, &[("Authorization", wrong), offer]).await, refused(401, "unauthorized"), "{wrong}");
    }
    let bobs = Socket::connect(&app, &bob.token, Codec::Json).await;
    assert_eq!(upgrade(&app, &[("Authorization", &bearer(&alice)), offer]).await, Ok(Some(JSON.to_owned())));
    bobs.barrier().await;
    assert!(!bobs.is_closed(), "Bob's connection would have been displaced by his token");
    // A browser sends this header if a proxy asks for a password.
    assert_eq!(upgrade(&app, &[("Authorization", "Basic YWxpY2U6eA=="), offer]).await, Ok(Some(JSON.to_owned())));
    assert_eq!(bobs.close_code().await, 4503);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_configured_origins_only_the_own_origin_is_allowed() {
    let app = TestApp::start(&[]);
    let person = sign_in(&app, "alice@example.org").await;
    let authorization = bearer(&person);
    let authorization = ("Authorization", authorization.as_str());
    assert_eq!(upgrade(&app, &[("Origin", ALLOWED), authorization]).await, refused(403, "forbidden_origin"));
    assert_eq!(upgrade(&app, &[("Origin", &own_origin(&app)), authorization]).await, Ok(None));
    let response = from_page(&app, Method::POST, "/v1/auth/otp", ALLOWED).await;
    assert_eq!(header(&response, "access-control-allow-origin"), None);
    let body = json!({ "email": "alice@example.org" }).to_string();
    let url = format!("http://{}/v1/auth/otp", app.address());
    let asked = Client::new().post(url).header("Origin", own_origin(&app)).body(body).send().await.unwrap();
    assert_eq!(asked.status(), StatusCode::ACCEPTED);
    assert_eq!(header(&asked, "access-control-allow-origin"), Some(&*own_origin(&app)));
}
