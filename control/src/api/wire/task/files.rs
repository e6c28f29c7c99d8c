//! Converts the files of a task with secrets and configs, in both directions.

use bollard_stubs::models;
use weft_model::{
    DependencyId,
    spec::{DependencyKind, FileReference},
};

use crate::api::{error::ApiError, features};

pub(super) fn read_secrets(given: Vec<models::TaskSpecContainerSpecSecrets>) -> Result<Vec<FileReference>, ApiError> {
    let read = |secret: models::TaskSpecContainerSpecSecrets| {
        let file = secret.file.map(|file| File { name: file.name, uid: file.uid, gid: file.gid, mode: file.mode });
        reference(DependencyKind::Secret, secret.secret_id, secret.secret_name, file)
    };
    given.into_iter().map(read).collect()
}

pub(super) fn read_configs(given: Vec<models::TaskSpecContainerSpecConfigs>) -> Result<Vec<FileReference>, ApiError> {
    let read = |config: models::TaskSpecContainerSpecConfigs| {
        // The value is an empty object, which would count as absent.
        if config.runtime.is_some() {
            return Err(features::CREDENTIAL_CONFIGS.refusal_at("TaskTemplate.ContainerSpec.Configs[].Runtime"));
        }
        let file = config.file.map(|file| File { name: file.name, uid: file.uid, gid: file.gid, mode: file.mode });
        reference(DependencyKind::Config, config.config_id, config.config_name, file)
    };
    given.into_iter().map(read).collect()
}

/// The API has a type for each kind, with the same fields.
struct File {
    name: Option<String>,
    uid: Option<String>,
    gid: Option<String>,
    mode: Option<u32>,
}

/// The words of the errors are Swarm's.
fn reference(
    kind: DependencyKind,
    id: Option<String>,
    name: Option<String>,
    file: Option<File>,
) -> Result<FileReference, ApiError> {
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (Some(id), Some(name)) = (some(id), some(name)) else {
        return Err(ApiError::Invalid(format!("malformed {kind} reference: give its id and its name")));
    };
    let Some(file) = file else {
        return Err(ApiError::Invalid(format!("malformed {kind} reference, no target provided: give a File")));
    };
    let Some(target) = some(file.name) else {
        let text =
            format!("malformed file {kind} reference, invalid target file name provided: give {name} a File.Name");
        return Err(ApiError::Invalid(text));
    };
    // What is no id names nothing that exists.
    let id: DependencyId = id.parse().map_err(|_| ApiError::Invalid(format!("{kind} not found: {name}")))?;
    let number = |field: &str, text: Option<String>| match some(text) {
        None => Ok(0),
        Some(text) => text.parse::<u32>().map_err(|_| {
            ApiError::Invalid(format!("{field} {text:?} of {kind} {name} is no number: give the number of the owner"))
        }),
    };
    let (uid, gid) = (number("UID", file.uid)?, number("GID", file.gid)?);
    Ok(FileReference { id, name, target, uid, gid, mode: file.mode.unwrap_or(0) })
}

pub(super) fn write_secret(file: &FileReference) -> models::TaskSpecContainerSpecSecrets {
    models::TaskSpecContainerSpecSecrets {
        file: Some(models::TaskSpecContainerSpecFile {
            name: Some(file.target.clone()),
            uid: Some(file.uid.to_string()),
            gid: Some(file.gid.to_string()),
            mode: Some(file.mode),
        }),
        secret_id: Some(file.id.to_string()),
        secret_name: Some(file.name.clone()),
    }
}

pub(super) fn write_config(file: &FileReference) -> models::TaskSpecContainerSpecConfigs {
    models::TaskSpecContainerSpecConfigs {
        file: Some(models::TaskSpecContainerSpecFile1 {
            name: Some(file.target.clone()),
            uid: Some(file.uid.to_string()),
            gid: Some(file.gid.to_string()),
            mode: Some(file.mode),
        }),
        runtime: None,
        config_id: Some(file.id.to_string()),
        config_name: Some(file.name.clone()),
    }
}
