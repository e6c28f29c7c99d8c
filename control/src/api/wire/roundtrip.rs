//! Property tests: if a client reads a spec and sends it back, the spec does not change. They test
//! this for all specs that the cluster state can hold.

use std::net::IpAddr;

use proptest::{collection::vec, option, prelude::*};
use weft_model::{
    DependencyId, NetworkId,
    spec::{
        Constraint, ContainerSpec, DnsConfig, EndpointMode, EndpointSpec, FailureAction, FileReference, HostEntry,
        MAX_FILE_MODE, MAX_NAME_SERVERS, NetworkAttachment, NodeAttribute, NodeNetwork, Placement, Platform, PortSpec,
        Protocol, Resources, RestartCondition, RestartPolicy, SearchDomain, ServiceMode, ServiceSpec, TaskSpec,
        UpdateConfig, UpdateOrder,
    },
};

use serde_json::Value;

use super::{fields::Ignored, service, to_json};
use crate::api::error::ApiError;

/// Durations and counts that fit into the signed nanoseconds of the wire.
fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 1..100_000_u64]
}

fn word() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9]{0,8}"
}

fn attribute() -> impl Strategy<Value = NodeAttribute> {
    prop_oneof![
        Just(NodeAttribute::Id),
        Just(NodeAttribute::Hostname),
        Just(NodeAttribute::PlatformOs),
        Just(NodeAttribute::PlatformArch),
        word().prop_map(NodeAttribute::Label),
        word().prop_map(NodeAttribute::EngineLabel),
    ]
}

fn update_config(on_failure: impl Strategy<Value = FailureAction>) -> impl Strategy<Value = UpdateConfig> {
    let order = prop_oneof![Just(UpdateOrder::StopFirst), Just(UpdateOrder::StartFirst)];
    (amount(), amount(), on_failure, 1..100_000_u64, 0..=1_000_u32, order).prop_map(
        |(parallelism, delay_ms, on_failure, monitor_ms, max_failure_permille, order)| UpdateConfig {
            parallelism,
            delay_ms,
            on_failure,
            monitor_ms,
            max_failure_permille,
            order,
        },
    )
}

fn dns() -> impl Strategy<Value = DnsConfig> {
    let domain = prop_oneof![Just(SearchDomain::ROOT.to_owned()), word()];
    let option = prop_oneof![word(), (0..5_u8).prop_map(|dots| format!("ndots:{dots}"))];
    (vec(any::<IpAddr>(), 0..=MAX_NAME_SERVERS), vec(domain, 0..3), vec(option, 0..3)).prop_map(
        |(name_servers, search, options)| DnsConfig {
            name_servers,
            search: search.iter().map(|text| text.parse().expect("a domain")).collect(),
            options: options.iter().map(|text| text.parse().expect("an option")).collect(),
        },
    )
}

fn host() -> impl Strategy<Value = HostEntry> {
    (any::<IpAddr>(), vec(word(), 1..4))
        .prop_map(|(addr, names)| format!("{addr} {}", names.join(" ")).parse().expect("an entry"))
}

fn file() -> impl Strategy<Value = FileReference> {
    (any::<u128>(), word(), word(), any::<(u32, u32)>(), 0..=MAX_FILE_MODE).prop_map(
        |(id, name, target, (uid, gid), mode)| FileReference {
            id: DependencyId::from_random(id),
            name,
            target,
            uid,
            gid,
            mode,
        },
    )
}

fn container() -> impl Strategy<Value = ContainerSpec> {
    let texts = (word(), vec(word(), 0..3), vec(word(), 0..3), vec("[A-Z]{1,4}=[a-z]{0,4}", 0..3));
    let options = (option::of(word()), option::of(word()), option::of(word()), option::of(word()));
    let flags = (any::<bool>(), any::<Option<bool>>());
    let files = (vec(file(), 0..3), vec(file(), 0..3));
    (texts, options, amount(), flags, dns(), vec(host(), 0..3), files).prop_map(
        |(texts, options, stop_grace_ms, (read_only, init), dns, hosts, (secrets, configs))| {
            let (image, command, args, env) = texts;
            let (dir, user, hostname, stop_signal) = options;
            ContainerSpec {
                image,
                labels: [("a".to_owned(), String::new())].into(),
                command,
                args,
                env,
                dir,
                user,
                hostname,
                stop_signal,
                stop_grace_ms,
                read_only,
                init,
                dns,
                hosts,
                secrets,
                configs,
            }
        },
    )
}

fn task() -> impl Strategy<Value = TaskSpec> {
    let condition =
        prop_oneof![Just(RestartCondition::None), Just(RestartCondition::OnFailure), Just(RestartCondition::Any)];
    let restart =
        (condition, amount(), amount(), amount()).prop_map(|(condition, delay_ms, max_attempts, window_ms)| {
            RestartPolicy { condition, delay_ms, max_attempts, window_ms }
        });
    let resources = vec(amount(), 5).prop_map(|n| Resources {
        limit_nano_cpus: n[0],
        limit_memory_bytes: n[1],
        limit_pids: n[2],
        reserve_nano_cpus: n[3],
        reserve_memory_bytes: n[4],
    });
    let at_address = any::<IpAddr>().prop_map(|addr| (NodeAttribute::Ip, addr.to_string()));
    let constraint = (prop_oneof![(attribute(), "[a-z]([a-z ]{0,8}[a-z])?"), at_address], any::<bool>())
        .prop_map(|((attribute, value), equal)| Constraint { attribute, equal, value });
    let spread = prop_oneof![attribute(), Just(NodeAttribute::Ip)];
    let text = || prop_oneof![Just(String::new()), word()];
    let platform = (text(), text()).prop_map(|(os, arch)| Platform { os, arch });
    let placement = (vec(constraint, 0..3), vec(spread, 0..3), amount(), vec(platform, 0..3)).prop_map(
        |(constraints, spread, max_replicas_per_node, platforms)| Placement {
            constraints,
            spread,
            max_replicas_per_node,
            platforms,
        },
    );
    let networks = vec(vec(word(), 0..3), 0..3).prop_map(|aliases| {
        let attach = |(i, aliases)| NetworkAttachment { network: NetworkId::from_random(i as u128), aliases };
        (aliases.into_iter().enumerate().map(attach).collect(), None)
    });
    let of_nodes = prop_oneof![Just(NodeNetwork::Host), Just(NodeNetwork::Bridge)];
    let networks = prop_oneof![4 => networks, 1 => of_nodes.prop_map(|network| (Vec::new(), Some(network)))];
    (container(), resources, restart, placement, networks, amount()).prop_map(
        |(container, resources, restart, placement, (networks, node_network), force_update)| TaskSpec {
            container: container.into(),
            resources,
            restart,
            placement,
            networks,
            force_update,
            registry_auth: None,
            node_network,
        },
    )
}

fn spec() -> impl Strategy<Value = ServiceSpec> {
    let mode =
        prop_oneof![Just(ServiceMode::Global), amount().prop_map(|replicas| ServiceMode::Replicated { replicas })];
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let ports = vec((protocol, 1..=u16::MAX, any::<bool>()), 0..4).prop_map(|ports| {
        let port = |(i, (protocol, target, named)): (u16, _)| PortSpec {
            protocol,
            target,
            published: Option::from(1_000 + i).filter(|_| named),
        };
        (0..).zip(ports).map(port).collect()
    });
    let endpoint = (prop_oneof![Just(EndpointMode::Vip), Just(EndpointMode::Dnsrr)], ports)
        .prop_map(|(mode, ports)| EndpointSpec { mode, ports });
    let any_action =
        prop_oneof![Just(FailureAction::Pause), Just(FailureAction::Continue), Just(FailureAction::Rollback)];
    let rollback_action = prop_oneof![Just(FailureAction::Pause), Just(FailureAction::Continue)];
    (word(), task(), mode, update_config(any_action), update_config(rollback_action), endpoint).prop_map(
        |(name, task, mode, update, rollback, endpoint)| ServiceSpec {
            name: name.parse().expect("a word is a name"),
            labels: [("k".to_owned(), "v".to_owned())].into(),
            task: task.into(),
            mode,
            update,
            rollback,
            endpoint,
            left_out: [].into(),
        },
    )
}

/// Returns `value` with the names of its fields in upper or lower case. A name is a field if it
/// starts with a capital letter. In these tests, the keys of labels do not.
fn change_case(value: Value, upper: &mut impl Iterator<Item = bool>) -> Value {
    let mut change = |c: char| if upper.next() == Some(true) { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
    match value {
        Value::Object(map) => {
            let names: Vec<String> = map.keys().map(|name| name.chars().map(&mut change).collect()).collect();
            let is_label = |name: &String| name.starts_with(|c: char| c.is_ascii_lowercase());
            let fields = map.into_iter().zip(names);
            let changed = fields
                .map(|((name, value), other)| (if is_label(&name) { name } else { other }, change_case(value, upper)));
            Value::Object(changed.collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(|value| change_case(value, upper)).collect()),
        scalar => scalar,
    }
}

/// The parts of a spec that moby shows only if they were sent.
const PATHS: [&str; 13] = [
    "/TaskTemplate/ContainerSpec/StopGracePeriod",
    "/TaskTemplate/ContainerSpec/DNSConfig",
    "/TaskTemplate/Resources/Limits",
    "/TaskTemplate/Resources/Reservations",
    "/TaskTemplate/Resources",
    "/TaskTemplate/RestartPolicy/Delay",
    "/TaskTemplate/RestartPolicy",
    "/TaskTemplate/Placement",
    "/UpdateConfig/Monitor",
    "/UpdateConfig",
    "/RollbackConfig/Monitor",
    "/RollbackConfig",
    "/EndpointSpec",
];

proptest! {
    #[test]
    fn a_service_spec_is_the_same_after_writing_and_reading(spec in spec()) {
        let resolve = |id: &str| id.parse().map_err(|_| ApiError::Invalid(id.to_owned()));
        let read = service::read(to_json(service::write(&spec)), &resolve, &mut Ignored::default());
        prop_assert_eq!(read, Ok(spec));
    }

    #[test]
    fn what_was_left_out_is_left_out_again(spec in spec(), parts in vec(0..PATHS.len(), 0..PATHS.len())) {
        let resolve = |id: &str| id.parse().map_err(|_| ApiError::Invalid(id.to_owned()));
        let read = |body| service::read(body, &resolve, &mut Ignored::default()).expect("a spec");
        let mut body = to_json(service::write(&spec));
        for part in parts {
            let (parent, field) = PATHS[part].rsplit_once('/').expect("a path");
            if let Some(Value::Object(map)) = body.pointer_mut(parent) {
                map.remove(field);
            }
        }
        let sent = read(body.clone());
        let shown = service::write_as_sent(&sent);
        for path in PATHS {
            prop_assert_eq!(shown.pointer(path).is_some(), body.pointer(path).is_some(), "{}: {}", path, shown);
        }
        prop_assert_eq!(read(shown), sent.clone());
        // The defaults are what the parts mean.
        let full = read(to_json(service::write(&sent)));
        prop_assert_eq!(full, ServiceSpec { left_out: [].into(), ..sent });
    }

    #[test]
    fn the_case_of_field_names_makes_no_difference(spec in spec(), upper in vec(any::<bool>(), 64)) {
        let resolve = |id: &str| id.parse().map_err(|_| ApiError::Invalid(id.to_owned()));
        let mut flips = upper.into_iter().cycle();
        let body = change_case(to_json(service::write(&spec)), &mut flips);
        prop_assert_eq!(service::read(body, &resolve, &mut Ignored::default()), Ok(spec));
    }
}
