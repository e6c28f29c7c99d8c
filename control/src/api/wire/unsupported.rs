//! The safety net of every conversion: what a client asked for and the model did not keep.
//!
//! A spec is read into the model, written out again, and compared with the request. Whatever is not there again is refused
//! by name. Absent, `null`, zero, `false` and empty all say "the default" on this wire and are no loss.

use serde_json::Value;

use crate::api::{error::ApiError, features};

/// Refuses what `asked` says and `kept` does not.
pub(crate) fn refuse(asked: &Value, kept: &Value) -> Result<(), ApiError> {
    compare("", asked, kept)
}

fn compare(path: &str, asked: &Value, kept: &Value) -> Result<(), ApiError> {
    match (asked, kept) {
        (asked, kept) if is_default(asked) || asked == kept || same_number(asked, kept) => Ok(()),
        (Value::Object(asked), Value::Object(kept)) => asked.iter().try_for_each(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            compare(&path, value, kept.get(key).unwrap_or(&Value::Null))
        }),
        (Value::Array(asked), Value::Array(kept)) if asked.len() == kept.len() => asked
            .iter()
            .zip(kept)
            .enumerate()
            .try_for_each(|(i, (asked, kept))| compare(&format!("{path}[{i}]"), asked, kept)),
        (Value::Number(_), Value::Number(_)) => Err(nearest(path, asked, kept)),
        (_, kept) if is_default(kept) => Err(unsupported(path)),
        (Value::Object(_) | Value::Array(_), _) => Err(unsupported(path)),
        (asked, kept) => match features::of_field(&without_indices(path)) {
            Some(feature) => Err(feature.refusal_at(path)),
            None => Err(nearest(path, asked, kept)),
        },
    }
}

fn nearest(path: &str, asked: &Value, kept: &Value) -> ApiError {
    ApiError::Unsupported(format!("weft does not support {path} {asked}: the nearest that it can honour is {kept}"))
}

/// The refusal of whatever stands at `path`.
fn unsupported(path: &str) -> ApiError {
    match features::of_field(&without_indices(path)) {
        Some(feature) => feature.refusal_at(path),
        None => ApiError::Unsupported(format!("weft does not know the field {path}: leave it out")),
    }
}

/// `Ports[3].Name` as `Ports[].Name`.
fn without_indices(path: &str) -> String {
    path.split('[').map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit())).collect::<Vec<_>>().join("[")
}

/// Whether a client says nothing by this value.
fn is_default(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.values().all(is_default),
    }
}

/// `1` and `1.0`.
fn same_number(a: &Value, b: &Value) -> bool {
    matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if (a - b).abs() < 1e-9)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(asked: &Value, kept: &Value, refusal: Option<&str>) {
        match (refuse(asked, kept), refusal) {
            (Ok(()), None) => {}
            (Err(error), Some(part)) => {
                assert!(error.to_string().contains(part), "{error}: does not say {part:?}");
            }
            (outcome, _) => panic!("{asked} kept as {kept}: {outcome:?}"),
        }
    }

    #[test]
    fn defaults_are_no_loss() {
        check(&json!({"A": null, "B": 0, "C": "", "D": [], "E": {}, "F": false, "G": {"H": null}}), &json!({}), None);
        check(&json!({"A": 1}), &json!({"A": 1.0, "B": "more"}), None);
    }

    #[test]
    fn what_is_not_kept_is_refused_by_name() {
        let mounts = json!({"TaskTemplate": {"ContainerSpec": {"Mounts": [{"Target": "/x"}]}}});
        check(&mounts, &json!({"TaskTemplate": {"ContainerSpec": {}}}), Some("mounts (--mount)"));
        let named = json!({"EndpointSpec": {"Ports": [{"Name": "web", "TargetPort": 80}]}});
        check(&named, &json!({"EndpointSpec": {"Ports": [{"TargetPort": 80}]}}), Some("named ports"));
        check(&json!({"Typo": 1}), &json!({}), Some("does not know the field Typo"));
        check(&json!({"Delay": 1_500}), &json!({"Delay": 1_000}), Some("nearest that it can honour is 1000"));
        check(&json!({"Ratio": 0.0001}), &json!({"Ratio": 0.0}), Some("nearest that it can honour is 0.0"));
        check(&json!({"List": [1, 2]}), &json!({"List": [1]}), Some("List"));
    }
}
