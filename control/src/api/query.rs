//! Reads the query of a request: booleans, versions, times and filters.
//!
//! All handlers read their queries here, so that each kind of parameter has the same meaning on all
//! routes. Clients were written for moby, so a text means true or false exactly as in moby
//! (`daemon/server/httputils/form.go` and the routers beside it). For example, docker-py writes
//! `force=False`.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
};

use axum::{
    extract::{FromRequestParts, Query},
    http::{Uri, request::Parts},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::ApiError;

/// The characters that are percent-encoded in a part of a path or in a value of a query: all except
/// the unreserved characters of RFC 3986, section 2.3.
const URL_PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The decoded query of a request. If a parameter has several values, the first one is used, as
/// in moby.
#[derive(Debug, Default)]
pub(super) struct Params(HashMap<String, String>);

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        // Every text can be read as a list of pairs, so no error can occur.
        Ok(pairs(&parts.uri).into_iter().collect())
    }
}

impl FromIterator<(String, String)> for Params {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        let mut params = HashMap::new();
        for (name, value) in pairs {
            params.entry(name).or_insert(value);
        }
        Self(params)
    }
}

impl Params {
    /// The text of the parameter. Empty if the parameter is absent.
    pub(super) fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// A boolean as moby's `BoolValue` reads it: some texts mean false, and all others mean true.
    /// False if the parameter is absent.
    pub(super) fn flag(&self, name: &str) -> bool {
        !is_false(&normalized(self.text(name)))
    }

    /// A boolean that moby reads with Go's `strconv.ParseBool`. False if the parameter is absent.
    ///
    /// # Errors
    /// If the text means neither true nor false.
    pub(super) fn strict_flag(&self, name: &str) -> Result<bool, ApiError> {
        match normalized(self.text(name)).as_str() {
            "f" => Ok(false),
            value if is_false(value) => Ok(false),
            "1" | "t" | "true" => Ok(true),
            _ => Err(ApiError::Invalid(format!("invalid value for {name}: {}: use true or false", self.text(name)))),
        }
    }

    /// A point in time, in milliseconds since the Unix epoch. `None` if the parameter is absent.
    ///
    /// # Errors
    /// If the text is neither Unix seconds, with or without a fraction, nor a time of RFC 3339.
    pub(super) fn time_ms(&self, name: &str) -> Result<Option<u64>, ApiError> {
        match self.text(name) {
            "" => Ok(None),
            text => parse_time_ms(text).map(Some).ok_or_else(|| {
                ApiError::Invalid(format!(
                    "invalid {name} {text:?}: give Unix seconds or a time like 2026-01-02T15:04:05Z"
                ))
            }),
        }
    }

    /// The version of the object that the client read before it made this update.
    pub(super) fn version(&self) -> Result<u64, ApiError> {
        let text = self.text("version");
        text.parse().map_err(|_| {
            ApiError::Invalid(format!(
                "invalid version {text:?}: give the Version.Index of the object that you read (?version=N)"
            ))
        })
    }
}

/// Removes white space around a boolean and makes it lower case, because moby ignores both.
fn normalized(text: &str) -> String {
    text.trim().to_lowercase()
}

fn is_false(normalized: &str) -> bool {
    matches!(normalized, "" | "0" | "no" | "false" | "none")
}

fn parse_time_ms(text: &str) -> Option<u64> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return u64::try_from(time.as_millisecond()).ok();
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: u64 = seconds.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let millis: u64 = format!("{fraction:0<3}")[..3].parse().ok()?;
    seconds.checked_mul(1_000)?.checked_add(millis)
}

/// A text as a part of a path or as a value of a query, percent-encoded.
pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, URL_PART).to_string()
}

/// The pairs of a query in their order.
pub(super) fn pairs(uri: &Uri) -> Vec<(String, String)> {
    Query::try_from_uri(uri).map(|Query(pairs)| pairs).unwrap_or_default()
}

/// `uri` with this query.
pub(super) fn with_pairs(uri: &Uri, pairs: &[(String, String)]) -> Result<Uri, ApiError> {
    let pairs: Vec<_> = pairs.iter().map(|(key, value)| format!("{}={}", encoded(key), encoded(value))).collect();
    let path = format!("{}?{}", uri.path(), pairs.join("&"));
    path.parse().map_err(|error| ApiError::Invalid(format!("invalid query: {error}")))
}

/// Changes the parameter `filters` of a request that is forwarded. What is no JSON object is left
/// to the receiver, which refuses it.
pub(super) fn change_filters(uri: &Uri, change: impl FnOnce(&mut Map<String, Value>)) -> Result<Uri, ApiError> {
    let mut pairs = pairs(uri);
    let at = pairs.iter().position(|(key, _)| key == "filters");
    let text = at.map_or("", |at| pairs[at].1.as_str());
    let Ok(before) = serde_json::from_str::<Map<String, Value>>(if text.is_empty() { "{}" } else { text }) else {
        return Ok(uri.clone());
    };
    let mut filters = before.clone();
    change(&mut filters);
    if filters == before {
        return Ok(uri.clone());
    }
    let text = Value::Object(filters).to_string();
    match at {
        Some(at) => pairs[at].1 = text,
        None => pairs.push(("filters".to_owned(), text)),
    }
    with_pairs(uri, &pairs)
}

/// Adds a value to a filter in either of its forms, unless it has it. A new filter gets the form of
/// the others: the engine reads no mixture.
pub(super) fn add_filter(filters: &mut Map<String, Value>, filter: &str, value: &str) {
    let has_sets = filters.values().any(Value::is_object);
    let empty = || if has_sets { Value::Object(Map::new()) } else { Value::Array(Vec::new()) };
    match filters.entry(filter).or_insert_with(empty) {
        Value::Array(list) if list.iter().any(|present| present == value) => {}
        Value::Array(list) => list.push(value.into()),
        Value::Object(set) => drop(set.insert(value.to_owned(), Value::Bool(true))),
        _ => {}
    }
}

/// The values of a filter in either of its forms.
pub(super) fn filter_values(filters: &Map<String, Value>, filter: &str) -> Vec<String> {
    match filters.get(filter) {
        Some(Value::Array(list)) => list.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect(),
        Some(Value::Object(set)) => set.iter().filter(|(_, on)| **on == true).map(|(value, _)| value.clone()).collect(),
        _ => Vec::new(),
    }
}

/// `filters={"name":{"web":true}}`, or `{"name":["web"]}` as older clients write it.
#[derive(Debug, Clone, Default)]
pub(super) struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Reads the parameter `filters`. Refuses each filter that is not one of `known`.
    pub(super) fn read(params: &Params, known: &[&str]) -> Result<Self, ApiError> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Values {
            Set(BTreeMap<String, bool>),
            List(Vec<String>),
            /// Go's nil map.
            None,
        }
        let text = params.text("filters");
        if text.is_empty() {
            return Ok(Self::default());
        }
        let given: Option<BTreeMap<String, Values>> = serde_json::from_str(text)
            .map_err(|error| ApiError::Invalid(format!("the filters cannot be read: {error}")))?;
        let given = given.unwrap_or_default();
        if let Some(unknown) = given.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(ApiError::Invalid(format!("invalid filter '{unknown}': use one of {}", known.join(", "))));
        }
        let values = |values| match values {
            Values::Set(set) => set.into_iter().filter(|(_, on)| *on).map(|(value, _)| value).collect(),
            Values::List(list) => list,
            Values::None => Vec::new(),
        };
        Ok(Self(given.into_iter().map(|(key, given)| (key, values(given))).collect()))
    }

    /// Whether `accepts` holds for any value of the filter, or the filter is absent.
    pub(super) fn any(&self, filter: &str, accepts: impl Fn(&str) -> bool) -> bool {
        self.0.get(filter).is_none_or(|values| values.is_empty() || values.iter().any(|value| accepts(value)))
    }

    /// The value of a boolean filter. `None` if the filter is absent.
    ///
    /// # Errors
    /// If a value means neither true nor false, or if one value means true and another means false.
    pub(super) fn flag(&self, filter: &str) -> Result<Option<bool>, ApiError> {
        let values = self.values(filter);
        let mut meanings = values.iter().map(|value| match normalized(value).as_str() {
            "1" | "true" => Some(true),
            "0" | "false" => Some(false),
            _ => None,
        });
        let first = meanings.next();
        match first {
            None => Ok(None),
            Some(Some(value)) if meanings.all(|other| other == Some(value)) => Ok(Some(value)),
            Some(_) => {
                Err(ApiError::Invalid(format!("invalid filter '{filter}={}': use true or false", values.join(","))))
            }
        }
    }

    /// The values of a filter that has only some values, in lower case. As in moby, empty values
    /// count as absent.
    ///
    /// # Errors
    /// If a value is not one of `known`.
    pub(super) fn one_of(&self, filter: &str, known: &[&str]) -> Result<Vec<String>, ApiError> {
        let values = self.values(filter).iter().filter(|value| !value.is_empty());
        let read = |value: &String| {
            let lower = value.to_lowercase();
            let error = || ApiError::Invalid(format!("invalid {filter} filter '{value}': use {}", known.join(", ")));
            known.contains(&lower.as_str()).then_some(lower).ok_or_else(error)
        };
        values.map(read).collect()
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

    fn params(name: &str, value: &str) -> Params {
        Params::from_iter([(name.to_owned(), value.to_owned())])
    }

    fn filters(text: &str) -> Result<Filters, ApiError> {
        Filters::read(&params("filters", text), &["name", "label", "dangling"])
    }

    #[test]
    fn reads_the_filters_of_old_and_new_clients() {
        for text in [r#"{"name":{"web":true,"no":false}}"#, r#"{"name":["web"]}"#] {
            let filters = filters(text).expect(text);
            assert_eq!(filters.values("name"), ["web"]);
            assert!(filters.any("name", |name| name == "web"));
            assert!(!filters.any("name", |name| name == "no"));
            assert!(filters.any("label", |_| false), "an absent filter accepts everything");
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
    fn refuses_unknown_filters() {
        assert!(filters(r#"{"colour":["red"]}"#).is_err_and(|e| e.to_string().contains("invalid filter 'colour'")));
        assert!(filters("{").is_err());
    }

    #[test]
    fn a_flag_is_true_unless_its_text_means_false() {
        for value in ["", " ", "0", "no", "No", "false", "False", "FALSE", " false ", "none", "None", "NONE"] {
            assert!(!params("f", value).flag("f"), "{value:?}");
            assert_eq!(params("f", value).strict_flag("f"), Ok(false), "{value:?}");
        }
        for value in ["1", "true", "True", "TRUE", "\ttrue\n", "t", "T"] {
            assert!(params("f", value).flag("f"), "{value:?}");
            assert_eq!(params("f", value).strict_flag("f"), Ok(true), "{value:?}");
        }
        for value in ["yes", "on", "2", "-1", "maybe"] {
            assert!(params("f", value).flag("f"), "{value:?}");
            assert!(params("f", value).strict_flag("f").is_err(), "{value:?}");
        }
        assert_eq!(params("f", "F").strict_flag("f"), Ok(false));
        assert!(!Params::default().flag("f"));
        assert_eq!(Params::default().strict_flag("f"), Ok(false));
    }

    #[test]
    fn reads_times_in_both_forms() {
        for (text, ms) in [
            ("1700000000", 1_700_000_000_000),
            ("1700000000.123456789", 1_700_000_000_123),
            ("1970-01-01T00:00:02Z", 2_000),
            ("0", 0),
        ] {
            assert_eq!(params("since", text).time_ms("since"), Ok(Some(ms)), "{text}");
        }
        assert_eq!(Params::default().time_ms("since"), Ok(None));
        for text in ["yesterday", "1.-5", "-1"] {
            assert!(params("since", text).time_ms("since").is_err(), "{text}");
        }
    }

    #[test]
    fn filters_of_a_forwarded_request_are_changed_in_both_forms() {
        let change = |uri: &str| {
            let changed = change_filters(&uri.parse().expect(uri), |filters| add_filter(filters, "label!", "k"));
            pairs(&changed.expect(uri)).into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
        };
        assert_eq!(change("/p"), [r#"filters={"label!":["k"]}"#]);
        assert_eq!(change("/p?a=1&filters=%7B%7D&b=x%20y"), ["a=1", r#"filters={"label!":["k"]}"#, "b=x y"]);
        assert_eq!(change("/p?filters=%7B%22label!%22:[%22k%22]%7D"), [r#"filters={"label!":["k"]}"#]);
        let set = change("/p?filters=%7B%22label!%22:%7B%22x%22:true%7D%7D");
        assert_eq!(set, [r#"filters={"label!":{"k":true,"x":true}}"#]);
        let beside_set = change("/p?filters=%7B%22label%22:%7B%22x%22:true%7D%7D");
        assert_eq!(beside_set, [r#"filters={"label":{"x":true},"label!":{"k":true}}"#]);
        let beside_list = change("/p?filters=%7B%22label%22:[%22x%22]%7D");
        assert_eq!(beside_list, [r#"filters={"label":["x"],"label!":["k"]}"#]);
        // The receiver refuses it.
        assert_eq!(change("/p?filters=%5B"), ["filters=["]);
    }

    #[test]
    fn uses_the_first_value_of_a_parameter() {
        let pairs = [("f", "0"), ("f", "1")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert!(!Params::from_iter(pairs).flag("f"));
    }

    #[test]
    fn reads_a_boolean_filter() {
        for (text, meaning) in [
            (r#"{"dangling":{"true":true}}"#, Some(Some(true))),
            (r#"{"dangling":["False"]}"#, Some(Some(false))),
            (r#"{"dangling":["0","false"]}"#, Some(Some(false))),
            ("{}", Some(None)),
            (r#"{"dangling":["1","0"]}"#, None),
            (r#"{"dangling":["maybe"]}"#, None),
        ] {
            assert_eq!(filters(text).expect(text).flag("dangling").ok(), meaning, "{text}");
        }
    }
}
