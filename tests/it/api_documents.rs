//! Generates `docs/asyncapi.json` and `docs/openapi.json` from the sources of `crates/protocol`, its tables of ops, events
//! and codes, and texts of `docs/protocol.md`.
//!
//! After a change of any of these, run `UPDATE_API_DOCUMENTS=1 cargo test --test it -- api_documents` to write them again.
//!
//! `the_documents_are_up_to_date` generates the documents and compares them with the files, so that every field of a Rust
//! type is in them. Generation panics on a type that it cannot translate, and on an op or event without a schema, so that
//! nothing is omitted unnoticed. The other tests compare the documents with independent sources: the examples in
//! `docs/protocol.md` and the responses of a running server.

mod asyncapi;
mod json;
mod markdown;
mod openapi;
mod rust_types;

use std::{collections::BTreeMap, env, fs, path::Path};

use reqwest::{Client, Method};
use sealwire::domain::Suite;
use sealwire_protocol::{events::Event, frame::Op};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::support::{
    Codec, KeySet, Server, Socket, TestApp,
    http::{challenge, confirmation, post},
    keys::base64,
    mailing::message,
    push_service::PushService,
    sign_in,
};
use json::{Json, check, map, reference};
use markdown::{examples, rows, section};
use openapi::{ENDPOINTS, REQUESTS};
use rust_types::{RustTypes, sources};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn types() -> RustTypes {
    RustTypes::read(sources().values(), &REQUESTS)
}

/// Generates both documents from these types.
fn documents(types: &RustTypes) -> [(&'static str, Json); 2] {
    let protocol = read("docs/protocol.md");
    [
        ("docs/asyncapi.json", asyncapi::document(types, &protocol)),
        ("docs/openapi.json", openapi::document(types, &protocol)),
    ]
}

fn component(name: &str) -> Json {
    reference(&format!("#/components/schemas/{name}"))
}

#[test]
fn the_documents_are_up_to_date() {
    for (path, document) in documents(&types()) {
        let expected = document.pretty();
        if env::var_os("UPDATE_API_DOCUMENTS").is_some() {
            fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(path), expected).unwrap();
            continue;
        }
        let written = read(path);
        let mut lines = expected.lines().zip(written.lines()).enumerate();
        if let Some((number, (new, old))) = lines.find(|(_, (new, old))| new != old) {
            panic!(
                "{path} is not current. Line {} is\n{old}\nand should be\n{new}\nWrite it again with \
                 UPDATE_API_DOCUMENTS=1 cargo test --test it -- api_documents",
                number + 1
            );
        }
        assert_eq!(expected.len(), written.len(), "{path} is not current");
    }
}

/// Adds a field to requests, a reply, the data of an event and the details of an error. Each must change a document.
#[test]
fn a_field_that_is_added_to_a_type_changes_the_documents() {
    let additions = [
        ("pub struct VerifyRequest {", "pub added: Option<u32>,"),
        ("pub struct SendMessageReply {", "pub added: u32,"),
        ("pub struct PublishedKey {", "#[serde(skip_serializing_if = \"Option::is_none\")] pub added: Option<Text>,"),
        ("    SignedPrekeyExpiring {", "added: Option<u32>,"),
        ("    Mismatch {", "added: Option<u32>,"),
    ];
    let current = documents(&types());
    for (at, field) in additions {
        let mut sources = sources();
        let source = sources.values_mut().find(|text| text.contains(at)).unwrap_or_else(|| panic!("{at} is gone"));
        *source = source.replacen(at, &format!("{at} {field}"), 1);
        let changed = documents(&RustTypes::read(sources.values(), &REQUESTS));
        let differs = changed.iter().zip(&current).any(|(changed, current)| changed != current);
        assert!(differs, "{at} {field}");
    }
}

#[test]
fn every_op_and_every_event_is_described() {
    let types = types();
    assert!(types.ops.keys().eq(sorted(Op::ALL.iter().map(|op| op.name())).iter()));
    assert!(types.events.keys().eq(sorted(Event::NAMES).iter()));
    for (path, document) in documents(&types) {
        for (name, schema) in document.follow("#/components/schemas").fields() {
            assert_eq!(types.schemas.get(name), Some(schema), "{path}: {name}");
        }
    }
}

fn sorted<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_unstable();
    names
}

#[test]
fn the_endpoints_are_those_in_the_protocol_document() {
    let protocol = read("docs/protocol.md");
    let (table, _) = section(&protocol, "## HTTP").split_once("\n\nA token").unwrap();
    let listed: Vec<(String, String)> = rows(table)
        .into_iter()
        .map(|row| {
            let request = row[0].split('`').nth(1).unwrap().to_owned();
            let status = row[1].chars().take_while(char::is_ascii_digit).collect();
            (request, status)
        })
        .collect();
    let described = ENDPOINTS.iter().map(|one| (format!("{} {}", one.method, one.path), one.success[0].0.to_string()));
    assert_eq!(listed, described.collect::<Vec<_>>());
}

/// Every JSON example in `docs/protocol.md` fits a schema of its section.
#[test]
fn the_examples_of_the_protocol_fit_the_schemas() {
    let types = types();
    let protocol = read("docs/protocol.md");
    let [(_, asyncapi), _] = documents(&types);
    let payloads: BTreeMap<&str, Json> = asyncapi
        .follow("#/components/messages")
        .fields()
        .iter()
        .map(|(name, message)| (name.as_str(), message.field("payload").unwrap().clone()))
        .collect();
    let elsewhere = [
        "OtpRequest",
        "OtpReply",
        "VerifyRequest",
        "SessionReply",
        "ApprovalRequestedReply",
        "PollApprovalRequest",
        "HealthReply",
        "HttpErrorBody",
        "ErrorBody",
    ];
    let elsewhere: Vec<Json> = elsewhere.map(component).into_iter().chain(payloads.values().cloned()).collect();
    let document = asyncapi_with_http(&asyncapi, &types);
    let mut checked = 0;
    for part in format!("\n{protocol}").split("\n## ").flat_map(|chapter| chapter.split("\n### ")) {
        let (heading, text) = part.split_once('\n').unwrap_or((part, ""));
        let name = heading.trim_matches('`');
        let schemas: Vec<Json> = match (types.ops.get(name), types.events.contains_key(name)) {
            (Some((params, result)), _) => {
                // A part of the result may be shown alone.
                let parts =
                    types.schemas[result].field("properties").unwrap().fields().iter().map(|(_, part)| part.clone());
                parts.chain([component(params), component(result), component("ErrorBody")]).collect()
            }
            (None, true) => vec![payloads[name].clone()],
            (None, false) => elsewhere.clone(),
        };
        for example in examples(&format!("\n{text}")) {
            let faults = schemas.iter().map_while(|schema| check(&document, schema, &example).err());
            let faults: Vec<String> = faults.collect();
            let shown = &faults[..faults.len().min(schemas.len()).min(3)];
            assert!(faults.len() < schemas.len(), "{heading}: {example} fits no schema: {}", shown.join("; "));
            checked += 1;
        }
    }
    assert!(checked > 30, "only {checked} examples were found");
}

/// Returns the document with the schemas of all types, including those used only over HTTP.
fn asyncapi_with_http(asyncapi: &Json, types: &RustTypes) -> Json {
    let Json::Map(mut fields) = asyncapi.clone() else { unreachable!("a document is a map") };
    fields.retain(|(name, _)| name != "components");
    let schemas = types.schemas.iter().map(|(name, schema)| (name.clone(), schema.clone())).collect();
    Json::Map(fields).with([("components", map([("schemas", Json::Map(schemas))]))])
}

/// The status and body of each response are described in `docs/openapi.json`.
#[tokio::test(flavor = "multi_thread")]
async fn http_responses_of_a_server_fit_the_document() {
    let app = TestApp::start(&[]);
    let [_, (_, openapi)] = documents(&types());
    let person = sign_in(&app, "alice@example.org").await;
    let (challenge_id, code) = challenge(&app, "bob@example.org").await;
    let verify = json!({ "challenge_id": challenge_id, "email": "bob@example.org", "code": code });
    for endpoint in ENDPOINTS {
        let body = match endpoint.path {
            "/v1/auth/otp" => json!({ "email": "carol@example.org" }),
            "/v1/auth/verify" => verify.clone(),
            "/v1/auth/approval" => json!({ "request_id": challenge_id, "poll_token": "wrong" }),
            _ => Value::Null,
        };
        let method: Method = endpoint.method.parse().unwrap();
        let url = format!("http://{}{}", app.address(), endpoint.path);
        // First without token and body, which fails unless neither is needed.
        for (token, body) in [(None, None), (Some(&person.token), Some(body))] {
            let mut request = Client::new().request(method.clone(), &url);
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            if let Some(body) = body.filter(|body| !body.is_null()) {
                request = request.body(body.to_string());
            }
            let response = request.send().await.unwrap();
            let (status, text) = (response.status().as_u16(), response.text().await.unwrap_or_default());
            let place = format!("#/paths/{}/{}", endpoint.path, endpoint.method.to_lowercase());
            let operation = openapi.field("paths").and_then(|paths| paths.field(endpoint.path)).unwrap();
            let operation = operation.field(&endpoint.method.to_lowercase()).unwrap();
            let described = operation.field("responses").unwrap().field(&status.to_string());
            let described = described.unwrap_or_else(|| panic!("{place}: the status {status} is not described"));
            match described.field("content").and_then(|content| content.field("application/json")) {
                Some(content) => check(&openapi, content.field("schema").unwrap(), &Json::parse(&text))
                    .unwrap_or_else(|error| panic!("{place} {status}: {error}")),
                None => assert_eq!(text, "", "{place} {status}"),
            }
            let code = serde_json::from_str::<Value>(&text)
                .ok()
                .and_then(|body| body["error"]["code"].as_str().map(str::to_owned));
            if let Some(code) = code {
                let codes = described.field("description").unwrap().text();
                assert!(codes.contains(&format!("`{code}`")), "{place} {status}: {code} is not one of {codes}");
            }
        }
    }
}

/// The parameters and result of every op, and the events sent meanwhile, fit `docs/asyncapi.json`.
#[tokio::test(flavor = "multi_thread")]
async fn replies_and_events_of_a_server_fit_the_document() {
    let app = TestApp::start(&[("PUSH__ALLOW_INSECURE", "true")]);
    let types = types();
    let [(_, asyncapi), _] = documents(&types);
    let alice = sign_in(&app, "alice@example.org").await;
    let bob = sign_in(&app, "bob@example.org").await;
    let socket = Socket::connect(&app, &alice.token, Codec::Json).await;
    let other = Socket::connect(&app, &bob.token, Codec::Json).await;
    let mut keys = KeySet::new(Suite::SignalPqxdh, 1);
    let replaced = sign_in(&app, "alice@example.org").await;
    let changed = socket.event("devices.changed").await;
    let sessions_changed = socket.event("sessions.changed").await;
    let deletion = confirmation(&app, "bob@example.org", "delete").await;
    let mut change = confirmation(&app, "new@example.org", "change_email").await;
    change["email"] = json!("new@example.org");
    // A device that has published decides a request that was made under a lock.
    socket.request("keys.publish", keys.complete([9])).await;
    let lock = json!({ "recovery_key_hash": base64(&Sha256::digest([1; 32])) });
    socket.request("account.lock", lock.clone()).await;
    let (challenge_id, code) = challenge(&app, "alice@example.org").await;
    let verify = json!({ "challenge_id": challenge_id, "email": "alice@example.org", "code": code });
    let approval = post(&app, "/v1/auth/verify", verify).await.1["approval"].clone();
    let requested = socket.event("devices.requested").await;
    let (service, nonce) = (PushService::start().await, std::cell::RefCell::new(Value::Null));
    let subscription = service.subscribe();
    let params = |op: Op, keys: &mut KeySet| match op {
        Op::PushRegister => subscription.params(),
        Op::PushConfirm => json!({ "nonce": *nonce.borrow() }),
        Op::DevicesRename => json!({ "name": "Phone" }),
        Op::DevicesRevoke => json!({ "device_id": replaced.device }),
        Op::SessionsEnd => json!({ "session_id": replaced.session }),
        Op::AccountDelete => deletion.clone(),
        Op::AccountChangeEmail => change.clone(),
        Op::UsersFind => json!({ "email": "bob@example.org" }),
        Op::KeysPublish => keys.complete(1..=2),
        Op::KeysFetch => json!({ "user_id": bob.user }),
        Op::KeysClaim => json!({ "user_id": bob.user, "claim_id": Uuid::new_v4() }),
        Op::MessagesSend => message(&[&bob], "hello"),
        Op::MessagesAck => json!({ "seqs": [1] }),
        Op::DevicesDecide => json!({ "request_id": approval["request_id"], "approve": false }),
        Op::AccountLock => lock.clone(),
        Op::AccountUnlock => json!({ "recovery_key": base64(&[1; 32]) }),
        Op::AccessSet => json!({ "strangers": "limit" }),
        Op::BlocksAdd | Op::BlocksRemove => json!({ "user_id": Uuid::new_v4() }),
        _ => json!({}),
    };
    // A single key, so that the claim empties the pool and causes `prekeys.low`.
    other.request("keys.publish", KeySet::new(Suite::SignalPqxdh, 2).complete([1])).await;
    let fits = |schema: &Json, value: &Value, what: &str| {
        check(&asyncapi, schema, &value.into()).unwrap_or_else(|error| panic!("{what}: {error}"));
    };
    // Ops that end the session come last.
    let (ending, other_ops): (Vec<Op>, Vec<Op>) =
        Op::ALL.iter().copied().partition(|op| matches!(op, Op::SessionLogout | Op::AccountDelete));
    for op in other_ops {
        if op == Op::PushConfirm {
            let push = service.arrived(&subscription, 1).await.remove(0);
            *nonce.borrow_mut() = subscription.decrypt(&push)["nonce"].take();
        }
        let (request, reply) = &types.ops[op.name()];
        let params = params(op, &mut keys);
        fits(&component(request), &params, op.name());
        fits(&component(reply), &socket.request(op.name(), params).await, op.name());
    }
    fits(&component("Welcome"), &socket.welcome, "welcome");
    fits(&types.events["devices.changed"], &changed, "devices.changed");
    fits(&types.events["devices.requested"], &requested, "devices.requested");
    fits(&types.events["sessions.changed"], &sessions_changed, "sessions.changed");
    fits(&types.events["message"], &other.event("message").await, "message");
    fits(&types.events["prekeys.low"], &other.event("prekeys.low").await, "prekeys.low");
    for (op, socket) in ending.into_iter().zip([&socket, &other]) {
        let params = params(op, &mut keys);
        fits(&component(&types.ops[op.name()].0), &params, op.name());
        fits(&component(&types.ops[op.name()].1), &socket.request(op.name(), params).await, op.name());
        fits(&types.events["session.revoked"], &socket.event("session.revoked").await, "session.revoked");
    }
}
