//! Generates the schemas of the types in `crates/protocol` from its sources: names, types and documentation of all fields.
//! Panics on everything that it cannot translate, so that nothing is omitted unnoticed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use sealwire_protocol::{Code, auth::CodePurpose, frame::Op, keys::Suite, limits};
use syn::{
    Attribute, Expr, ExprLit, Field, Fields, GenericArgument, ImplItem, Item, Lit, LitStr, Meta, PathArguments, Type,
    Visibility,
};

use super::json::{Json, list, map, reference};

/// Types without a schema, because their (de)serialization is not fully derived.
const NOT_DERIVED: [&str; 2] = ["ReplyFrame", "RequestFrame"];
const MAX_KEY_ID: i64 = (1 << 31) - 1;

/// The schemas generated from the sources.
pub struct RustTypes {
    /// The schemas of all types, by name.
    pub schemas: BTreeMap<String, Json>,
    /// The names of the parameter and result types, by the name of the op.
    pub ops: BTreeMap<String, (String, String)>,
    /// The schemas of event data, by the name of the event.
    pub events: BTreeMap<String, Json>,
    /// The names of the request types and of all types that they contain.
    requests: BTreeSet<String>,
}

/// Reads the sources of the protocol crate.
pub fn sources() -> BTreeMap<PathBuf, String> {
    fn read(folder: &Path, files: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, files);
            } else if !path.ends_with("shapes.rs") {
                files.insert(path.clone(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut files = BTreeMap::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/protocol/src"), &mut files);
    files
}

impl RustTypes {
    /// Reads the types. `http_requests` are the names of the types of HTTP request bodies.
    pub fn read<'a>(sources: impl IntoIterator<Item = &'a String>, http_requests: &[&str]) -> Self {
        let files: Vec<syn::File> = sources.into_iter().map(|text| syn::parse_file(text).unwrap()).collect();
        let items: Vec<&Item> = files.iter().flat_map(|file| &file.items).collect();
        let mut types = Self {
            schemas: BTreeMap::new(),
            ops: BTreeMap::new(),
            events: BTreeMap::new(),
            requests: http_requests.iter().map(|name| (*name).to_owned()).collect(),
        };
        for item in &items {
            if let Item::Impl(item) = item {
                types.read_op(item);
            }
        }
        types.requests.extend(types.ops.values().map(|(params, _)| params.clone()));
        types.follow_requests(&items);
        for item in items {
            match item {
                Item::Struct(item) if is_public(&item.vis) && !NOT_DERIVED.contains(&&*item.ident.to_string()) => {
                    let derives = derives(&item.attrs);
                    let is_named = matches!(item.fields, Fields::Named(_));
                    if !is_named || derives == (false, false) {
                        continue;
                    }
                    let name = item.ident.to_string();
                    assert_eq!(derives, (true, true), "{name} must be readable and writable");
                    let is_request = types.requests.contains(&name);
                    let schema = object(&name, &item.attrs, &item.fields, is_request);
                    types.add(&name, schema);
                }
                Item::Enum(item) if derives(&item.attrs) == (true, true) => types.read_enum(item),
                _ => {}
            }
        }
        let names = |names: Vec<&str>| map([("type", "string".into()), ("enum", list(names))]);
        types.add("Suite", names(Suite::ALL.iter().map(|suite| suite.as_str()).collect()));
        types.add("CodePurpose", names(CodePurpose::ALL.iter().map(|purpose| purpose.name()).collect()));
        types.add("Code", names(Code::ALL.iter().map(|code| code.name()).collect()));
        types
    }

    fn add(&mut self, name: &str, schema: Json) {
        assert!(self.schemas.insert(name.to_owned(), schema).is_none(), "two types have the name {name}");
    }

    fn read_op(&mut self, item: &syn::ItemImpl) {
        let Some((path, _)) = &item.trait_ else { return };
        if !path.is_ident("SocketRequest") {
            return;
        }
        let mut op = None;
        let mut reply = None;
        for item in &item.items {
            match item {
                ImplItem::Const(item) => {
                    let Expr::Path(path) = &item.expr else { panic!("OP is not a path") };
                    op = path.path.segments.last().map(|segment| segment.ident.to_string());
                }
                ImplItem::Type(item) => reply = Some(name_of(&item.ty)),
                _ => {}
            }
        }
        let variant = op.unwrap();
        let op = Op::ALL.iter().find(|op| format!("{op:?}") == variant).unwrap();
        let types = (name_of(&item.self_ty), reply.unwrap());
        assert!(self.ops.insert(op.name().to_owned(), types).is_none(), "{variant} has two requests");
    }

    /// Adds all types that the requests contain to `requests`.
    fn follow_requests(&mut self, items: &[&Item]) {
        loop {
            let before = self.requests.len();
            for item in items {
                let Item::Struct(item) = item else { continue };
                if matches!(item.fields, Fields::Named(_)) && self.requests.contains(&item.ident.to_string()) {
                    let inner = item.fields.iter().map(|field| innermost(&field.ty));
                    self.requests.extend(inner);
                }
            }
            if self.requests.len() == before {
                return;
            }
        }
    }

    fn read_enum(&mut self, item: &syn::ItemEnum) {
        let name = item.ident.to_string();
        let serde = serde_attributes(&item.attrs);
        if serde.contains_key("untagged") {
            let written = item.variants.iter().filter(|variant| {
                let serde = serde_attributes(&variant.attrs);
                !serde.contains_key("skip_serializing")
            });
            let variants = written.map(|variant| match &variant.fields {
                Fields::Named(_) => map([("title", variant.ident.to_string().into())]).joined(object(
                    "",
                    &variant.attrs,
                    &variant.fields,
                    false,
                )),
                Fields::Unnamed(fields) if fields.unnamed.len() == 1 => schema(&fields.unnamed[0].ty),
                Fields::Unnamed(_) | Fields::Unit => panic!("{name} has an unusual variant"),
            });
            let variants: Vec<Json> = variants.collect();
            self.add(&name, described(&item.attrs, map([("anyOf", Json::List(variants))])));
        } else if serde.contains_key("content") {
            for variant in &item.variants {
                let event = serde_attributes(&variant.attrs).remove("rename").flatten().expect("events have names");
                let data = match &variant.fields {
                    Fields::Unnamed(fields) if fields.unnamed.len() == 1 => schema(&fields.unnamed[0].ty),
                    Fields::Named(_) => {
                        let name = variant.ident.to_string();
                        self.add(&name, object("", &variant.attrs, &variant.fields, false));
                        reference(&format!("#/components/schemas/{name}"))
                    }
                    Fields::Unnamed(_) | Fields::Unit => panic!("{event} has unusual data"),
                };
                self.events.insert(event, data);
            }
        } else {
            assert_eq!(serde.get("rename_all"), Some(&Some("snake_case".to_owned())), "{name}");
            let mut descriptions = Vec::new();
            for variant in &item.variants {
                assert!(variant.fields.is_empty(), "{name} has values");
                descriptions.push((snake_case(&variant.ident.to_string()), doc(&variant.attrs).into()));
            }
            let names = list(descriptions.iter().map(|(name, _)| name.as_str()));
            let schema = map([("type", "string".into()), ("enum", names)]);
            self.add(&name, described(&item.attrs, schema).with([("x-enum-descriptions", Json::Map(descriptions))]));
        }
    }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// Whether a type derives `Serialize`, and whether `Deserialize`.
fn derives(attributes: &[Attribute]) -> (bool, bool) {
    let mut found = (false, false);
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("derive")) {
        attribute
            .parse_nested_meta(|meta| {
                found.0 |= meta.path.is_ident("Serialize");
                found.1 |= meta.path.is_ident("Deserialize");
                Ok(())
            })
            .unwrap();
    }
    found
}

/// Returns the serde attributes with their values. Panics on an attribute that this module does not take into account.
fn serde_attributes(attributes: &[Attribute]) -> BTreeMap<String, Option<String>> {
    const KNOWN: [&str; 11] = [
        "borrow",
        "bound",
        "content",
        "default",
        "rename",
        "rename_all",
        "skip_serializing",
        "skip_serializing_if",
        "tag",
        "transparent",
        "untagged",
    ];
    let mut found = BTreeMap::new();
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
        attribute
            .parse_nested_meta(|meta| {
                let name = meta.path.get_ident().unwrap().to_string();
                assert!(KNOWN.contains(&&*name), "the serde attribute {name} is not known");
                let value =
                    if meta.input.peek(syn::Token![=]) { Some(meta.value()?.parse::<LitStr>()?.value()) } else { None };
                found.insert(name, value);
                Ok(())
            })
            .unwrap();
    }
    found
}

/// Returns the schema of a struct. A field is required unless it may be absent. In a request, that is every `Option` and
/// every field with a default; in a reply, only fields that the server leaves out.
fn object(name: &str, attributes: &[Attribute], fields: &Fields, is_request: bool) -> Json {
    let mut properties = Vec::new();
    let mut required = Vec::new();
    for field in fields {
        let serde = serde_attributes(&field.attrs);
        let wire_name = match serde.get("rename") {
            Some(name) => name.clone().unwrap(),
            None => field.ident.as_ref().unwrap().to_string(),
        };
        let is_left_out = serde.contains_key("skip_serializing_if");
        let inner = argument_of(&field.ty, "Option");
        let may_be_absent = is_left_out || is_request && (inner.is_some() || serde.contains_key("default"));
        let schema = match inner {
            Some(inner) if may_be_absent => schema(inner),
            Some(inner) => nullable(schema(inner)),
            None => schema(&field.ty),
        };
        if !may_be_absent {
            required.push(wire_name.clone());
        }
        let limits = limits_of(name, &wire_name, field);
        properties.push((wire_name, described(&field.attrs, limited(schema, limits))));
    }
    let schema = map([("type", "object".into()), ("properties", Json::Map(properties))]);
    let schema = if required.is_empty() { schema } else { schema.with([("required", list(required))]) };
    described(attributes, schema)
}

fn nullable(schema: Json) -> Json {
    let Json::Map(mut fields) = schema else { panic!("{schema:?}") };
    if let Some((_, kind)) = fields.iter_mut().find(|(name, _)| name == "type") {
        *kind = list([kind.clone(), "null".into()]);
        return Json::Map(fields);
    }
    map([("anyOf", Json::List(vec![Json::Map(fields), map([("type", "null".into())])]))])
}

/// Returns the schema of a field's type.
fn schema(ty: &Type) -> Json {
    let integer =
        |from: i64, to: i64| map([("type", "integer".into()), ("minimum", from.into()), ("maximum", to.into())]);
    let text = |keyword: &str, value: &str| map([("type", "string".into()), (keyword, value.into())]);
    for transparent in ["Box", "Object", "Lenient"] {
        if let Some(inner) = argument_of(ty, transparent) {
            return schema(inner);
        }
    }
    for many in ["Vec", "List"] {
        if let Some(inner) = argument_of(ty, many) {
            return map([("type", "array".into()), ("items", schema(inner))]);
        }
    }
    if let Some(inner) = argument_of(ty, "Named") {
        return map([("anyOf", Json::List(vec![schema(inner), map([("type", "string".into())])]))]);
    }
    match &*name_of(ty) {
        "bool" => map([("type", "boolean".into())]),
        "u8" => integer(0, u8::MAX.into()),
        "u32" => integer(0, u32::MAX.into()),
        "i64" | "u64" | "usize" => integer(0, limits::MAX_INTEGER),
        // Any text is a shown key, though only the base64 of 16 bytes can be the right one.
        "String" | "Text" | "Cow" | "ShownKey" => map([("type", "string".into())]),
        "Base64" | "Base64Text" | "MessageContent" | "AccessKey" => text("contentEncoding", "base64"),
        "Timestamp" => text("format", "date-time"),
        "ApprovalId" | "ChallengeId" | "ClaimId" | "DeviceId" | "MessageId" | "SessionId" | "UserId" => {
            text("format", "uuid")
        }
        // The type parameter of `HttpErrorBody`; this is its default.
        "E" => reference("#/components/schemas/ErrorBody"),
        "Option" => panic!("an Option inside another type"),
        name => reference(&format!("#/components/schemas/{name}")),
    }
}

/// Returns the limits of a field that do not follow from its type.
fn limits_of(owner: &str, field: &str, source: &Field) -> Vec<(&'static str, i64)> {
    let items = |most: usize| vec![("maxItems", i64::try_from(most).unwrap())];
    match (owner, field) {
        ("SendMessageRequest", "messages" | "skip") => items(limits::MAX_MESSAGES_PER_SEND),
        ("ListBlocksReply", "user_ids") => items(limits::MAX_BLOCKS),
        ("AckMessagesRequest", "seqs") => items(limits::MAX_SEQS_PER_ACK),
        ("FetchKeysRequest" | "ClaimKeysRequest", "device_ids") => items(limits::MAX_DEVICE_IDS),
        ("FetchKeysRequest" | "ClaimKeysRequest", "suites") => vec![("minItems", 1)],
        ("PublishKeysRequest", "one_time_prekeys" | "pq_one_time") => items(limits::MAX_KEYS_PER_PUBLISH),
        ("SendMessageRequest", "ttl_s") => {
            let range = limits::TTL_SECONDS;
            vec![("minimum", i64::try_from(*range.start()).unwrap()), ("maximum", i64::try_from(*range.end()).unwrap())]
        }
        ("RenameDeviceRequest" | "DeviceDescription", "name") => {
            let range = limits::DEVICE_NAME_CHARS;
            vec![
                ("minLength", i64::try_from(*range.start()).unwrap()),
                ("maxLength", i64::try_from(*range.end()).unwrap()),
            ]
        }
        ("DeviceMessage", "content") => vec![("minLength", 2)],
        (_, "registration_id") => {
            let range = limits::REGISTRATION_IDS;
            vec![("minimum", (*range.start()).into()), ("maximum", (*range.end()).into())]
        }
        (_, "key_id") => {
            assert_eq!(innermost(&source.ty), "u32");
            vec![("maximum", MAX_KEY_ID)]
        }
        _ => Vec::new(),
    }
}

fn limited(schema: Json, limits: Vec<(&'static str, i64)>) -> Json {
    let Json::Map(mut fields) = schema else { panic!("{schema:?}") };
    for (keyword, value) in limits {
        fields.retain(|(name, _)| name != keyword);
        fields.push((keyword.to_owned(), value.into()));
    }
    Json::Map(fields)
}

/// Returns the last segment of a type's path.
fn name_of(ty: &Type) -> String {
    let Type::Path(path) = ty else { panic!("an unusual type") };
    path.path.segments.last().unwrap().ident.to_string()
}

/// Returns the type argument of a type with this name; `None` if it has another name.
fn argument_of<'a>(ty: &'a Type, name: &str) -> Option<&'a Type> {
    let Type::Path(path) = ty else { return None };
    let segment = path.path.segments.last()?;
    let PathArguments::AngleBracketed(arguments) = &segment.arguments else { return None };
    if segment.ident != name {
        return None;
    }
    arguments.args.iter().find_map(|argument| if let GenericArgument::Type(ty) = argument { Some(ty) } else { None })
}

/// Returns the name of a type without its wrappers, such as `Option`.
fn innermost(ty: &Type) -> String {
    let wrapper = ["Option", "Box", "Object", "Lenient", "Vec", "List", "Named"]
        .into_iter()
        .find_map(|name| argument_of(ty, name));
    wrapper.map_or_else(|| name_of(ty), innermost)
}

fn described(attributes: &[Attribute], schema: Json) -> Json {
    let doc = doc(attributes);
    if doc.is_empty() { schema } else { schema.with([("description", doc.into())]) }
}

/// Returns the documentation of an item as plain text, with the names that are used on the wire.
fn doc(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value().trim().to_owned()),
            _ => None,
        },
        _ => None,
    });
    let text = lines.collect::<Vec<_>>().join(" ").replace("`None`", "null");
    let mut plain = String::new();
    let mut rest = text.trim();
    while let Some((before, link)) = rest.split_once("[`") {
        let (name, after) = link.split_once("`]").unwrap();
        plain.push_str(before);
        plain.push_str(&on_the_wire(name));
        rest = match after.strip_prefix('(') {
            Some(target) => target.split_once(')').unwrap().1,
            None => after,
        };
    }
    plain + rest
}

/// Translates a linked Rust name: a limit to its value, a variant or field to its name on the wire.
fn on_the_wire(name: &str) -> String {
    let number = |value: usize| value.to_string();
    match name {
        "DIGEST_COST" => limits::DIGEST_COST.to_string(),
        "MAX_CONTENT" => number(limits::MAX_CONTENT),
        "MAX_FRAME_BYTES" => number(limits::MAX_FRAME_BYTES),
        "MAX_IN_FLIGHT" => number(limits::MAX_IN_FLIGHT),
        "MAX_MESSAGES_PER_SEND" => number(limits::MAX_MESSAGES_PER_SEND),
        "MAX_SEQS_PER_ACK" => number(limits::MAX_SEQS_PER_ACK),
        "MAX_BLOCKS" => number(limits::MAX_BLOCKS),
        "MAX_DEVICE_IDS" => number(limits::MAX_DEVICE_IDS),
        "MAX_KEYS_PER_PUBLISH" => number(limits::MAX_KEYS_PER_PUBLISH),
        "TTL_SECONDS" => format!("{} to {}", limits::TTL_SECONDS.start(), limits::TTL_SECONDS.end()),
        "TTL_DEFAULT" => limits::TTL_DEFAULT.as_secs().to_string(),
        "DEVICE_NAME_CHARS" => {
            format!("{} to {} characters", limits::DEVICE_NAME_CHARS.start(), limits::DEVICE_NAME_CHARS.end())
        }
        limit if limit.starts_with("MAX_") => panic!("on_the_wire does not know the value of {limit}"),
        _ => match name.rsplit_once("::") {
            Some((_, last)) => format!("`{}`", snake_case(last)),
            None => format!("`{name}`"),
        },
    }
}

fn snake_case(name: &str) -> String {
    let mut text = String::new();
    for (index, c) in name.chars().enumerate() {
        if c.is_ascii_uppercase() && index > 0 {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}
