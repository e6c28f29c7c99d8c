//! The safety net of every conversion: what a client asked for and the model did not keep.
//!
//! A spec is read into the model, written out again, and compared with the request. Whatever is not there again is refused
//! by name. Absent, `null`, zero, `false` and empty all say "the default" on this wire and are no loss.

use serde_json::Value;

use crate::api::error::ApiError;

/// What users call the parts of a spec that weft does not have yet, by where they stand. The first that matches counts.
const NAMES: &[(&str, &str)] = &[
    ("TaskTemplate.ContainerSpec.Mounts", "mounts (--mount)"),
    ("TaskTemplate.ContainerSpec.Secrets", "secrets (--secret)"),
    ("TaskTemplate.ContainerSpec.Configs", "configs (--config)"),
    ("TaskTemplate.ContainerSpec.HealthCheck", "health checks (--health-*, --no-healthcheck)"),
    ("TaskTemplate.ContainerSpec.Hosts", "extra host names (--host)"),
    ("TaskTemplate.ContainerSpec.DNSConfig", "DNS settings of a task (--dns, --dns-search, --dns-option)"),
    ("TaskTemplate.ContainerSpec.Groups", "supplementary groups (--group)"),
    ("TaskTemplate.ContainerSpec.Privileges", "privileges (--credential-spec, security options)"),
    ("TaskTemplate.ContainerSpec.TTY", "terminals (--tty)"),
    ("TaskTemplate.ContainerSpec.OpenStdin", "an open standard input"),
    ("TaskTemplate.ContainerSpec.Sysctls", "sysctls (--sysctl)"),
    ("TaskTemplate.ContainerSpec.CapabilityAdd", "capabilities (--cap-add)"),
    ("TaskTemplate.ContainerSpec.CapabilityDrop", "capabilities (--cap-drop)"),
    ("TaskTemplate.ContainerSpec.Ulimits", "ulimits (--ulimit)"),
    ("TaskTemplate.ContainerSpec.OomScoreAdj", "OOM scores (--oom-score-adj)"),
    ("TaskTemplate.ContainerSpec.Isolation", "isolation (--isolation)"),
    ("TaskTemplate.LogDriver", "log drivers (--log-driver, --log-opt)"),
    ("TaskTemplate.PluginSpec", "plugin services"),
    ("TaskTemplate.NetworkAttachmentSpec", "network attachment tasks"),
    ("TaskTemplate.Runtime", "task runtimes other than containers"),
    ("TaskTemplate.Resources.Reservations.GenericResources", "generic resources (--generic-resource)"),
    ("TaskTemplate.Resources.SwapBytes", "swap limits (--memory-swap)"),
    ("TaskTemplate.Resources.MemorySwappiness", "swappiness (--memory-swappiness)"),
    ("TaskTemplate.Placement.Platforms", "placement by platform list (use a constraint on node.platform.arch)"),
    ("TaskTemplate.Networks[].DriverOpts", "driver options of a network attachment (driver-opt)"),
    ("EndpointSpec.Ports[].Name", "named ports"),
    ("Mode.ReplicatedJob", "jobs (--mode replicated-job)"),
    ("Mode.GlobalJob", "jobs (--mode global-job)"),
    ("IPAM.Driver", "IPAM drivers (--ipam-driver)"),
    ("IPAM.Options", "IPAM options (--ipam-opt)"),
    ("IPAM.Config[].AuxiliaryAddresses", "auxiliary addresses (--aux-address)"),
    ("Attachable", "attachable networks (--attachable): only services use networks"),
    ("ConfigOnly", "configuration-only networks (--config-only)"),
    ("ConfigFrom", "networks made from a configuration (--config-from)"),
    ("EncryptionConfig.AutoLockManagers", "locked managers (--autolock)"),
    ("CAConfig.ExternalCAs", "external certificate authorities (--external-ca)"),
    ("CAConfig", "certificate authorities of your own, and their rotation (swarm ca)"),
    ("TaskDefaults.LogDriver", "log drivers"),
    ("Raft", "Raft settings (--max-snapshots, --snapshot-interval)"),
    ("ForceNewCluster", "--force-new-cluster"),
    ("DataPathPort", "another tunnel port (--data-path-port)"),
    ("DataPathAddr", "another address for the tunnels (--data-path-addr)"),
    ("DefaultAddrPool", "more than one address pool (--default-addr-pool)"),
];

/// Refuses what `asked` says and `kept` does not.
pub(crate) fn refuse(asked: &Value, kept: &Value) -> Result<(), ApiError> {
    compare("", asked, kept)
}

fn compare(path: &str, asked: &Value, kept: &Value) -> Result<(), ApiError> {
    match (asked, kept) {
        (asked, kept) if is_default(asked) || asked == kept || same_number(asked, kept) => Ok(()),
        (Value::Object(asked), Value::Object(kept)) => asked.iter().try_for_each(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            compare(&path, value, kept.get(key).unwrap_or(&Value::Null))
        }),
        (Value::Array(asked), Value::Array(kept)) if asked.len() == kept.len() => asked
            .iter()
            .zip(kept)
            .enumerate()
            .try_for_each(|(i, (asked, kept))| compare(&format!("{path}[{i}]"), asked, kept)),
        (Value::Number(_), Value::Number(_)) => Err(nearest(path, asked, kept)),
        (_, kept) if is_default(kept) => Err(unsupported(path)),
        (Value::Object(_) | Value::Array(_), _) => Err(unsupported(path)),
        (asked, kept) => Err(nearest(path, asked, kept)),
    }
}

fn nearest(path: &str, asked: &Value, kept: &Value) -> ApiError {
    ApiError::Unsupported(format!("weft does not support {path} {asked}: the nearest that it can honour is {kept}"))
}

/// The refusal of whatever stands at `path`.
pub(crate) fn unsupported(path: &str) -> ApiError {
    let plain = without_indices(path);
    let covers = |prefix: &str| plain.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    ApiError::Unsupported(match NAMES.iter().find(|(prefix, _)| covers(prefix)) {
        Some((_, name)) => format!("weft does not support {name} yet: leave {path} out"),
        None => format!("weft does not know the field {path}: leave it out"),
    })
}

/// `Ports[3].Name` as `Ports[].Name`.
fn without_indices(path: &str) -> String {
    path.split('[').map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit())).collect::<Vec<_>>().join("[")
}

/// Whether a client says nothing by this value.
fn is_default(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.values().all(is_default),
    }
}

/// `1` and `1.0`.
fn same_number(a: &Value, b: &Value) -> bool {
    matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if (a - b).abs() < 1e-9)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(asked: &Value, kept: &Value, refusal: Option<&str>) {
        match (refuse(asked, kept), refusal) {
            (Ok(()), None) => {}
            (Err(error), Some(part)) => {
                assert!(error.to_string().contains(part), "{error}: does not say {part:?}");
            }
            (outcome, _) => panic!("{asked} kept as {kept}: {outcome:?}"),
        }
    }

    #[test]
    fn defaults_are_no_loss() {
        check(&json!({"A": null, "B": 0, "C": "", "D": [], "E": {}, "F": false, "G": {"H": null}}), &json!({}), None);
        check(&json!({"A": 1}), &json!({"A": 1.0, "B": "more"}), None);
    }

    #[test]
    fn what_is_not_kept_is_refused_by_name() {
        let mounts = json!({"TaskTemplate": {"ContainerSpec": {"Mounts": [{"Target": "/x"}]}}});
        check(&mounts, &json!({"TaskTemplate": {"ContainerSpec": {}}}), Some("mounts (--mount)"));
        let named = json!({"EndpointSpec": {"Ports": [{"Name": "web", "TargetPort": 80}]}});
        check(&named, &json!({"EndpointSpec": {"Ports": [{"TargetPort": 80}]}}), Some("named ports"));
        check(&json!({"Typo": 1}), &json!({}), Some("does not know the field Typo"));
        check(&json!({"Delay": 1_500}), &json!({"Delay": 1_000}), Some("nearest that it can honour is 1000"));
        check(&json!({"Ratio": 0.0001}), &json!({"Ratio": 0.0}), Some("nearest that it can honour is 0.0"));
        check(&json!({"List": [1, 2]}), &json!({"List": [1]}), Some("List"));
    }
}
