//! Converts secrets and configs: the spec from JSON, and a secret or config to JSON. The data of a
//! secret is in no answer, and no data is in an error.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bollard_stubs::models;
use serde_json::Value;
use weft_model::{
    spec::{DependencyKind, DependencySpec, FileData, Labels},
    state::Dependency,
};

use super::{
    fields::{self, Ignored},
    unsupported,
    values::{date, labels, to_json, version},
};
use crate::api::{error::ApiError, features};

/// The only template driver, which Swarm has too.
const GOLANG: &str = "golang";

/// What a client sends. Both kinds have the same fields, but for the driver of secrets.
struct Given {
    name: String,
    labels: Labels,
    data: Option<Vec<u8>>,
    templated: bool,
}

fn read_given(kind: DependencyKind, mut body: Value, ignored: &mut Ignored) -> Result<Given, ApiError> {
    let requested: models::SecretSpec = match kind {
        DependencyKind::Secret => fields::read_known(&mut body, ignored)?,
        DependencyKind::Config => {
            let models::ConfigSpec { name, labels, data, templating } = fields::read_known(&mut body, ignored)?;
            models::SecretSpec { name, labels, data, driver: None, templating }
        }
    };
    if requested.driver.as_ref().is_some_and(|driver| !driver.name.is_empty()) {
        return Err(features::SECRET_DRIVERS.refusal());
    }
    let templated = match requested.templating.as_ref().map(|driver| driver.name.as_str()) {
        None | Some("") => false,
        Some(GOLANG) => true,
        Some(other) => return Err(features::TEMPLATE_DRIVERS.refusal_of(&format!("the template driver {other}"))),
    };
    let decoded = |text: String| {
        STANDARD.decode(text).map_err(|_| ApiError::Invalid(format!("the Data of the {kind} is no text in base64")))
    };
    let data = requested.data.filter(|text| !text.is_empty()).map(decoded).transpose()?;
    let labels: Labels = requested.labels.unwrap_or_default().into_iter().collect();
    let name = requested.name.unwrap_or_default();
    // The data was read, and must not be in an error.
    if let Some(fields) = body.as_object_mut() {
        fields.remove("Data");
    }
    let honoured = models::SecretSpec {
        name: Some(name.clone()),
        labels: Some(super::values::labels(&labels)),
        templating: templating(templated),
        ..Default::default()
    };
    unsupported::refuse(&body, &to_json(honoured))?;
    Ok(Given { name, labels, data, templated })
}

fn templating(templated: bool) -> Option<models::Driver> {
    templated.then(|| models::Driver { name: GOLANG.to_owned(), options: None })
}

/// Reads the spec of a new secret or config.
pub(crate) fn read(kind: DependencyKind, body: Value, ignored: &mut Ignored) -> Result<DependencySpec, ApiError> {
    let Given { name, labels, data, templated } = read_given(kind, body, ignored)?;
    let name =
        name.parse().map_err(|error: weft_model::spec::InvalidDependencyName| ApiError::Invalid(error.to_string()))?;
    Ok(DependencySpec { kind, name, labels, data: FileData(data.unwrap_or_default()).into(), templated })
}

/// Reads the labels of an update. Clients send the whole spec, of which only the labels may differ.
pub(crate) fn read_labels(current: &DependencySpec, body: Value, ignored: &mut Ignored) -> Result<Labels, ApiError> {
    let given = read_given(current.kind, body, ignored)?;
    let is_same = given.name == current.name.as_str()
        && given.data.is_none_or(|data| data == current.data.0)
        && (!given.templated || current.templated);
    if is_same { Ok(given.labels) } else { Err(ApiError::Invalid("only updates to Labels are allowed".to_owned())) }
}

/// A secret in the form of `GET /secrets/{id}`, or a config in that of `GET /configs/{id}`.
pub(crate) fn show(found: &Dependency) -> Value {
    let spec = &found.spec;
    let (name, labels) = (Some(spec.name.to_string()), Some(labels(&spec.labels)));
    let (id, version) = (Some(found.id.to_string()), version(&found.meta));
    let (created_at, updated_at) = (date(found.meta.created_ms), date(found.meta.updated_ms));
    let templating = templating(spec.templated);
    match spec.kind {
        DependencyKind::Secret => to_json(models::Secret {
            id,
            version,
            created_at,
            updated_at,
            spec: Some(models::SecretSpec { name, labels, data: None, driver: None, templating }),
        }),
        DependencyKind::Config => to_json(models::Config {
            id,
            version,
            created_at,
            updated_at,
            spec: Some(models::ConfigSpec { name, labels, data: Some(STANDARD.encode(&spec.data.0)), templating }),
        }),
    }
}
