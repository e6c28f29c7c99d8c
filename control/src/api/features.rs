//! The features of the Engine API that weft does not support.
//!
//! For each feature, the list below has a name, the fields of request bodies that ask for it, and
//! what to do instead. All refusals are built from this list: `wire::unsupported` finds a feature
//! by its field. If a path, a query or a header asks for a feature, the handler uses its constant.
//!
//! README.md lists the same features. A test below compares the two lists, so change both together.

use super::error::ApiError;

/// A feature that weft does not support.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Feature {
    /// The name for users, with the flags and commands of the docker client.
    name: &'static str,
    /// Paths of the fields by which request bodies ask for it. `[]` means the items of a list. A
    /// path includes all fields below it.
    fields: &'static [&'static str],
    /// What to do instead. If it is empty, the advice is to leave the fields out.
    advice: &'static str,
}

impl Feature {
    const fn new(name: &'static str, fields: &'static [&'static str]) -> Self {
        Self { name, fields, advice: "" }
    }

    const fn advice(self, advice: &'static str) -> Self {
        Self { advice, ..self }
    }

    /// The error for a request for this feature.
    pub(crate) fn refusal(&self) -> ApiError {
        self.refusal_of(self.name)
    }

    /// The error for `subject`, which says more exactly what the request asked for.
    pub(crate) fn refusal_of(&self, subject: &str) -> ApiError {
        ApiError::Unsupported(format!(
            "weft does not support {subject}: {}",
            self.advice_for(&self.fields.join(" and "))
        ))
    }

    /// The error for the field at `path`.
    pub(crate) fn refusal_at(&self, path: &str) -> ApiError {
        ApiError::Unsupported(format!("weft does not support {}: {}", self.name, self.advice_for(path)))
    }

    fn advice_for(&self, path: &str) -> String {
        if self.advice.is_empty() { format!("leave {path} out") } else { self.advice.to_owned() }
    }
}

/// The feature that the field at `path` asks for. If several features match, the first
/// one in the list is returned.
pub(crate) fn of_field(path: &str) -> Option<&'static Feature> {
    let covers =
        |field: &&str| path.strip_prefix(*field).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    UNSUPPORTED.iter().find(|feature| feature.fields.iter().any(covers))
}

/// Declares a constant for each feature, and a list of all features.
macro_rules! features {
    ($($id:ident = $feature:expr;)*) => {
        $(pub(crate) const $id: Feature = $feature;)*
        pub(crate) const UNSUPPORTED: &[Feature] = &[$($id),*];
    };
}

features! {
    // Tasks of services.
    MOUNTS = Feature::new("mounts (--mount)", &["TaskTemplate.ContainerSpec.Mounts"]);
    CREDENTIAL_CONFIGS = Feature::new(
        "configs as credential specs (--credential-spec config://CONFIG)",
        &["TaskTemplate.ContainerSpec.Configs[].Runtime"],
    ).advice("give the config a File");
    HEALTH_CHECKS = Feature::new(
        "health checks (--health-*, --no-healthcheck)",
        &["TaskTemplate.ContainerSpec.HealthCheck"],
    );
    GROUPS = Feature::new("supplementary groups (--group)", &["TaskTemplate.ContainerSpec.Groups"]);
    PRIVILEGES = Feature::new(
        "privileges (--credential-spec, security options)",
        &["TaskTemplate.ContainerSpec.Privileges"],
    );
    TERMINALS = Feature::new("terminals (--tty)", &["TaskTemplate.ContainerSpec.TTY"]);
    STANDARD_INPUT = Feature::new("an open standard input", &["TaskTemplate.ContainerSpec.OpenStdin"]);
    SYSCTLS = Feature::new("sysctls (--sysctl)", &["TaskTemplate.ContainerSpec.Sysctls"]);
    CAPABILITIES = Feature::new(
        "capabilities (--cap-add, --cap-drop)",
        &["TaskTemplate.ContainerSpec.CapabilityAdd", "TaskTemplate.ContainerSpec.CapabilityDrop"],
    );
    ULIMITS = Feature::new("ulimits (--ulimit)", &["TaskTemplate.ContainerSpec.Ulimits"]);
    OOM_SCORES = Feature::new("OOM scores (--oom-score-adj)", &["TaskTemplate.ContainerSpec.OomScoreAdj"]);
    ISOLATION = Feature::new("isolation (--isolation)", &["TaskTemplate.ContainerSpec.Isolation"]);
    LOG_DRIVERS = Feature::new(
        "log drivers (--log-driver, --log-opt)",
        &["TaskTemplate.LogDriver", "TaskDefaults.LogDriver"],
    );
    GENERIC_RESOURCES = Feature::new(
        "generic resources (--generic-resource)",
        &["TaskTemplate.Resources.Reservations.GenericResources"],
    ).advice("label the nodes and use a constraint");
    SWAP_LIMITS = Feature::new("swap limits (--memory-swap)", &["TaskTemplate.Resources.SwapBytes"]);
    SWAPPINESS = Feature::new("swappiness (--memory-swappiness)", &["TaskTemplate.Resources.MemorySwappiness"]);
    ATTACHMENT_OPTIONS = Feature::new(
        "driver options of a network attachment (--network driver-opt)",
        &["TaskTemplate.Networks[].DriverOpts"],
    );
    BUILT_IN_DIGESTS = Feature::new("digests of weft/whoami", &[])
        .advice("the image is a part of weft and in no registry, so use it by its name");

    // Services.
    JOBS = Feature::new(
        "jobs (--mode replicated-job, --mode global-job)",
        &["Mode.ReplicatedJob", "Mode.GlobalJob"],
    ).advice("use a replicated or a global service");
    PLUGIN_SERVICES = Feature::new("plugin services", &["TaskTemplate.PluginSpec"]);
    ATTACHMENT_TASKS = Feature::new("network attachment tasks", &["TaskTemplate.NetworkAttachmentSpec"]);
    TASK_RUNTIMES = Feature::new(
        "task runtimes other than containers, such as plugins",
        &["TaskTemplate.Runtime"],
    );
    HOST_PORTS = Feature::new("ports that bypass the routing mesh (--publish mode=host)", &[])
        .advice("publish through the mesh with mode=ingress");
    SCTP_PORTS = Feature::new("SCTP ports (--publish PORT/sctp)", &[]).advice("publish TCP or UDP");
    NAMED_PORTS = Feature::new("named ports", &["EndpointSpec.Ports[].Name"]);
    FINE_DURATIONS = Feature::new("durations with fractions of a millisecond", &[])
        .advice("give whole milliseconds");
    FINE_RATIOS = Feature::new("failure ratios with more than three decimals", &[])
        .advice("give three decimals at most");

    // Secrets and configs.
    SECRET_DRIVERS = Feature::new("secret drivers (secret create --driver)", &[])
        .advice("leave the driver out and give the data");
    TEMPLATE_DRIVERS = Feature::new("template drivers other than golang (--template-driver)", &[])
        .advice("use golang, or leave the driver out");

    // Networks.
    NETWORK_DRIVERS = Feature::new("network drivers other than overlay (network create --driver)", &[])
        .advice("use --driver overlay");
    SEVERAL_VNIS = Feature::new("several VNIs on one network (--opt …vxlanid_list)", &[])
        .advice("a network has one VNI for all of its subnets, so give one");
    NETWORK_OPTIONS = Feature::new("other network options (--opt)", &[]).advice("leave the option out");
    IPAM_DRIVERS = Feature::new("IPAM drivers (--ipam-driver)", &["IPAM.Driver"]);
    IPAM_OPTIONS = Feature::new(
        "IPAM options other than com.docker.network.ipam.serial=true (--ipam-opt)",
        &["IPAM.Options"],
    );
    CONNECTED_CONTAINERS = Feature::new(
        "single containers on the cluster's networks (run --network, network connect) on a node whose tasks are processes",
        &[],
    ).advice("start its daemon with --runtime docker");
    CHOSEN_MACS = Feature::new("a MAC address of your own on a network of the cluster (--mac-address)", &[])
        .advice("leave it out: it follows from the address");
    LINK_LOCAL_ADDRESSES = Feature::new("link-local addresses on a network of the cluster (--link-local-ip)", &[])
        .advice("choose an address with --ip or --ip6");
    CONTAINER_LINKS = Feature::new("links of containers on a network of the cluster (--link)", &[])
        .advice("use --network-alias");
    ENDPOINT_OPTIONS = Feature::new("options of endpoints on a network of the cluster (--driver-opt)", &[])
        .advice("leave them out");
    CONTAINER_PORTS = Feature::new(
        "published ports of a container that is only on networks of the cluster (run --publish)",
        &[],
    ).advice("publish the port of a service, or put the container on a network of the engine too");

    // The cluster.
    EXTERNAL_CAS = Feature::new("external certificate authorities (--external-ca)", &["CAConfig.ExternalCAs"]);
    OWN_CAS = Feature::new(
        "a certificate authority of your own in a new swarm",
        &["CAConfig.SigningCACert", "CAConfig.SigningCAKey"],
    ).advice("replace the authority afterwards (swarm ca --rotate --ca-cert FILE --ca-key FILE)");
    RAFT_SETTINGS = Feature::new("Raft settings (--max-snapshots, --snapshot-interval)", &["Raft"]);
    ADVERTISED_PORTS = Feature::new("an advertised port other than the listening port (--advertise-addr)", &[])
        .advice("use the same port for both");

    // The node.
    PLUGINS = Feature::new("plugins on a node without a container engine", &[])
        .advice("start its daemon with --runtime docker");
    CONTAINERS = Feature::new("containers, images and volumes on a node without a container engine", &[])
        .advice("run services, or start its daemon with --runtime docker");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The rows of the table in README.md, without backticks.
    fn readme_rows() -> BTreeSet<String> {
        let readme = include_str!("../../../README.md");
        let section = readme.split("\n## Not supported yet\n").nth(1).expect("a section of what is not supported");
        let section = section.split("\n## ").next().expect("an end of the section");
        let table = section.split("\n### Engine API\n").nth(1).expect("a table of the Engine API");
        let rows = table.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
        rows.skip(2).map(|row| row.replace('`', "")).collect()
    }

    #[test]
    fn the_readme_lists_all_unsupported_features_and_no_others() {
        let row = |feature: &Feature| {
            let advice = feature.advice_for(&feature.fields.join(" and "));
            format!("| {} | {advice} |", feature.name)
        };
        let listed = readme_rows();
        let expected: BTreeSet<_> = UNSUPPORTED.iter().map(row).collect();
        let missing: Vec<_> = expected.difference(&listed).map(String::as_str).collect();
        let obsolete: Vec<_> = listed.difference(&expected).map(String::as_str).collect();
        assert!(
            missing.is_empty() && obsolete.is_empty(),
            "README.md, section \"Not supported yet\", lacks the rows\n{}\nand has the obsolete rows\n{}",
            missing.join("\n"),
            obsolete.join("\n")
        );
    }

    #[test]
    fn finds_a_feature_by_its_fields_and_by_the_fields_below_them() {
        for (path, name) in [
            ("TaskTemplate.ContainerSpec.Mounts", Some("mounts (--mount)")),
            (
                "TaskTemplate.Networks[].DriverOpts.x",
                Some("driver options of a network attachment (--network driver-opt)"),
            ),
            ("CAConfig.ExternalCAs", Some("external certificate authorities (--external-ca)")),
            ("CAConfig.SigningCACert", Some("a certificate authority of your own in a new swarm")),
            ("CAConfig.ForceRotate", None),
            ("RaftX", None),
            ("TaskTemplate", None),
        ] {
            assert_eq!(of_field(path).map(|feature| feature.name), name, "{path}");
        }
    }

    #[test]
    fn names_and_fields_of_features_are_unique() {
        let names: BTreeSet<_> = UNSUPPORTED.iter().map(|feature| feature.name).collect();
        assert_eq!(names.len(), UNSUPPORTED.len());
        let fields: Vec<_> = UNSUPPORTED.iter().flat_map(|feature| feature.fields).collect();
        assert_eq!(fields.iter().collect::<BTreeSet<_>>().len(), fields.len());
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        for (refusal, text) in [
            (MOUNTS.refusal_at("A.Mounts"), "weft does not support mounts (--mount): leave A.Mounts out"),
            (SCTP_PORTS.refusal(), "weft does not support SCTP ports (--publish PORT/sctp): publish TCP or UDP"),
            (
                NETWORK_OPTIONS.refusal_of("the network option mtu"),
                "weft does not support the network option mtu: leave the option out",
            ),
        ] {
            assert_eq!(refusal, ApiError::Unsupported(text.to_owned()));
        }
    }
}
