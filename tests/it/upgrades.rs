//! Upgrades: which are accepted, which are refused and why, and the welcome.

use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::{
    metrics::wait_for_sample,
    support::{
        Cluster, Codec, Person, RowLock, Server, Services, Socket, TestApp, eventually,
        raw::{CLOSE, HANDSHAKE, RawSocket, connect_from, frame, request_upgrade},
        sign_in,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn the_welcome_is_the_first_frame_and_has_the_documented_fields() {
    let app = TestApp::with_clock(&[]);
    let person = sign_in(&app, "frames@example.org").await;
    let Person { user, device, session, token, .. } = &person;
    let none = json!({
        "suite": null, "identity_key": null, "signed_prekey": null, "pq_last_resort": null,
        "one_time": 0, "pq_one_time": 0, "threshold": 20, "pool_version": 0,
    });
    for codec in Codec::ALL {
        let (_, welcome) = RawSocket::connect(&app, token, codec).await;
        // The server draws its key at the first start.
        let vapid_key = &welcome["data"]["push"]["vapid_public_key"];
        assert_eq!(vapid_key.as_str().unwrap().len(), 87, "65 bytes of unpadded base64url");
        let expected = json!({ "event": "welcome", "data": {
            "session_id": session, "user_id": user, "device_id": device,
            "expires_at": "2026-07-01T12:00:00.000000Z", "server_time": "2026-06-01T12:00:00.000000Z",
            "heartbeat_s": 25,
            "limits": { "frame_bytes": 512 * 1024, "content_bytes": 32768, "in_flight": 64 },
            "keys": none,
            "mailbox": { "waiting": 0, "expired_total": 0 },
            "features": ["replace", "skip", "suites", "access", "blocks", "lock", "push"],
            "push": { "state": "none", "vapid_public_key": vapid_key, "kinds": ["webpush"] },
        }});
        assert_eq!(welcome, expected, "{codec:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_connections_no_longer_count_towards_the_limit() {
    let app = TestApp::start(&[("SERVER__MAX_CONNECTIONS", "2")]);
    let token = sign_in(&app, "frames@example.org").await.token;
    let bearer = format!("Bearer {token}");
    let headers = [&HANDSHAKE[..], &[("authorization", bearer.as_str())]].concat();
    let connect = || async {
        let (answer, socket) = request_upgrade(&app, &headers).await;
        (answer.status == 101).then_some(socket)
    };
    for round in 0..12 {
        let mut socket = eventually("the node can take one more socket", connect).await;
        assert!(socket.message().await.is_some(), "the welcome");
        match round % 3 {
            0 => socket.reset(),
            1 => drop(socket),
            _ => {
                socket.shutdown().await;
                while socket.frame().await.is_some() {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_gone_before_its_upgrade_is_answered_keeps_no_place() {
    let cluster = Cluster::start(&Services::shared(), 1, &[]).await;
    let node = &cluster.nodes[0];
    let token = sign_in(node, "frames@example.org").await.token;
    let mut lock = RowLock::lock_sessions(&cluster).await;
    let mut client = connect_from([127, 0, 0, 1], node).await;
    let handshake = HANDSHAKE.map(|(name, value)| format!("{name}: {value}\r\n")).concat();
    let request = format!(
        "GET /v1/socket HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n{handshake}\r\n",
        node.address()
    );
    client.write_all(request.as_bytes()).await.unwrap();
    // The server looks up the token.
    lock.wait_for_waiters(1).await;
    client.set_zero_linger().unwrap();
    drop(client);
    lock.release().await;
    let other = Socket::connect(node, &sign_in(node, "other@example.org").await.token, Codec::Json).await;
    // Long before sockets that nobody reads would be closed.
    wait_for_sample(node.admin(), "sealwire_open_sockets", 1.0..=1.0).await;
    other.barrier().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_refuses_sockets_and_serves_http() {
    let app = TestApp::start(&[("SERVER__MAX_CONNECTIONS", "2")]);
    let mut users = Vec::new();
    for index in 0..3 {
        users.push(sign_in(&app, &format!("frames{index}@example.org")).await);
    }
    let (mut first, _) = RawSocket::connect(&app, &users[0].token, Codec::Json).await;
    let (_second, _) = RawSocket::connect(&app, &users[1].token, Codec::Json).await;
    let bearer = format!("Bearer {}", users[2].token);
    let headers = [&HANDSHAKE[..], &[("authorization", bearer.as_str())]].concat();
    let (answer, _) = request_upgrade(&app, &headers).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.body["error"]["code"], "unavailable");
    assert!(answer.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().unwrap() >= 1));
    assert_eq!(request_upgrade(&app, &HANDSHAKE).await.0.status, 401, "the token is checked before the limit");
    sign_in(&app, "frames3@example.org").await;
    first.send(&frame(CLOSE, b"")).await;
    first.close_code().await;
    eventually("the node can take one more socket", || async {
        (request_upgrade(&app, &headers).await.0.status == 101).then_some(())
    })
    .await;
}

/// What is tested, the request's headers, the status, and the error code or the chosen subprotocol.
type Case = (&'static str, Vec<(String, String)>, u16, &'static str);

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_is_refused_for_the_documented_reasons_in_the_documented_order() {
    let app = TestApp::start(&[]);
    let token = sign_in(&app, "frames@example.org").await.token;
    let bearer = format!("Bearer {token}");
    let offer = format!("sealwire.token.{token}");
    let unknown = format!("Bearer {}", "A".repeat(43));
    let own = format!("http://{}", crate::support::Server::address(&app));
    let (auth, protocol) = ("authorization", "sec-websocket-protocol");
    let with = |more: &[(&'static str, &str)]| -> Vec<(String, String)> {
        let all = HANDSHAKE.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let replaced = |name: &str| more.iter().any(|(other, _)| *other == name);
        let all = all.enumerate().filter(|(at, (name, _))| *at >= HANDSHAKE.len() || !replaced(name));
        all.map(|(_, header)| header).filter(|(_, value)| !value.is_empty()).collect()
    };
    let (both, json, both_token) = (
        "x, sealwire.v1.json, sealwire.v1.msgpack",
        "sealwire.v1.json",
        format!("sealwire.v1.msgpack, {offer}, sealwire.v1.json"),
    );
    let bad_offer = format!("{json}, sealwire.token.x");
    let table: Vec<Case> = vec![
        ("no subprotocol", with(&[(auth, &bearer)]), 101, ""),
        ("first known one offered", with(&[(auth, &bearer), (protocol, both)]), 101, json),
        ("token offered", with(&[(protocol, &both_token)]), 101, "sealwire.v1.msgpack"),
        ("the header takes precedence", with(&[(auth, &unknown), (protocol, &both_token)]), 401, "unauthorized"),
        ("two subprotocol headers", with(&[(protocol, json), (protocol, &offer)]), 101, json),
        (
            "another scheme beside an offered token",
            with(&[(auth, "Basic dTpw"), (protocol, &both_token)]),
            101,
            "sealwire.v1.msgpack",
        ),
        ("no body", with(&[(auth, &bearer), ("content-length", "0")]), 101, ""),
        ("a body", with(&[(auth, &bearer), ("content-length", "5")]), 400, "bad_request"),
        ("a chunked body", with(&[(auth, &bearer), ("transfer-encoding", "chunked")]), 400, "bad_request"),
        ("several tokens in Connection", with(&[(auth, &bearer), ("connection", "keep-alive, Upgrade")]), 101, ""),
        (
            "two Connection headers",
            with(&[(auth, &bearer), ("connection", "keep-alive"), ("connection", "Upgrade")]),
            101,
            "",
        ),
        ("other case", with(&[(auth, &bearer), ("connection", "upgrade"), ("upgrade", "WebSocket")]), 101, ""),
        ("an extension", with(&[(auth, &bearer), ("sec-websocket-extensions", "permessage-deflate")]), 101, ""),
        ("own origin", with(&[(auth, &bearer), ("origin", &own)]), 101, ""),
        ("foreign origin", with(&[("origin", "https://evil.example"), ("upgrade", "")]), 403, "forbidden_origin"),
        ("no Upgrade", with(&[(auth, &bearer), ("upgrade", "")]), 400, "bad_request"),
        ("several protocols in Upgrade", with(&[(auth, &bearer), ("upgrade", "websocket, h2c")]), 400, "bad_request"),
        ("other Upgrade", with(&[(auth, &bearer), ("upgrade", "h2c")]), 400, "bad_request"),
        ("no Connection", with(&[(auth, &bearer), ("connection", "")]), 400, "bad_request"),
        ("version 12", with(&[(auth, &bearer), ("sec-websocket-version", "12")]), 400, "bad_request"),
        ("no version", with(&[(auth, &bearer), ("sec-websocket-version", "")]), 400, "bad_request"),
        ("no key", with(&[(auth, &bearer), ("sec-websocket-key", "")]), 400, "bad_request"),
        ("unknown subprotocols", with(&[(auth, &bearer), (protocol, "chat, sealwire.v2.json")]), 400, "bad_request"),
        ("a token alone", with(&[(protocol, &offer)]), 400, "bad_request"),
        ("form before token", with(&[(auth, "Bearer x"), (protocol, "chat")]), 400, "bad_request"),
        ("no token", with(&[]), 401, "unauthorized"),
        ("unknown token", with(&[(auth, &unknown)]), 401, "unauthorized"),
        ("short token", with(&[(auth, &bearer[..40])]), 401, "unauthorized"),
        ("other scheme", with(&[(auth, &format!("Basic {token}"))]), 401, "unauthorized"),
        ("bad token offered", with(&[(protocol, &bad_offer)]), 401, "unauthorized"),
    ];
    for (what, headers, status, word) in &table {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let (answer, _) = request_upgrade(&app, &headers).await;
        assert_eq!(answer.status, *status, "{what}: {}", answer.body);
        if *status == 101 {
            assert_eq!(answer.header(protocol).unwrap_or_default(), *word, "{what}");
            assert_eq!(answer.header("sec-websocket-extensions"), None, "{what}");
            continue;
        }
        assert_eq!(answer.body["error"]["code"], *word, "{what}");
        if what.contains("version") {
            assert_eq!(answer.header("sec-websocket-version"), Some("13"), "{what}");
            // The HTTP parser refuses this itself, without a body.
            let headers = [&HANDSHAKE[..], &[(auth, bearer.as_str()), ("content-length", "0x0")]].concat();
            assert_eq!(request_upgrade(&app, &headers).await.0.status, 400);
        }
    }
}
