//! Converts single values: dates, durations, counts, texts and lists. The other files of `wire`
//! call it.

use std::collections::HashMap;

use bollard_stubs::models::{BollardDate, ObjectVersion};
use serde::Serialize;
use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use weft_model::{spec::Labels, state::Meta};

use crate::api::{error::ApiError, features};

const NANOS_PER_MS: i64 = 1_000_000;

/// Converts a point in time, in milliseconds since the Unix epoch, to the date type of the API.
pub(crate) fn date(unix_ms: u64) -> Option<BollardDate> {
    BollardDate::from_unix_timestamp_nanos(i128::from(unix_ms) * i128::from(NANOS_PER_MS)).ok()
}

/// Converts a point in time, in milliseconds since the Unix epoch, to the text of a date (RFC
/// 3339).
pub(crate) fn timestamp(unix_ms: u64) -> Option<String> {
    date(unix_ms).and_then(|date| date.format(&Rfc3339).ok())
}

/// Converts milliseconds to the nanoseconds of the wire. A duration that is too long becomes the
/// longest possible one.
pub(crate) fn nanos(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(NANOS_PER_MS)
}

/// Converts the nanoseconds of the wire to milliseconds, the smallest unit that weft stores. The
/// error text contains `field`.
///
/// # Errors
/// If the duration is negative, or not a whole number of milliseconds.
pub(crate) fn millis(field: &str, nanos: i64) -> Result<u64, ApiError> {
    let ms = u64::try_from(nanos / NANOS_PER_MS)
        .ok()
        .filter(|_| nanos >= 0)
        .ok_or_else(|| ApiError::Invalid(format!("{field} is negative: give a duration of zero or more")))?;
    let rest = nanos % NANOS_PER_MS;
    if rest == 0 {
        return Ok(ms);
    }
    // The suggestion is never zero, because zero means "the default" in some fields.
    let nearest = if rest < NANOS_PER_MS / 2 && ms > 0 { ms } else { ms + 1 };
    let nearest = format!("the nearest that it can honour is {} ns ({nearest} ms)", self::nanos(nearest));
    Err(features::FINE_DURATIONS.refusal_of(&format!("{field} of {nanos} ns, {nearest}")))
}

/// Reads a count, which is a signed number on the wire. It is zero if it is absent. The error text
/// contains `field`.
///
/// # Errors
/// If the number is negative.
pub(crate) fn count(field: &str, value: Option<i64>) -> Result<u64, ApiError> {
    u64::try_from(value.unwrap_or(0)).map_err(|_| ApiError::Invalid(format!("{field} is negative: give zero or more")))
}

/// Converts a count to a signed number of the wire. A number that is too large becomes the largest
/// possible one.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(crate) fn version(meta: &Meta) -> Option<ObjectVersion> {
    Some(ObjectVersion { index: Some(meta.version) })
}

/// Returns `None` if the text is empty, because the JSON does not contain empty texts.
pub(crate) fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

/// Returns `None` if there are no values, because the JSON does not contain empty lists.
pub(crate) fn list<T: Clone>(values: &[T]) -> Option<Vec<T>> {
    (!values.is_empty()).then(|| values.to_vec())
}

pub(crate) fn labels(labels: &Labels) -> HashMap<String, String> {
    labels.clone().into_iter().collect()
}

/// Converts a type of the Engine API to JSON, so that the caller can add fields that the type
/// lacks.
pub(crate) fn to_json(value: impl Serialize) -> Value {
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
    fn durations_become_milliseconds() {
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
}
