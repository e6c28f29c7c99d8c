//! Reads request bodies: finds fields in upper or lower case, and removes those that the Engine API
//! does not have.
//!
//! Clients were written for Go's `encoding/json`, which accepts a name in another case if no field
//! has exactly this name. For example, docker-py writes `Mode: {"global": {}}`. Every reader of a
//! body calls [`read`] or [`read_known`] first. They change the names to those of the Engine API's
//! types. They must not change the keys of maps (labels, options), because users choose them.
//!
//! moby ignores fields that its types do not have, and clients rely on it: Dockerode sends
//! `AcceptancePolicy`, which only a pre-release of Swarm mode had. So [`read_known`] removes such
//! fields, and lists them in [`Ignored`], which the handler tells the client or the log. Fields
//! that moby's types have stay in the body, so that `unsupported::refuse` refuses what weft cannot
//! do. The names of moby's fields are those of the types in `bollard_stubs`, which are generated
//! from moby's `api/swagger.yaml`, and of [`ADDED`]. A test compares them with moby's Go types.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

use serde::{
    Deserialize, Deserializer,
    de::{
        IntoDeserializer, Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
};
use serde_json::{Error, Map, Value};

use super::unsupported::{is_default, without_indices};
use crate::api::{error::ApiError, features};

/// Fields that are in no type of `bollard_stubs`, each with the name of its type: those of moby's
/// Go types that its `swagger.yaml` leaves out, and the extensions of weft.
const ADDED: &[(&str, &[&str])] = &[
    // Until version 1.43.
    ("NetworkCreateRequest", &["CheckDuplicate"]),
    ("SwarmInitRequest", &["AutoLockManagers", "Availability"]),
    ("SwarmJoinRequest", &["Availability"]),
    ("SwarmSpec", &["DefaultAddrPool", "SubnetSize"]),
    ("SwarmSpecDispatcher", &["HeartbeatMisses"]),
    ("SwarmSpecEncryptionConfig", &["KeyRotationPeriod"]),
];

/// Number of ignored fields that are named.
const NAMED: usize = 32;

/// The fields of a request that have no effect, because the Engine API does not have them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Ignored(BTreeSet<String>);

impl Ignored {
    /// Adds a field, unless its value means "the default" and thus asks for nothing.
    pub(crate) fn add(&mut self, path: &str, value: &Value) {
        if !is_default(value) {
            self.0.insert(path.to_owned());
        }
    }

    /// A text for each field, for an answer that has a field for warnings.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = String> {
        let named = self.0.iter().take(NAMED);
        let named = named.map(|path| format!("the field {path} was ignored: the Engine API has no such field"));
        let more = self.0.len().saturating_sub(NAMED);
        named.chain((more > 0).then(|| format!("{more} more fields were ignored")))
    }

    /// Logs the fields of a request whose answer has no field for warnings.
    pub(crate) fn log(&self, request: &str) {
        if !self.0.is_empty() {
            let named: Vec<&str> = self.0.iter().take(NAMED).map(String::as_str).collect();
            let (fields, all) = (named.join(", "), self.0.len());
            tracing::warn!(request, fields, all, "ignored fields that the Engine API does not have");
        }
    }
}

/// Reads `body` as `T`. Names of fields match in any case. `read` also renames the fields in `body`
/// to the names in `T`; fields that `T` does not have keep their names.
///
/// # Errors
/// If a value has the wrong type, or if a field is given twice.
pub(crate) fn read<'de, T: Deserialize<'de>>(body: &'de mut Value) -> Result<T, ApiError> {
    deserialize(Renaming { value: body, path: String::new(), removed: None })
}

/// Like [`read`], for a `T` that has all fields of the Engine API. Also removes the other fields
/// from `body`, and adds them to `ignored`.
///
/// # Errors
/// If a value has the wrong type, or if a field is given twice.
pub(crate) fn read_known<'de, T: Deserialize<'de>>(body: &'de mut Value, ignored: &mut Ignored) -> Result<T, ApiError> {
    let removed = Rc::new(RefCell::new(std::mem::take(ignored)));
    let read = deserialize(Renaming { value: body, path: String::new(), removed: Some(Rc::clone(&removed)) });
    *ignored = removed.take();
    read
}

fn deserialize<'de, T: Deserialize<'de>>(body: Renaming<'de>) -> Result<T, ApiError> {
    T::deserialize(body).map_err(|error| ApiError::Invalid(format!("the request body cannot be read: {error}")))
}

/// Removes the fields of `map` that are not in `known`. Fields of a feature that weft does not
/// support stay, because the feature is refused.
fn remove_unknown(map: &mut Map<String, Value>, known: &[&str], path: &str, removed: &mut Ignored) {
    map.retain(|name, value| {
        let path = joined(path, name);
        let keep = known.contains(&name.as_str()) || features::of_field(&without_indices(&path)).is_some();
        if !keep {
            removed.add(&path, value);
        }
        keep
    });
}

/// Removes all fields of the object at `path`, which has none in the Engine API.
pub(crate) fn remove_all(object: &mut Value, path: &str, ignored: &mut Ignored) {
    if let Value::Object(map) = object {
        remove_unknown(map, &[], path, ignored);
    }
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Renames a field that is given in another case to `field`. It is for fields that the Engine API's
/// types do not have.
///
/// # Errors
/// If the field is given twice.
pub(crate) fn rename(object: &mut Value, field: &'static str) -> Result<(), ApiError> {
    let Value::Object(map) = object else { return Ok(()) };
    rename_all(map, &[field]).map_err(|twice| ApiError::Invalid(format!("the request body cannot be read: {twice}")))
}

/// The values of all fields with this name, in any case.
pub(crate) fn values<'a>(object: &'a Value, field: &'static str) -> impl Iterator<Item = &'a Value> {
    let fields = object.as_object().into_iter().flatten();
    fields.filter(move |(name, _)| name.eq_ignore_ascii_case(field)).map(|(_, value)| value)
}

fn rename_all(map: &mut Map<String, Value>, fields: &[&'static str]) -> Result<(), String> {
    let other_case = |name: &String| {
        let exact = fields.contains(&name.as_str());
        fields.iter().find(|field| !exact && field.eq_ignore_ascii_case(name)).map(|field| (name.clone(), *field))
    };
    let renamed: Vec<_> = map.keys().filter_map(other_case).collect();
    for (name, field) in renamed {
        if map.contains_key(field) {
            return Err(format!("field {field} is there twice, once as {name}: give it once"));
        }
        if let Some(value) = map.remove(&name) {
            map.insert(field.to_owned(), value);
        }
    }
    Ok(())
}

/// A deserializer that renames fields. serde passes the field names of each struct to it. It
/// renames the fields of the JSON object from which the struct is read.
struct Renaming<'de> {
    value: &'de mut Value,
    path: String,
    /// If it is given, fields that a struct does not have are removed.
    removed: Option<Rc<RefCell<Ignored>>>,
}

impl<'de> Deserializer<'de> for Renaming<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Self { value, path, removed } = self;
        let below = |value, path| Renaming { value, path, removed: removed.clone() };
        match value {
            Value::Array(values) => {
                let items = values.iter_mut().enumerate();
                let mut items = SeqDeserializer::new(items.map(|(i, value)| below(value, format!("{path}[{i}]"))));
                let read = visitor.visit_seq(&mut items)?;
                items.end()?;
                Ok(read)
            }
            Value::Object(map) => {
                let entries = map.iter_mut();
                let mut entries = MapDeserializer::new(
                    entries.map(|(name, value)| (name.as_str(), below(value, joined(&path, name)))),
                );
                let read = visitor.visit_map(&mut entries)?;
                entries.end()?;
                Ok(read)
            }
            scalar => (&*scalar).deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if let Value::Object(map) = &mut *self.value {
            let added = ADDED.iter().filter(|(of, _)| *of == name).flat_map(|(_, fields)| fields.iter());
            let fields: Vec<&'static str> = fields.iter().chain(added).copied().collect();
            rename_all(map, &fields).map_err(serde::de::Error::custom)?;
            if let Some(removed) = &self.removed {
                remove_unknown(map, &fields, &self.path, &mut removed.borrow_mut());
            }
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.value.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        (&*self.value).deserialize_enum(name, variants, visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Error> for Renaming<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use bollard_stubs::models as wire;
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_found_in_any_case() {
        let mut body = json!({
            "name": "web",
            "MODE": {"replicated": {"replicas": 3}},
            "TaskTemplate": {"containerspec": {"image": "x", "labels": {"Image": "mine", "image": "mine too"}}},
            "endpointSpec": {"ports": [{"targetport": 80}, {"TargetPort": 81}]},
        });
        let spec: wire::ServiceSpec = read(&mut body).expect("a service");
        assert_eq!(spec.mode.and_then(|mode| mode.replicated).and_then(|mode| mode.replicas), Some(3));
        assert_eq!(
            body,
            json!({
                "Name": "web",
                "Mode": {"Replicated": {"Replicas": 3}},
                "TaskTemplate": {"ContainerSpec": {"Image": "x", "Labels": {"Image": "mine", "image": "mine too"}}},
                "EndpointSpec": {"Ports": [{"TargetPort": 80}, {"TargetPort": 81}]},
            })
        );
    }

    #[test]
    fn unknown_fields_keep_their_names() {
        let mut body = json!({"surprise": {"Name": 1, "name": 2}, "Labels": null});
        let spec: wire::NodeSpec = read(&mut body).expect("a node");
        assert_eq!(spec, wire::NodeSpec::default());
        assert_eq!(body, json!({"surprise": {"Name": 1, "name": 2}, "Labels": null}));
    }

    /// `moby_fields.txt` has the fields of moby's Go types (`api/types/swarm`, `api/types/network`,
    /// `api/types/mount` at commit b985e2313a), one path a line, after the kind of request.
    #[test]
    fn no_field_of_moby_is_ignored() {
        let mut missing = Vec::new();
        for line in include_str!("moby_fields.txt").lines() {
            let (kind, path) = line.split_once(' ').expect("a kind and a path");
            let mut body = path.rsplit('.').fold(json!(1), |inner, field| match field.strip_suffix("[]") {
                Some(field) => json!({field: [inner]}),
                None => json!({field: inner}),
            });
            let mut ignored = Ignored::default();
            // The value has the wrong type for most fields. The names are compared before.
            match kind {
                "service" => drop(read_known::<wire::ServiceSpec>(&mut body, &mut ignored)),
                "swarm" => drop(read_known::<wire::SwarmSpec>(&mut body, &mut ignored)),
                "init" => drop(read_known::<wire::SwarmInitRequest>(&mut body, &mut ignored)),
                "join" => drop(read_known::<wire::SwarmJoinRequest>(&mut body, &mut ignored)),
                "unlock" => drop(read_known::<wire::SwarmUnlockRequest>(&mut body, &mut ignored)),
                "node" => drop(read_known::<wire::NodeSpec>(&mut body, &mut ignored)),
                "network" => drop(read_known::<wire::NetworkCreateRequest>(&mut body, &mut ignored)),
                "secret" => drop(read_known::<wire::SecretSpec>(&mut body, &mut ignored)),
                "config" => drop(read_known::<wire::ConfigSpec>(&mut body, &mut ignored)),
                other => panic!("an unknown kind of request: {other}"),
            }
            if ignored != Ignored::default() {
                missing.push(line);
            }
        }
        assert_eq!(missing, [""; 0]);
    }

    #[test]
    fn fields_that_the_engine_api_does_not_have_are_removed_and_listed() {
        let mut body = json!({
            "AcceptancePolicy": {"Policies": [{"Role": "MANAGER", "Autoaccept": false}, {"Autoaccept": true}]},
            "Default": {"Of": 0},
            "Dispatcher": {"heartbeatmisses": 3, "Beat": 1},
            "CAConfig": {"ExternalCAs": [{"Protocol": "cfssl", "Key": "x"}]},
            "TaskDefaults": {"LogDriver": {"Level": 1}},
        });
        let mut ignored = Ignored::default();
        read_known::<wire::SwarmSpec>(&mut body, &mut ignored).expect("a spec");
        assert_eq!(ignored.0, ["AcceptancePolicy", "Dispatcher.Beat"].map(str::to_owned).into());
        assert_eq!(
            body,
            json!({
                "Dispatcher": {"HeartbeatMisses": 3},
                // Features that are refused by name.
                "CAConfig": {"ExternalCAs": [{"Protocol": "cfssl", "Key": "x"}]},
                "TaskDefaults": {"LogDriver": {"Level": 1}},
            })
        );
        let mut body = json!({"Mode": {"Replicated": {"Replicas": 1}}, "EndpointSpec": {"Ports": [{"X": 1}]}});
        let mut ignored = Ignored::default();
        read_known::<wire::ServiceSpec>(&mut body, &mut ignored).expect("a service");
        assert_eq!(ignored.0, ["EndpointSpec.Ports[0].X".to_owned()].into());
    }

    #[test]
    fn refuses_a_field_that_is_given_twice() {
        for body in [json!({"Role": "worker", "role": "manager"}), json!({"ROLE": "worker", "role": "manager"})] {
            let error = read::<wire::NodeSpec>(&mut body.clone()).expect_err("two roles").to_string();
            assert!(error.contains("field Role is there twice, once as "), "{error}");
        }
        let mut body = json!({"Misses": 1, "misses": 2});
        assert!(rename(&mut body, "Misses").is_err());
    }

    #[test]
    fn values_of_another_type_are_refused() {
        for body in [json!({"Role": 1}), json!({"Labels": []}), json!({"labels": {"a": 1}}), json!([])] {
            assert!(read::<wire::NodeSpec>(&mut body.clone()).is_err(), "{body}");
        }
    }

    #[test]
    fn names_of_single_fields_are_found_in_any_case() {
        let mut body = json!({"driver": "overlay", "DRIVER": "bridge", "misses": 1});
        assert_eq!(values(&body, "Driver").count(), 2);
        rename(&mut body, "Misses").expect("one field");
        assert_eq!(body["Misses"], 1);
    }
}
