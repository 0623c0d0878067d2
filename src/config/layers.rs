//! Overrides settings by name with values of the same type as the default.

use toml::{Table, Value};

use super::{ConfigError, invalid, unknown};

/// Replaces the value of a setting. `read` gets the current value, as an example of the setting's type, and returns the
/// new one or, as the error, the values that the setting takes.
///
/// # Errors
/// If the setting is unknown, or `read` fails.
pub(super) fn set(
    settings: &mut Table,
    section: &str,
    key: &str,
    read: impl FnOnce(&Value) -> Result<Value, &'static str>,
) -> Result<(), ConfigError> {
    let name = format!("{section}.{key}");
    let current = settings.get_mut(section).and_then(Value::as_table_mut).and_then(|table| table.get_mut(key));
    let Some(current) = current else { return Err(unknown(&name)) };
    *current = read(current).map_err(|takes| invalid(&name, takes))?;
    Ok(())
}

/// Accepts a value of the same type as the example; for a float also an integer, and for a text also `true` and `false`,
/// which `server.demo` takes besides a word.
pub(super) fn same_kind(example: &Value, value: Value) -> Result<Value, &'static str> {
    #[expect(clippy::cast_precision_loss, reason = "a number of days")]
    match (example, value) {
        (Value::Float(_), Value::Integer(whole)) => Ok(Value::Float(whole as f64)),
        (Value::String(_), Value::Boolean(flag)) => Ok(Value::String(flag.to_string())),
        (example, value) if example.same_type(&value) => Ok(value),
        (example, _) => Err(kind(example)),
    }
}

/// Parses a text into a value of the example's type. The items of a list are separated by commas.
pub(super) fn parse_as(example: &Value, text: &str) -> Result<Value, &'static str> {
    let list = || text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(|item| item.to_owned().into());
    let parsed = match example {
        Value::Integer(_) => text.trim().parse().ok().map(Value::Integer),
        Value::Float(_) => text.trim().parse().ok().map(Value::Float),
        Value::Boolean(_) => text.trim().parse().ok().map(Value::Boolean),
        Value::Array(_) => Some(Value::Array(list().collect())),
        _ => Some(Value::String(text.to_owned())),
    };
    parsed.ok_or(kind(example))
}

/// The values of the example's type, in words.
fn kind(example: &Value) -> &'static str {
    match example {
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Array(_) => "a list",
        _ => "a text",
    }
}
