//! Refuses values in a request body that weft's types cannot hold. Every reader of a body calls it
//! last.
//!
//! The reader converts the body to weft's types and back to JSON. This module compares the result
//! with the body, and refuses a value that is missing in the result or different. If the value
//! belongs to a known feature, the error names the feature. On the wire, absent, `null`, zero,
//! `false` and empty all mean "the default", so such values may be missing in the result.

use serde_json::Value;

use crate::api::{error::ApiError, features};

/// Refuses values that are in `requested` but not in `honoured`, which is the body after conversion
/// to weft's types and back.
///
/// # Errors
/// For the first value that is missing or different.
pub(crate) fn refuse(requested: &Value, honoured: &Value) -> Result<(), ApiError> {
    compare("", requested, honoured)
}

/// Refuses the fields of `body` that are not in `known`. For requests that only weft has.
///
/// # Errors
/// For the first such field whose value does not mean "the default".
pub(crate) fn refuse_all_but(known: &[&str], body: &Value) -> Result<(), ApiError> {
    let unknown = body.as_object().into_iter().flatten().filter(|(field, _)| !known.contains(&field.as_str()));
    unknown.into_iter().try_for_each(|(field, value)| compare(field, value, &Value::Null))
}

fn compare(path: &str, requested: &Value, honoured: &Value) -> Result<(), ApiError> {
    match (requested, honoured) {
        (requested, honoured) if is_default(requested) || requested == honoured || same_number(requested, honoured) => {
            Ok(())
        }
        (Value::Object(requested), Value::Object(honoured)) => requested.iter().try_for_each(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            compare(&path, value, honoured.get(key).unwrap_or(&Value::Null))
        }),
        (Value::Array(requested), Value::Array(honoured)) if requested.len() == honoured.len() => requested
            .iter()
            .zip(honoured)
            .enumerate()
            .try_for_each(|(i, (requested, honoured))| compare(&format!("{path}[{i}]"), requested, honoured)),
        (requested, honoured) => Err(refusal(path, requested, honoured)),
    }
}

/// The error for the value at `path`.
fn refusal(path: &str, requested: &Value, honoured: &Value) -> ApiError {
    if let Some(feature) = features::of_field(&without_indices(path)) {
        return feature.refusal_at(path);
    }
    let is_list_or_object = requested.is_array() || requested.is_object();
    let is_unknown = is_default(honoured) && !(requested.is_number() && honoured.is_number());
    if is_list_or_object || is_unknown {
        return ApiError::Unsupported(format!("weft does not support the field {path}: leave it out"));
    }
    ApiError::Unsupported(format!(
        "weft does not support {path} {requested}: the nearest that it can honour is {honoured}"
    ))
}

/// Removes the indices from a path: `Ports[3].Name` becomes `Ports[].Name`.
pub(super) fn without_indices(path: &str) -> String {
    path.split('[').map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit())).collect::<Vec<_>>().join("[")
}

/// Whether the value means "the default".
pub(super) fn is_default(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.values().all(is_default),
    }
}

/// Whether the values are the same number, such as `1` and `1.0`.
fn same_number(a: &Value, b: &Value) -> bool {
    matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if (a - b).abs() < 1e-9)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(requested: &Value, honoured: &Value, refusal: Option<&str>) {
        match (refuse(requested, honoured), refusal) {
            (Ok(()), None) => {}
            (Err(error), Some(part)) => {
                assert!(error.to_string().contains(part), "{error}: does not say {part:?}");
            }
            (outcome, _) => panic!("{requested} honoured as {honoured}: {outcome:?}"),
        }
    }

    #[test]
    fn fields_with_default_values_may_be_missing() {
        check(&json!({"A": null, "B": 0, "C": "", "D": [], "E": {}, "F": false, "G": {"H": null}}), &json!({}), None);
        check(&json!({"A": 1}), &json!({"A": 1.0, "B": "more"}), None);
    }

    #[test]
    fn refuses_by_name_what_is_missing_or_different() {
        let mounts = json!({"TaskTemplate": {"ContainerSpec": {"Mounts": [{"Target": "/x"}]}}});
        check(&mounts, &json!({"TaskTemplate": {"ContainerSpec": {}}}), Some("mounts (--mount)"));
        let named = json!({"EndpointSpec": {"Ports": [{"Name": "web", "TargetPort": 80}]}});
        check(&named, &json!({"EndpointSpec": {"Ports": [{"TargetPort": 80}]}}), Some("named ports"));
        check(&json!({"Typo": 1}), &json!({}), Some("does not support the field Typo"));
        check(&json!({"Delay": 1_500}), &json!({"Delay": 1_000}), Some("nearest that it can honour is 1000"));
        check(&json!({"Ratio": 0.0001}), &json!({"Ratio": 0.0}), Some("nearest that it can honour is 0.0"));
        check(&json!({"List": [1, 2]}), &json!({"List": [1]}), Some("List"));
        check(&json!({"IPAM": {"Driver": "x"}}), &json!({"IPAM": {"Driver": "default"}}), Some("IPAM drivers"));
    }

    #[test]
    fn refuses_unknown_fields() {
        let body = json!({"Known": 1, "Other": 2, "Default": ""});
        assert_eq!(refuse_all_but(&["Known", "Other"], &body), Ok(()));
        assert!(refuse_all_but(&["Known"], &body).is_err_and(|error| error.to_string().contains("field Other")));
    }
}
