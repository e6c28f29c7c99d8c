//! Converts services: the spec in both directions, and a service to JSON.

mod endpoint;
mod rollout;
mod show;

use bollard_stubs::models;
use serde_json::{Value, json};
use weft_model::{
    NetworkId, ServiceName,
    spec::{ContainerSpec, ServiceMode, ServiceSpec},
};

use super::{
    fields::{self, Ignored},
    left_out, placement, task, unsupported,
    values::{count, labels, set, signed, to_json},
};
use crate::api::{error::ApiError, features};

pub(crate) use show::{Options, show};

/// Reads a spec. `resolve` finds the id of a network by the name or id that the user gave. Adds the
/// fields that have no effect to `ignored`.
pub(crate) fn read(
    mut body: Value,
    resolve: &dyn Fn(&str) -> Result<NetworkId, ApiError>,
    ignored: &mut Ignored,
) -> Result<ServiceSpec, ApiError> {
    // This read only renames and removes fields. Its error is dropped, because the read below
    // returns the same error, unless `normalise` returns a more exact one.
    drop(fields::read_known::<models::ServiceSpec>(&mut body, ignored));
    normalise(&mut body, resolve, ignored)?;
    let requested: models::ServiceSpec = fields::read_known(&mut body, ignored)?;
    let template = requested.task_template.unwrap_or_default();
    let spec = ServiceSpec {
        name: requested.name.unwrap_or_default().parse::<ServiceName>()?,
        labels: requested.labels.unwrap_or_default().into_iter().collect(),
        mode: read_mode(requested.mode)?,
        update: rollout::read("UpdateConfig", requested.update_config)?,
        rollback: rollout::read("RollbackConfig", requested.rollback_config.as_ref().map(rollout::update_of_rollback))?,
        endpoint: endpoint::read(requested.endpoint_spec)?,
        task: task::read(template)?.into(),
        left_out: left_out::read(&body),
    };
    unsupported::refuse(&body, &to_json(write(&spec)))?;
    Ok(spec)
}

/// Some values can be written in several forms. This changes them to the form that [`write()`]
/// uses.
fn normalise(
    body: &mut Value,
    resolve: &dyn Fn(&str) -> Result<NetworkId, ApiError>,
    ignored: &mut Ignored,
) -> Result<(), ApiError> {
    // Clients of API 1.24 write the networks beside the task template. As in moby, those of the
    // template count if a client writes networks in both places.
    if let Some(networks) = body.as_object_mut().and_then(|b| b.remove("Networks")).filter(|n| !n.is_null()) {
        if body["TaskTemplate"]["Networks"].as_array().is_none_or(Vec::is_empty) {
            let template = &mut body["TaskTemplate"];
            if template.is_null() {
                *template = json!({});
            }
            set(template, "Networks", networks);
        } else if body["TaskTemplate"]["Networks"] != networks {
            ignored.add("Networks", &networks);
        }
    }
    for mode in ["Global", "GlobalJob"] {
        if let Some(settings) = body.pointer_mut(&format!("/Mode/{mode}")) {
            fields::remove_all(settings, &format!("Mode.{mode}"), ignored);
        }
    }
    if let Some(networks) = body.pointer_mut("/TaskTemplate/Networks").and_then(Value::as_array_mut) {
        for network in networks {
            if let Some(target) = network["Target"].as_str() {
                let id = resolve(target)?;
                set(network, "Target", Value::String(id.into()));
            }
        }
    }
    for port in body.pointer("/EndpointSpec/Ports").and_then(Value::as_array).into_iter().flatten() {
        if let Some(mode) = port["PublishMode"].as_str().filter(|mode| !matches!(*mode, "" | "ingress")) {
            return Err(features::HOST_PORTS.refusal_of(&format!("mode={mode} ports")));
        }
    }
    if let Some(constraints) = body.pointer_mut("/TaskTemplate/Placement/Constraints").and_then(Value::as_array_mut) {
        for constraint in constraints {
            if let Some(text) = constraint.as_str() {
                *constraint = Value::String(placement::write_constraint(&placement::read_constraint(text)?));
            }
        }
    }
    if let Some(preferences) = body.pointer_mut("/TaskTemplate/Placement/Preferences").and_then(Value::as_array_mut) {
        for descriptor in preferences.iter_mut().filter_map(|one| one.pointer_mut("/Spread/SpreadDescriptor")) {
            if let Some(text) = descriptor.as_str() {
                *descriptor = Value::String(placement::write_attribute(&placement::read_spread(text)?));
            }
        }
    }
    body.pointer_mut("/TaskTemplate/ContainerSpec").map_or(Ok(()), task::normalise_names)
}

/// The spec as the user has sent it.
pub(crate) fn write_as_sent(spec: &ServiceSpec) -> Value {
    let mut shown = to_json(write(spec));
    let default = ServiceSpec::new(spec.name.clone(), ContainerSpec::new(&spec.task.container.image));
    left_out::hide(&mut shown, "", &spec.left_out, &to_json(write(&default)));
    shown
}

/// The spec with all defaults.
pub(crate) fn write(spec: &ServiceSpec) -> models::ServiceSpec {
    models::ServiceSpec {
        name: Some(spec.name.to_string()),
        labels: Some(labels(&spec.labels)),
        task_template: Some(task::write(&spec.task)),
        mode: Some(match spec.mode {
            ServiceMode::Replicated { replicas } => models::ServiceSpecMode {
                replicated: Some(models::ServiceSpecModeReplicated { replicas: Some(signed(replicas)) }),
                ..Default::default()
            },
            ServiceMode::Global => models::ServiceSpecMode { global: Some([].into()), ..Default::default() },
        }),
        update_config: Some(rollout::write(&spec.update)),
        rollback_config: Some(rollout::rollback_of_update(&rollout::write(&spec.rollback))),
        networks: None,
        endpoint_spec: Some(endpoint::write(&spec.endpoint)),
    }
}

fn read_mode(mode: Option<models::ServiceSpecMode>) -> Result<ServiceMode, ApiError> {
    let mode = mode.unwrap_or_default();
    if mode.replicated_job.is_some() {
        return Err(features::JOBS.refusal_at("Mode.ReplicatedJob"));
    }
    if mode.global_job.is_some() {
        return Err(features::JOBS.refusal_at("Mode.GlobalJob"));
    }
    match (mode.replicated, mode.global) {
        (Some(_), Some(_)) => Err(ApiError::Invalid("Mode has both Replicated and Global: give one of them".into())),
        (None, Some(_)) => Ok(ServiceMode::Global),
        (replicated, None) => {
            let replicas = replicated.and_then(|r| r.replicas);
            Ok(ServiceMode::Replicated {
                replicas: replicas.map_or(Ok(1), |r| count("Mode.Replicated.Replicas", Some(r)))?,
            })
        }
    }
}
