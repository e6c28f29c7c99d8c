//! Between the Engine API's JSON and weft's own types: pure, both ways, nothing lost.
//!
//! Owns what the wire looks like: field names, units (nanoseconds there, milliseconds here), zero against absent. Reading
//! a spec ends with [`unsupported::refuse`]: what the model did not keep is refused by name, never ignored. It must not look at the
//! network, the clock or the request.

pub(crate) mod cluster;
pub(crate) mod fields;
pub(crate) mod unsupported;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod placement;
#[cfg(test)]
mod roundtrip;
pub(crate) mod service;
pub(crate) mod task;

use bollard_stubs::models::{BollardDate, ObjectVersion};
use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_model::state::Meta;

use super::{error::ApiError, features};

const NANOS_PER_MS: i64 = 1_000_000;

/// Reads a request's body. Clients of all ages leave the body out or send `null` where nothing is asked.
pub(crate) fn parse(body: &[u8]) -> Result<Value, ApiError> {
    if body.is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    match serde_json::from_slice(body) {
        Ok(Value::Null) => Ok(Value::Object(serde_json::Map::new())),
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(ApiError::Invalid("the request's body must be a JSON object".into())),
        Err(error) => Err(ApiError::Invalid(format!("the request's body is not JSON: {error}"))),
    }
}

/// Reads `value` as one of the wire's types.
pub(crate) fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, ApiError> {
    T::deserialize(value).map_err(|error| ApiError::Invalid(format!("the request's body cannot be read: {error}")))
}

/// A point in time on the wire.
pub(crate) fn date(unix_ms: u64) -> Option<BollardDate> {
    BollardDate::from_unix_timestamp_nanos(i128::from(unix_ms) * i128::from(NANOS_PER_MS)).ok()
}

/// Milliseconds as the wire's nanoseconds.
pub(crate) fn nanos(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(NANOS_PER_MS)
}

/// The wire's nanoseconds as milliseconds, the smallest unit that weft keeps; `field` names them in
/// the error.
///
/// # Errors
/// If they are negative or not whole milliseconds.
pub(crate) fn millis(field: &str, nanos: i64) -> Result<u64, ApiError> {
    let ms = u64::try_from(nanos / NANOS_PER_MS)
        .ok()
        .filter(|_| nanos >= 0)
        .ok_or_else(|| ApiError::Invalid(format!("{field} is negative: give a duration of zero or more")))?;
    let rest = nanos % NANOS_PER_MS;
    if rest == 0 {
        return Ok(ms);
    }
    let nearest = if rest < NANOS_PER_MS / 2 && ms > 0 { ms } else { ms + 1 };
    let nearest = format!("the nearest that it can honour is {} ns ({nearest} ms)", self::nanos(nearest));
    Err(features::FINE_DURATIONS.refusal_of(&format!("{field} of {nanos} ns, {nearest}")))
}

/// A count that the wire carries as a signed number.
pub(crate) fn count(field: &str, value: Option<i64>) -> Result<u64, ApiError> {
    u64::try_from(value.unwrap_or(0)).map_err(|_| ApiError::Invalid(format!("{field} is negative: give zero or more")))
}

/// A number on the wire: what does not fit is said to be the largest that does.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(crate) fn version(meta: &Meta) -> Option<ObjectVersion> {
    Some(ObjectVersion { index: Some(meta.version) })
}

/// `None` where empty: the wire leaves empty texts out.
pub(crate) fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

/// `None` where empty.
pub(crate) fn list<T: Clone>(values: &[T]) -> Option<Vec<T>> {
    (!values.is_empty()).then(|| values.to_vec())
}

/// A wire value as JSON, for fields that the wire's types do not know.
pub(crate) fn json(value: impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or(Value::Null)
}

/// Sets `field` of a JSON object.
pub(crate) fn set(object: &mut Value, field: &str, value: Value) {
    if let Value::Object(map) = object {
        map.insert(field.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_milliseconds_within() {
        assert_eq!(millis("Delay", 5_000_000_000).ok(), Some(5_000));
        assert!(millis("Delay", -1).is_err());
        for (nanos, nearest) in [
            (1, "is 1000000 ns (1 ms)"),
            (500_000, "is 1000000 ns (1 ms)"),
            (1_499_999, "is 1000000 ns (1 ms)"),
            (1_500_000, "is 2000000 ns (2 ms)"),
        ] {
            let error = millis("Delay", nanos).expect_err("not whole milliseconds").to_string();
            assert!(error.contains(&format!("Delay of {nanos} ns")) && error.contains(nearest), "{error}");
        }
        assert_eq!(nanos(5_000), 5_000_000_000);
        assert_eq!(nanos(u64::MAX), i64::MAX);
    }

    #[test]
    fn a_missing_body_is_an_empty_object() {
        for body in ["", "null", "{}"] {
            assert_eq!(parse(body.as_bytes()).ok(), Some(serde_json::json!({})));
        }
        assert!(parse(b"[]").is_err());
        assert!(parse(b"{").is_err());
    }
}
