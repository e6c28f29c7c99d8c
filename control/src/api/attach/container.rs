//! A container that exists, as its engine shows it, for a request that changes its networks.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use serde_json::Value;
use tokio::sync;
use weft_model::{CONTAINER_OPTION, TASK_LABEL, TaskId, command::ObjectKind, state::ContainerIdentity};

use super::super::{Api, engine, error::ApiError, query::encoded};

/// Requests that connect and disconnect one container wait for each other. Two that run at once
/// would give the container two ids, or the one that fails would free the address of the other.
#[derive(Debug, Default)]
pub(in crate::api) struct Locks(Mutex<BTreeMap<String, Weak<sync::Mutex<()>>>>);

impl Locks {
    /// The lock of the container with this id in the engine.
    fn of(&self, container: &str) -> Arc<sync::Mutex<()>> {
        // Each change is complete before anything can panic.
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        let known = locks.get(container).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let lock = Arc::default();
            locks.insert(container.to_owned(), Arc::downgrade(&lock));
            lock
        })
    }
}

/// A container of the engine.
pub(super) struct Container {
    pub(super) identity: ContainerIdentity,
    /// The names and ids of its networks.
    networks: Vec<String>,
    /// How many networks of the engine's own it is on.
    pub(super) others: usize,
    /// Its id in the cluster state, if it is on a network of the cluster.
    pub(super) id: Option<TaskId>,
    is_task: bool,
}

impl Container {
    pub(super) async fn find(api: &Api, name: &str) -> Result<Self, ApiError> {
        let missing = || ApiError::NotFound { kind: ObjectKind::Container, name: name.to_owned() };
        let path = format!("/containers/{}/json", encoded(name));
        let found = engine::find(api, &path).await?.filter(|_| !name.is_empty()).ok_or_else(missing)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let endpoints = found["NetworkSettings"]["Networks"].as_object();
        let owner = |endpoint: &Value| endpoint["DriverOpts"][CONTAINER_OPTION].as_str()?.parse::<TaskId>().ok();
        let mut container = Self {
            identity: ContainerIdentity {
                container: text(&found["Id"]),
                name: text(&found["Name"]).trim_start_matches('/').to_owned(),
            },
            networks: Vec::new(),
            others: 0,
            id: None,
            is_task: found["Config"]["Labels"].get(TASK_LABEL).is_some(),
        };
        for (name, endpoint) in endpoints.into_iter().flatten() {
            container.networks.extend([name.clone(), text(&endpoint["NetworkID"])]);
            match owner(endpoint) {
                Some(owner) => container.id = Some(owner),
                None => container.others += 1,
            }
        }
        Ok(container)
    }

    /// Finds a container that is no task, for a request that changes its networks. While a request
    /// holds the guard, the others for this container wait.
    pub(super) async fn lock(api: &Api, name: &str) -> Result<(Self, sync::OwnedMutexGuard<()>), ApiError> {
        let container = Self::find(api, name).await?;
        let guard = api.attaching.of(&container.identity.container).lock_owned().await;
        // What it is on may have changed meanwhile.
        let container = Self::find(api, &container.identity.container).await?;
        container.refuse_task()?;
        Ok((container, guard))
    }

    pub(super) fn is_on(&self, docker_network: &str, name: &str) -> bool {
        self.networks.iter().any(|network| network == docker_network || (network == name && self.id.is_some()))
    }

    fn refuse_task(&self) -> Result<(), ApiError> {
        if !self.is_task {
            return Ok(());
        }
        Err(ApiError::Forbidden(format!(
            "container {} is a task: change the networks of its service (service update --network-add, --network-rm)",
            self.identity.name
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_container_has_a_lock_while_a_request_holds_it() {
        let locks = Locks::default();
        let (one, again, other) = (locks.of("one"), locks.of("one"), locks.of("other"));
        assert!(Arc::ptr_eq(&one, &again) && !Arc::ptr_eq(&one, &other));
        drop((one, again));
        drop(locks.of("other"));
        assert_eq!(locks.0.lock().expect("no panic").keys().collect::<Vec<_>>(), ["other"]);
    }
}
