//! `docs/asyncapi.json`: the socket, as `AsyncAPI` 3.0. Operations are described from the server's side: it receives
//! requests and sends events.

use std::collections::BTreeMap;

use sealwire_protocol::{CloseCode, Code, events::Event, frame::Op, limits};

use super::{
    json::{Json, check, list, map, reference},
    markdown::{examples, plain, rows, section},
    rust_types::RustTypes,
};

const VERSION: &str = "3.0.0";
/// The errors that every op may fail with.
const GENERAL_ERRORS: [Code; 6] = [
    Code::BadRequest,
    Code::SessionRevoked,
    Code::TooManyInFlight,
    Code::RateLimited,
    Code::Unavailable,
    Code::Internal,
];

/// Generates the document. `protocol` is the text of `docs/protocol.md`.
pub fn document(types: &RustTypes, protocol: &str) -> Json {
    let schemas = Json::Map(types.schemas.iter().map(|(name, schema)| (name.clone(), schema.clone())).collect());
    let summaries: BTreeMap<String, String> = ["## Ops", "## Events"]
        .iter()
        .flat_map(|heading| rows(section(protocol, heading).split("\n### ").next().unwrap()))
        .map(|row| (row[0].trim_matches('`').to_owned(), sentence(&row[1])))
        .collect();
    let context = map([("components", map([("schemas", schemas.clone())]))]);
    let mut messages = Vec::new();
    let mut operations = Vec::new();
    for op in Op::ALL {
        let name = op.name();
        let (params, result) = &types.ops[name];
        let [params, result] = [params, result].map(|name| reference(&format!("#/components/schemas/{name}")));
        let text = section(protocol, &format!("### `{name}`"));
        let fits = |schema: &Json| {
            let mut examples = examples(text).into_iter();
            examples.find(|example| !example.fields().is_empty() && check(&context, schema, example).is_ok())
        };
        let has_required = context.follow(params.fields()[0].1.text()).field("required").is_some();
        let request = |params: Json| map([("id", id_example()), ("op", name.into()), ("params", params)]);
        let required: &[&str] = if has_required { &["id", "op", "params"] } else { &["id", "op"] };
        let id = request_id();
        let op_name = map([("const", name.into())]);
        let payload = frame([("id", id.clone()), ("op", op_name), ("params", params.clone())], required);
        messages.push((name.to_owned(), message(name, &summaries[name], payload, fits(&params).map(request))));
        let payload = frame([("id", id), ("result", result.clone())], &["id", "result"]);
        let reply = |result: Json| map([("id", id_example()), ("result", result)]);
        let reply =
            message(&format!("{name} reply"), &format!("The reply to `{name}`."), payload, fits(&result).map(reply));
        messages.push((format!("{name}.reply"), reply));
        operations.push((name.to_owned(), operation(name, &summaries[name], text)));
    }
    let id = request_id();
    let error = frame([("id", id), ("error", reference("#/components/schemas/ErrorBody"))], &["id", "error"]);
    messages.push(("error".to_owned(), message("error", "The reply to a request that failed.", error, None)));
    for name in Event::NAMES {
        let text = section(protocol, &format!("### `{name}`"));
        let payload =
            frame([("event", map([("const", name.into())])), ("data", types.events[name].clone())], &["event", "data"]);
        let example = examples(text).into_iter().find(|example| example.field("event").is_some());
        messages.push((name.to_owned(), message(name, &summaries[name], payload, example)));
        let operation = map([
            ("action", "send".into()),
            ("channel", reference("#/channels/socket")),
            ("summary", summaries[name].as_str().into()),
            ("messages", Json::List(vec![in_channel(name)])),
        ]);
        operations.push((name.to_owned(), operation));
    }
    let in_components = |name: &String| reference(&format!("#/components/messages/{name}"));
    let channel = map([
        ("address", "/v1/socket".into()),
        ("title", "Socket".into()),
        ("description", "One connection of a device. The first frame is the event `welcome`, or `refused` if the upgrade was refused.".into()),
        ("messages", Json::Map(messages.iter().map(|(name, _)| (name.clone(), in_components(name))).collect())),
        ("bindings", map([("ws", upgrade())])),
        ("x-close-codes", close_codes(protocol)),
        ("x-error-codes", error_codes(protocol)),
        ("x-limits", fixed_limits()),
        ("x-default-limits", default_limits(protocol)),
    ]);
    let server = map([
        ("host", "chat.example".into()),
        ("protocol", "wss".into()),
        ("description", "Your server. Without TLS in front of it: `ws`.".into()),
        ("security", Json::List(vec![reference("#/components/securitySchemes/token")])),
    ]);
    map([
        ("asyncapi", VERSION.into()),
        ("info", info("Sealwire socket", DESCRIPTION)),
        ("defaultContentType", "application/json".into()),
        ("servers", map([("sealwire", server)])),
        ("channels", map([("socket", channel)])),
        ("operations", Json::Map(operations)),
        (
            "components",
            map([
                ("messages", Json::Map(messages)),
                ("schemas", schemas),
                ("securitySchemes", map([("token", token_scheme())])),
            ]),
        ),
    ])
}

const DESCRIPTION: &str = "Everything but sign-in: publishing and claiming keys, sending and receiving messages. \
    docs/protocol.md is the contract and has the rules; openapi.json describes sign-in and health checks. \
    The schemas are those of the JSON encoding; under MessagePack the `content` of messages is `bin` instead of base64 text. \
    In requests, null means the same as an absent field. Clients ignore fields, events and names that they do not know.";

/// Returns the `info` of a document.
pub fn info(title: &str, description: &str) -> Json {
    map([
        ("title", title.into()),
        ("version", "1".into()),
        ("description", description.into()),
        ("license", map([("name", "MIT OR Apache-2.0".into()), ("url", "https://spdx.org/licenses/".into())])),
    ])
}

/// Returns the security scheme of both documents.
pub fn token_scheme() -> Json {
    let description = "The token of a session. In a browser: the subprotocol `sealwire.token.TOKEN`.";
    map([("type", "http".into()), ("scheme", "bearer".into()), ("description", description.into())])
}

fn request_id() -> Json {
    map([("type", "integer".into()), ("minimum", 1.into()), ("maximum", i64::from(u32::MAX).into())])
}

fn id_example() -> Json {
    7.into()
}

fn frame<const N: usize>(fields: [(&str, Json); N], required: &[&str]) -> Json {
    map([("type", "object".into()), ("properties", map(fields)), ("required", list(required.iter().copied()))])
}

fn message(title: &str, summary: &str, payload: Json, example: Option<Json>) -> Json {
    let message = map([("name", title.into()), ("title", title.into()), ("summary", summary.into())]);
    let is_event = payload.field("properties").unwrap().field("event").is_some();
    let correlation = map([("location", "$message.payload#/id".into())]);
    let message = if is_event { message } else { message.with([("correlationId", correlation)]) };
    let message = message.with([("payload", payload)]);
    match example {
        Some(example) => message.with([("examples", Json::List(vec![map([("payload", example)])]))]),
        None => message,
    }
}

fn in_channel(name: &str) -> Json {
    reference(&format!("#/channels/socket/messages/{name}"))
}

/// Describes an op. `text` is its section of the protocol document, which names its errors.
fn operation(name: &str, summary: &str, text: &str) -> Json {
    let reply = map([
        ("channel", reference("#/channels/socket")),
        ("messages", Json::List(vec![in_channel(&format!("{name}.reply")), in_channel("error")])),
    ]);
    let named: Vec<Code> = text.split('`').skip(1).step_by(2).filter_map(Code::parse).collect();
    let all = Code::ALL.iter().filter(|code| named.contains(code) || GENERAL_ERRORS.contains(code));
    map([
        ("action", "receive".into()),
        ("channel", reference("#/channels/socket")),
        ("summary", summary.into()),
        ("messages", Json::List(vec![in_channel(name)])),
        ("reply", reply),
        ("x-error-codes", list(all.map(|code| code.name()))),
    ])
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().unwrap().to_uppercase();
    format!("{first}{}.", letters.as_str())
}

fn upgrade() -> Json {
    let text = |description: &str| map([("type", "string".into()), ("description", description.into())]);
    let protocols = "`sealwire.v1.json` or `sealwire.v1.msgpack`; in a browser also `sealwire.token.TOKEN`";
    let headers = map([("Authorization", text("`Bearer TOKEN`")), ("Sec-WebSocket-Protocol", text(protocols))]);
    map([
        ("method", "GET".into()),
        ("headers", map([("type", "object".into()), ("properties", headers)])),
        ("bindingVersion", "0.1.0".into()),
    ])
}

fn close_codes(protocol: &str) -> Json {
    let meanings = rows(section(protocol, "## Close codes").split("\n### ").next().unwrap());
    let codes = CloseCode::ALL.iter().map(|code| {
        let row = meanings.iter().find(|row| row[0] == code.number().to_string()).unwrap();
        map([
            ("code", i64::from(code.number()).into()),
            ("reason", code.reason().into()),
            ("reconnect", (code.number() < 4500).into()),
            ("description", row[3].as_str().into()),
        ])
    });
    list(codes)
}

/// Returns the error codes with their HTTP status, for both documents.
pub fn error_codes(protocol: &str) -> Json {
    let meanings = rows(section(protocol, "## Error codes"));
    let codes = Code::ALL.iter().map(|code| {
        let row = meanings.iter().find(|row| row[0].trim_matches('`') == code.name()).unwrap();
        map([
            ("code", code.name().into()),
            ("http_status", i64::from(code.http_status()).into()),
            ("retryable", code.retryable().into()),
            ("meaning", row[3].as_str().into()),
            ("action", row[4].as_str().into()),
        ])
    });
    list(codes)
}

/// Returns the limits that an operator cannot change.
fn fixed_limits() -> Json {
    let number = |value: usize| Json::from(i64::try_from(value).unwrap());
    map([
        ("frame_bytes", number(limits::MAX_FRAME_BYTES)),
        ("content_bytes", number(limits::MAX_CONTENT)),
        ("in_flight", number(limits::MAX_IN_FLIGHT)),
        ("pool_keys", number(limits::MAX_POOL)),
        ("largest_integer", limits::MAX_INTEGER.into()),
    ])
}

/// Returns the tables of limits, with the settings that change them.
pub fn default_limits(protocol: &str) -> Json {
    let rows = rows(section(protocol, "## Limits"));
    list(rows.into_iter().map(|row| {
        let limit = map([("what", plain(&row[0]).into()), ("limit", plain(&row[1]).into())]);
        match row[2].as_str() {
            "" => limit,
            settings => limit.with([("setting", settings.replace('`', "").into())]),
        }
    }))
}
