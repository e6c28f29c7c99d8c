//! Rewrites containers, in the forms of a list and of an inspection.

use serde_json::{Map, Value, json};
use weft_model::{TASK_LABEL, TaskId};

use super::ports::{Ports, Published};
use crate::api::docker_networks::{DockerNetwork, DockerNetworks};

/// The options of the network driver begin with this.
const OWN_OPTION: &str = "weft.";

/// What weft knows and the engine does not.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) networks: DockerNetworks,
    pub(super) ports: Ports,
}

/// Rewrites the containers of a list. Returns whether anything has changed.
pub(super) fn all(view: &View, containers: &mut [Value]) -> bool {
    containers.iter_mut().fold(false, |is_changed, container| view.show_listed(container) | is_changed)
}

impl View {
    fn show_listed(&self, container: &mut Value) -> bool {
        let mut is_changed = self.show_networks(container);
        // As in docker, a container that has ended has no ports.
        if matches!(container["State"].as_str(), Some("running" | "paused"))
            && let Some(task) = task_of(&container["Labels"])
        {
            for (port, hosts) in self.ports.of_task(&task) {
                is_changed = true;
                add_to_list(container, port, hosts);
            }
        }
        is_changed
    }

    pub(super) fn show_inspected(&self, container: &mut Value) -> bool {
        let mut is_changed = self.show_networks(container);
        if container["State"]["Running"] == true
            && let Some(task) = task_of(&container["Config"]["Labels"])
        {
            for (port, hosts) in self.ports.of_task(&task) {
                is_changed = true;
                let Some(ports) = map(&mut container["NetworkSettings"]["Ports"]) else { continue };
                let bindings = ports.entry(format!("{}/{}", port.target, port.protocol)).or_insert(Value::Null);
                if bindings.is_null() {
                    *bindings = json!([]);
                }
                let added = hosts.iter().map(|host| json!({"HostIp": host, "HostPort": port.port.to_string()}));
                bindings.as_array_mut().into_iter().for_each(|bindings| bindings.extend(added.clone()));
            }
        }
        is_changed
    }

    /// Shows the cluster's networks instead of the docker networks. Both forms have the same
    /// fields.
    fn show_networks(&self, container: &mut Value) -> bool {
        let mode = container.pointer_mut("/HostConfig/NetworkMode");
        let mut is_changed = match mode {
            Some(mode) => self.show_mode(mode),
            None => false,
        };
        let Some(Value::Object(networks)) = container.pointer_mut("/NetworkSettings/Networks") else {
            return is_changed;
        };
        let mut shown = Map::new();
        for (name, mut endpoint) in std::mem::take(networks) {
            let Some(network) = self.network_of(&name, &endpoint) else {
                shown.insert(name, endpoint);
                continue;
            };
            is_changed = true;
            show_endpoint(&mut endpoint, network);
            // A docker network of the user can have the same name.
            let is_taken = shown.contains_key(&network.name);
            let name = if is_taken { network.network.to_string() } else { network.name.clone() };
            shown.insert(name, endpoint);
        }
        *networks = shown;
        is_changed
    }

    fn show_mode(&self, mode: &mut Value) -> bool {
        let text = mode.as_str().unwrap_or_default();
        let of_name = || self.networks.iter().find(|network| network.docker_name == text);
        let Some(network) = self.networks.of_docker_id(text).or_else(of_name) else { return false };
        *mode = json!(network.name);
        true
    }

    /// The cluster's network that an entry of `Networks` stands for. Until a container is started
    /// for the first time, an engine may know its network only by what the request called it.
    fn network_of(&self, name: &str, endpoint: &Value) -> Option<&DockerNetwork> {
        match endpoint["NetworkID"].as_str().unwrap_or_default() {
            "" => self.networks.iter().find(|network| network.docker_id == name || network.docker_name == name),
            id => self.networks.of_docker_id(id),
        }
    }
}

fn show_endpoint(endpoint: &mut Value, network: &DockerNetwork) {
    endpoint["NetworkID"] = json!(network.network.as_str());
    if network.hides_v6 {
        hide_v6(endpoint);
    }
    if let Some(Value::Object(options)) = endpoint.get_mut("DriverOpts") {
        options.retain(|option, _| !option.starts_with(OWN_OPTION));
        if options.is_empty() {
            endpoint["DriverOpts"] = Value::Null;
        }
    }
}

/// Removes what says that a container has an IPv6 address, as on a network without IPv6.
fn hide_v6(endpoint: &mut Value) {
    let fields = [("IPv6Gateway", json!("")), ("GlobalIPv6Address", json!("")), ("GlobalIPv6PrefixLen", json!(0))];
    for (field, none) in fields {
        if let Some(value) = endpoint.get_mut(field) {
            *value = none;
        }
    }
    if let Some(Value::Object(addresses)) = endpoint.get_mut("IPAMConfig") {
        addresses.remove("IPv6Address");
    }
}

/// Adds a published port to `Ports` of a listed container, instead of the entry that says only that
/// the image has the port.
fn add_to_list(container: &mut Value, port: Published, hosts: &[&str]) {
    if container["Ports"].is_null() {
        container["Ports"] = json!([]);
    }
    let Some(ports) = container["Ports"].as_array_mut() else { return };
    ports.retain(|shown| {
        let is_same = shown["PrivatePort"] == port.target && shown["Type"] == port.protocol;
        !is_same || shown.get("PublicPort").is_some()
    });
    let (target, public, protocol) = (port.target, port.port, port.protocol);
    let published = |host| json!({"IP": host, "PrivatePort": target, "PublicPort": public, "Type": protocol});
    ports.extend(hosts.iter().map(published));
}

fn task_of(labels: &Value) -> Option<TaskId> {
    labels.get(TASK_LABEL)?.as_str()?.parse().ok()
}

/// The object at `value`, which may be null.
fn map(value: &mut Value) -> Option<&mut Map<String, Value>> {
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut()
}
