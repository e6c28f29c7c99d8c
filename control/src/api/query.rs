//! What stands in a request's query: flags and filters.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::error::ApiError;

/// The query of a request, decoded.
pub(super) type Params = HashMap<String, String>;

/// Whether a flag is set, in any of the forms that clients of all ages use.
pub(super) fn flag(params: &Params, name: &str) -> bool {
    params.get(name).is_some_and(|value| !matches!(value.as_str(), "" | "0" | "no" | "false" | "none"))
}

/// The version that an update names.
pub(super) fn version(params: &Params) -> Result<u64, ApiError> {
    let text = params.get("version").map_or("", String::as_str);
    text.parse().map_err(|_| {
        ApiError::Invalid(format!("invalid version {text:?}: give the Version.Index of what you read (?version=N)"))
    })
}

/// `filters={"name":{"web":true}}`, or `{"name":["web"]}` as older clients write it.
#[derive(Debug, Default)]
pub(super) struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Refuses every filter that is not one of `known`.
    pub(super) fn read(params: &Params, known: &[&str]) -> Result<Self, ApiError> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Values {
            Set(BTreeMap<String, bool>),
            List(Vec<String>),
        }
        let Some(text) = params.get("filters").filter(|text| !text.is_empty()) else { return Ok(Self::default()) };
        let given: BTreeMap<String, Values> = serde_json::from_str(text)
            .map_err(|error| ApiError::Invalid(format!("the filters cannot be read: {error}")))?;
        if let Some(unknown) = given.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(ApiError::Invalid(format!("invalid filter '{unknown}': use one of {}", known.join(", "))));
        }
        let values = |values| match values {
            Values::Set(set) => set.into_iter().filter(|(_, on)| *on).map(|(value, _)| value).collect(),
            Values::List(list) => list,
        };
        Ok(Self(given.into_iter().map(|(key, given)| (key, values(given))).collect()))
    }

    /// Whether `accepts` holds for any value of the filter, or it is not given.
    pub(super) fn any(&self, filter: &str, accepts: impl Fn(&str) -> bool) -> bool {
        self.0.get(filter).is_none_or(|values| values.is_empty() || values.iter().any(|value| accepts(value)))
    }

    /// Whether every `KEY` or `KEY=VALUE` of the filter is among the labels.
    pub(super) fn labels<'a>(&self, filter: &str, labels: impl Fn(&str) -> Option<&'a String>) -> bool {
        self.0.get(filter).into_iter().flatten().all(|wanted| match wanted.split_once('=') {
            Some((key, value)) => labels(key).is_some_and(|have| have == value),
            None => labels(wanted).is_some(),
        })
    }

    pub(super) fn values(&self, filter: &str) -> &[String] {
        self.0.get(filter).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(text: &str) -> Result<Filters, ApiError> {
        Filters::read(&[("filters".to_owned(), text.to_owned())].into(), &["name", "label"])
    }

    #[test]
    fn filters_of_old_and_new_clients_are_read() {
        for text in [r#"{"name":{"web":true,"no":false}}"#, r#"{"name":["web"]}"#] {
            let filters = filters(text).expect(text);
            assert_eq!(filters.values("name"), ["web"]);
            assert!(filters.any("name", |name| name == "web"));
            assert!(!filters.any("name", |name| name == "no"));
            assert!(filters.any("label", |_| false), "a filter that is not given accepts all");
        }
    }

    #[test]
    fn labels_match_by_key_or_by_key_and_value() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        for (text, accepted) in [("a", true), ("a=1", true), ("a=2", false), ("b", false)] {
            let filters = filters(&format!(r#"{{"label":["{text}"]}}"#)).expect(text);
            assert_eq!(filters.labels("label", |key| labels.get(key)), accepted, "{text}");
        }
    }

    #[test]
    fn unknown_filters_are_refused() {
        assert!(filters(r#"{"colour":["red"]}"#).is_err_and(|e| e.to_string().contains("invalid filter 'colour'")));
        assert!(filters("{").is_err());
    }

    #[test]
    fn flags_take_many_forms() {
        for (value, set) in [("1", true), ("true", true), ("True", true), ("0", false), ("false", false), ("", false)] {
            assert_eq!(flag(&[("f".to_owned(), value.to_owned())].into(), "f"), set, "{value}");
        }
    }
}
