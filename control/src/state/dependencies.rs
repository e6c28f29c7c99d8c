//! Secrets and configs: creation, changes of labels, removal, and which services use them.

use weft_model::{
    Applied, ClusterState, DependencyId, Rejection,
    command::ObjectKind,
    spec::{ContainerSpec, DependencyKind, DependencySpec, FileReference, Labels, MAX_FILE_MODE},
    state::{Dependency, Service},
};

use super::{check_version, new_meta, not_found, updated_meta};
use crate::plan::template;

pub(super) fn create(state: &mut ClusterState, id: DependencyId, spec: DependencySpec) -> Result<Applied, Rejection> {
    let kind = ObjectKind::from(spec.kind);
    if state.dependencies.contains_key(&id) {
        return Err(Rejection::InUse { kind, id: id.to_string(), by: id.to_string() });
    }
    if state.dependency_by_name(spec.kind, spec.name.as_str()).is_some() {
        return Err(Rejection::AlreadyExists { kind, name: spec.name.to_string() });
    }
    check(&spec)?;
    let meta = new_meta(state);
    state.dependencies.insert(id.clone(), Dependency { id, meta, spec });
    Ok(Applied::Done)
}

pub(super) fn update(
    state: &mut ClusterState,
    id: &DependencyId,
    version: u64,
    labels: Labels,
) -> Result<Applied, Rejection> {
    // Which of both it should be is not known.
    let current = state.dependencies.get(id).ok_or_else(|| not_found(ObjectKind::Secret, id))?;
    check_version(current.spec.kind.into(), id, current.meta, version)?;
    let meta = updated_meta(state, current.meta);
    if let Some(dependency) = state.dependencies.get_mut(id) {
        dependency.meta = meta;
        dependency.spec.labels = labels;
    }
    Ok(Applied::Done)
}

/// Refused while a service uses it, in Swarm's words. Tasks of an earlier spec do not count, as in
/// Swarm: they have their files already.
pub(super) fn remove(state: &mut ClusterState, id: &DependencyId) -> Result<Applied, Rejection> {
    let found = state.dependencies.get(id).ok_or_else(|| not_found(ObjectKind::Secret, id))?;
    let (kind, name) = (found.spec.kind, &found.spec.name);
    let uses = |service: &&Service| !service.removing && service.spec.task.container.files().any(|(_, f)| f.id == *id);
    let users: Vec<&str> = state.services.values().filter(uses).map(|service| service.spec.name.as_str()).collect();
    if !users.is_empty() {
        let services = if users.len() == 1 { "service" } else { "services" };
        let users = users.join(", ");
        return Err(Rejection::Invalid(format!("{kind} '{name}' is in use by the following {services}: {users}")));
    }
    state.dependencies.remove(id);
    Ok(Applied::Done)
}

/// Checks the data, in Swarm's words.
fn check(spec: &DependencySpec) -> Result<(), Rejection> {
    let (kind, max) = (spec.kind, spec.kind.max_bytes());
    if !(1..max).contains(&spec.data.0.len()) {
        return Err(Rejection::Invalid(format!("{kind} data must be larger than 0 and less than {max} bytes")));
    }
    if !spec.templated {
        return Ok(());
    }
    let invalid = |why: String| Err(Rejection::Invalid(format!("{kind} {} has {why}", spec.name)));
    let Ok(text) = std::str::from_utf8(&spec.data.0) else {
        return invalid("a template driver, and its data is no text in UTF-8: create it without one".to_owned());
    };
    // The text around a template may be secret, and errors are logged.
    match template::unknown(text) {
        Some(_) => {
            let known = template::KNOWN.map(|(name, _)| format!("{{{{{name}}}}}")).join(", ");
            invalid(format!("a template that is not known: use {known}"))
        }
        None => Ok(()),
    }
}

/// Checks the files of a container, in Swarm's words.
pub(super) fn check_files(state: &ClusterState, container: &ContainerSpec) -> Result<(), Rejection> {
    for (kind, files) in [(DependencyKind::Secret, &container.secrets), (DependencyKind::Config, &container.configs)] {
        check_existence(state, kind, files)?;
    }
    let mut paths: Vec<(String, &FileReference)> = Vec::new();
    for (kind, file) in container.files() {
        let name = &file.name;
        let Some(path) = file.path(kind) else {
            return Err(Rejection::Invalid(format!(
                "malformed file {kind} reference, invalid target file name provided: {:?} of {kind} {name} is no path \
                 of a file without \".\" and \"..\"",
                file.target
            )));
        };
        if file.mode > MAX_FILE_MODE {
            return Err(Rejection::Invalid(format!(
                "mode {:#o} of {kind} {name} is more than permissions: use at most {MAX_FILE_MODE:#o}",
                file.mode
            )));
        }
        if let Some((_, other)) = paths.iter().find(|(other, _)| *other == path) {
            return Err(Rejection::Invalid(format!(
                "{kind} references '{}' and '{name}' have a conflicting target: '{}'",
                other.name, file.target
            )));
        }
        paths.push((path, file));
    }
    Ok(())
}

/// Refuses references to what does not exist, or has another name.
fn check_existence(state: &ClusterState, kind: DependencyKind, files: &[FileReference]) -> Result<(), Rejection> {
    let exists = |file: &&FileReference| {
        let found = state.dependencies.get(&file.id).map(|found| &found.spec);
        found.is_some_and(|spec| spec.kind == kind && spec.name.as_str() == file.name)
    };
    let missing: Vec<&str> = files.iter().filter(|file| !exists(file)).map(|file| file.name.as_str()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let plural = if missing.len() == 1 { "" } else { "s" };
    Err(Rejection::Invalid(format!("{kind}{plural} not found: {}", missing.join(", "))))
}
