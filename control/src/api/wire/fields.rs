//! Reads request bodies, in which the names of fields may be in upper or lower case.
//!
//! Clients were written for Go's `encoding/json`, which accepts a name in another case if no field
//! has exactly this name. For example, docker-py writes `Mode: {"global": {}}`. Every reader of a
//! body calls [`read`] first. It changes the names to those of the Engine API's types. It must not
//! change the keys of maps (labels, options), because users choose them.

use serde::{
    Deserialize, Deserializer,
    de::{
        IntoDeserializer, Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
};
use serde_json::{Error, Map, Value};

use crate::api::error::ApiError;

/// Reads `body` as `T`. Names of fields match in any case. `read` also renames the fields in `body`
/// to the names in `T`; fields that `T` does not have keep their names.
///
/// # Errors
/// If a value has the wrong type, or if a field is given twice.
pub(crate) fn read<'de, T: Deserialize<'de>>(body: &'de mut Value) -> Result<T, ApiError> {
    T::deserialize(Renaming(body))
        .map_err(|error| ApiError::Invalid(format!("the request body cannot be read: {error}")))
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
struct Renaming<'de>(&'de mut Value);

impl<'de> Deserializer<'de> for Renaming<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(values) => {
                let mut items = SeqDeserializer::new(values.iter_mut().map(Renaming));
                let read = visitor.visit_seq(&mut items)?;
                items.end()?;
                Ok(read)
            }
            Value::Object(map) => {
                let mut entries =
                    MapDeserializer::new(map.iter_mut().map(|(name, value)| (name.as_str(), Renaming(value))));
                let read = visitor.visit_map(&mut entries)?;
                entries.end()?;
                Ok(read)
            }
            scalar => (&*scalar).deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if let Value::Object(map) = &mut *self.0 {
            rename_all(map, fields).map_err(serde::de::Error::custom)?;
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
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
        (&*self.0).deserialize_enum(name, variants, visitor)
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
