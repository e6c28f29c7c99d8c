//! Which feature level added which field and which variant.
//!
//! The first release of weft has level 0. A field or variant that is not in [`ADDED`] was there
//! from the start. Rules for a change of a type that is stored or sent:
//! - A new field gets a line here and `#[serde(default)]`. The default means what the absence of
//!   the field meant before.
//! - A new variant is the last one of its enum, and gets a line here.
//! - No field or variant is removed, renamed or given another type. Another meaning is another
//!   field.

/// What a field or a variant belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// A struct (for a field) or an enum (for a variant), by its name.
    Type(&'static str),
    /// A variant with named fields, by the names of its enum and its own.
    Variant(&'static str, &'static str),
    /// Elements without names.
    None,
}

/// Owner, field or variant, and the feature level that added it.
type Addition = (Owner, &'static str, u32);

const ADDED: &[Addition] = &[
    (Owner::Type("Cluster"), "earlier_timeout", 1),
    (Owner::Type("ClusterState"), "attached", 1),
    (Owner::Type("ClusterState"), "dependencies", 1),
    (Owner::Type("ClusterState"), "digests", 1),
    (Owner::Type("ClusterState"), "epoch", 1),
    (Owner::Type("ClusterState"), "feature_level", 1),
    (Owner::Type("ClusterState"), "specs", 1),
    (Owner::Type("Cluster"), "lock", 1),
    (Owner::Type("Cluster"), "root_rotation", 1),
    (Owner::Type("ClusterSpec"), "force_rotate", 1),
    (Owner::Type("Command"), "AttachContainer", 1),
    (Owner::Type("Command"), "CreateDependency", 1),
    (Owner::Type("Command"), "DetachContainer", 1),
    (Owner::Type("Command"), "RemoveDependency", 1),
    (Owner::Type("Command"), "UpdateDependency", 1),
    (Owner::Type("ContainerSpec"), "configs", 1),
    (Owner::Type("ContainerSpec"), "secrets", 1),
    (Owner::Type("Expanded"), "files", 1),
    (Owner::Type("Command"), "ReportDigest", 1),
    (Owner::Type("Command"), "SetConvergence", 1),
    (Owner::Type("Command"), "SetFeatureLevel", 1),
    (Owner::Type("Command"), "ReplaceRaftId", 1),
    (Owner::Type("Command"), "RotateRoot", 1),
    (Owner::Type("Command"), "SetRotated", 1),
    (Owner::Type("Command"), "SetUnlockKey", 1),
    (Owner::Type("FreedAddress"), "node", 1),
    (Owner::Type("FreedAddress"), "slot", 1),
    (Owner::Type("InitCluster"), "feature_level", 1),
    (Owner::Type("InitCluster"), "unlock_key", 1),
    (Owner::Type("JoinNode"), "ca_cert_pem", 1),
    (Owner::Type("NetworkSpec"), "attachable", 1),
    (Owner::Type("Node"), "lag", 1),
    (Owner::Type("Node"), "rotated", 1),
    (Owner::Type("NodeAttribute"), "Ip", 1),
    (Owner::Type("NodeDescription"), "plugins", 1),
    (Owner::Type("NodePlan"), "attached", 1),
    (Owner::Type("NodePlan"), "attached_names", 1),
    (Owner::Type("NodePlan"), "containers", 1),
    (Owner::Type("NodePlan"), "dependencies", 1),
    (Owner::Type("NodePlan"), "epoch", 1),
    (Owner::Type("NodePlan"), "feature_level", 1),
    (Owner::Type("NodePlan"), "raft_id", 1),
    (Owner::Type("NodePlan"), "roots_pem", 1),
    (Owner::Type("NodeReport"), "addr", 1),
    (Owner::Type("NodeReport"), "attached", 1),
    (Owner::Type("NodeReport"), "epoch", 1),
    (Owner::Type("NodeReport"), "problem", 1),
    (Owner::Type("Placement"), "platforms", 1),
    (Owner::Type("ObjectKind"), "Config", 1),
    (Owner::Type("ObjectKind"), "Container", 1),
    (Owner::Type("ObjectKind"), "Secret", 1),
    (Owner::Type("Rejection"), "NotAttachable", 1),
    (Owner::Type("Rejection"), "AddressInUse", 1),
    (Owner::Type("Rejection"), "AlreadyExists", 1),
    (Owner::Type("Rejection"), "AddressInQuarantine", 1),
    (Owner::Type("ServiceSpec"), "left_out", 1),
    (Owner::Type("Task"), "stored_spec", 1),
    (Owner::Type("TaskPlan"), "container_at", 1),
    (Owner::Type("TaskPlan"), "expanded", 1),
    (Owner::Type("TaskPlan"), "registry_auth", 1),
    (Owner::Type("TaskSpec"), "registry_auth", 1),
    (Owner::Type("TaskPlan"), "has_run", 1),
    (Owner::Type("TaskPlan"), "node_network", 1),
    (Owner::Type("TaskSpec"), "node_network", 1),
    (Owner::Variant("Command", "AssignTask"), "reuse", 1),
    (Owner::Variant("Command", "ReleaseAddresses"), "owners", 1),
];

/// The releases of weft that introduced the feature levels, from level 0.
pub(super) const RELEASES: &[&str] = &["0.1.0", "0.2.0"];

/// The feature level that added a field or a variant.
pub(super) fn since(owner: Owner, item: &str) -> u32 {
    ADDED.iter().find(|(of, name, _)| *of == owner && *name == item).map_or(0, |(_, _, level)| *level)
}

#[cfg(test)]
mod tests {
    use weft_model::state::FEATURE_LEVEL;

    use super::*;

    #[test]
    fn every_level_has_a_release() {
        assert_eq!(RELEASES.len(), FEATURE_LEVEL as usize + 1);
        assert!(ADDED.iter().all(|(_, _, level)| (1..=FEATURE_LEVEL).contains(level)));
    }
}
