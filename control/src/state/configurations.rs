//! Configuration-only networks (`network create --config-only`), and the networks that take their
//! options from one (`--config-from`). `networks` calls this module.

use weft_model::{
    Applied, ClusterState, NetworkId, Rejection, command::ObjectKind, spec::NetworkSpec, state::NetworkConfiguration,
};

use super::new_meta;

/// Stores the options. The caller has checked the name and the options.
pub(super) fn create(state: &mut ClusterState, id: NetworkId, spec: NetworkSpec) -> Result<Applied, Rejection> {
    if spec.config_from.is_some() || spec.internal || spec.ingress {
        return Err(Rejection::Invalid(format!(
            "network {} only holds options for other networks: use --internal, --ingress and --config-from for these networks",
            spec.name
        )));
    }
    let meta = new_meta(state);
    state.configurations.insert(id.clone(), NetworkConfiguration { id: id.clone(), meta, spec });
    Ok(Applied::Network(id))
}

/// The spec with the options of the configuration-only network that it names, if it names one. The
/// options are copied: a later removal of the configuration does not change the network.
pub(super) fn resolve(state: &ClusterState, spec: NetworkSpec) -> Result<NetworkSpec, Rejection> {
    let Some(from) = &spec.config_from else { return Ok(spec) };
    let Some(configuration) = state.configuration_by_name(from.as_str()) else {
        return Err(Rejection::Invalid(match state.network_by_name(from.as_str()) {
            Some(_) => format!("network {from} is in use as a network: create another with --config-only"),
            None => format!("there is no configuration-only network {from}: create it with --config-only"),
        }));
    };
    let NetworkSpec { name, labels, internal, ingress, attachable, config_from, .. } = spec.clone();
    let own_options =
        NetworkSpec { labels: labels.clone(), internal, ingress, attachable, config_from, ..NetworkSpec::new(name) };
    if spec != own_options {
        return Err(Rejection::Invalid(format!(
            "network {} takes its options from {from}: give only --internal, --ingress, --attachable and --label beside --config-from",
            spec.name
        )));
    }
    let options = configuration.spec.clone();
    let mut all_labels = options.labels.clone();
    all_labels.extend(labels);
    Ok(NetworkSpec {
        name: spec.name,
        labels: all_labels,
        internal,
        ingress,
        attachable,
        config_only: false,
        config_from: spec.config_from,
        ..options
    })
}

/// Refused while a network names the configuration.
pub(super) fn remove(state: &mut ClusterState, id: &NetworkId) -> Result<Applied, Rejection> {
    if let Some(configuration) = state.configurations.get(id) {
        let name = &configuration.spec.name;
        let uses = |spec: &NetworkSpec| {
            spec.config_from.as_ref().is_some_and(|from| from.as_str().eq_ignore_ascii_case(name.as_str()))
        };
        if let Some(user) = state.networks.values().find(|network| uses(&network.spec)) {
            return Err(Rejection::InUse {
                kind: ObjectKind::Network,
                id: name.to_string(),
                by: format!("network {}", user.spec.name),
            });
        }
    }
    state.configurations.remove(id);
    Ok(Applied::Network(id.clone()))
}
