//! One value of each kind of record, for the golden files. Every field has a value that differs
//! from its default where that is possible, so that a field in another place changes the bytes.

use std::collections::BTreeMap;

use openraft::{
    CommittedLeaderId, Entry, EntryPayload, LogId, Membership, SnapshotMeta, StoredMembership, Vote,
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};
use weft_model::{
    Applied, BackendId, ClusterState, Command, DependencyId, DualAddr, LogOptions, Mac, MeshServiceId, NetworkId,
    NodeId, NodePlan, NodeReport, Rejection, ServiceId, Shared, TaskId, UnlockKey, Vni,
    command::{AttachContainer, Convergence, InitCluster, JoinNode, WantedLink},
    id::ClusterId,
    plan::{
        AttachedLink, AttachedName, AttachedPlan, AttachmentPlan, BackendPlan, DependencyPlan, EndpointPlan, Expanded,
        ManagerPlan, NetworkPlan, PeerPlan, PortPlan, ServicePlan, TaskGoal, TaskPlan,
    },
    report::{AttachedReport, AttachedReports, EnginePlugin},
    spec::{
        Availability, ClusterSpec, Constraint, ContainerSpec, DependencyKind, DependencySpec, DnsConfig, EndpointMode,
        EndpointSpec, FailureAction, FileData, FileReference, HostEntry, Labels, NetworkAttachment, NetworkSpec,
        NodeAttribute, NodeNetwork, NodeSpec, Placement, Platform, PortSpec, Protocol, RegistryAuth, Resources,
        RestartCondition, RestartPolicy, Role, ServiceMode, ServiceSpec, SpecPart, SubnetSpec, TaskSpec, UpdateConfig,
        UpdateOrder,
    },
    state::{
        AttachedContainer, ContainerIdentity, ContainerLink, Dependency, FreedAddress, KeyRecord, KeyStage,
        ManagerLock, NetworkConfiguration, NodeDescription, NodeStatus, Restarts, RootRotation, Slot, StateDigest,
        TaskState, TaskStatus, Traffic, UpdateState, UpdateStatus,
    },
    wireguard::{EncryptedPeer, EncryptionPlan, EncryptionSupport, NodeKey, PublicKey},
};

use crate::{
    fixture::{START_MS, TestCluster, parse},
    raft::{Proposal, ProposalId, SnapshotHeader, TypeConfig, Voter},
    swarm::Backup,
};

fn labels(text: &str) -> Labels {
    Labels::from([(format!("key-{text}"), format!("value-{text}"))])
}

fn key(first: u8) -> NodeKey {
    NodeKey { public_key: PublicKey([first; 32]), port: 51_820 }
}

fn addr(last: u8) -> DualAddr {
    DualAddr { v4: Some([10, 1, 0, last].into()), v6: [0xfd00, 0, 0, 0, 0, 0, 0, last.into()].into() }
}

fn registry_auth() -> RegistryAuth {
    let text = str::to_owned;
    RegistryAuth {
        username: text("user"),
        password: text("password"),
        auth: text("auth"),
        email: text("email"),
        server_address: text("registry.test"),
        identity_token: text("identity"),
        registry_token: text("registry"),
    }
}

fn container() -> ContainerSpec {
    ContainerSpec {
        image: "weft/whoami:1".to_owned(),
        labels: labels("container"),
        command: vec!["/bin/serve".to_owned()],
        args: vec!["--verbose".to_owned()],
        env: vec!["A=1".to_owned(), "B={{.Task.Slot}}".to_owned()],
        dir: Some("/srv".to_owned()),
        user: Some("www:www".to_owned()),
        hostname: Some("web-{{.Task.Slot}}".to_owned()),
        stop_signal: Some("SIGINT".to_owned()),
        stop_grace_ms: 3_000,
        read_only: true,
        init: Some(true),
        dns: DnsConfig {
            name_servers: vec![[192, 0, 2, 53].into()],
            search: vec![parse("corp.test")],
            options: vec![parse("ndots:2")],
        },
        hosts: vec![parse::<HostEntry>("192.0.2.7 db.example.test db")],
        secrets: Vec::new(),
        configs: Vec::new(),
    }
}

/// A container with files, which no node of level 0 gets.
fn container_with_files() -> ContainerSpec {
    let file = |id, name: &str, uid| FileReference {
        id: DependencyId::from_random(id),
        name: name.to_owned(),
        target: format!("/etc/{name}"),
        uid,
        gid: uid + 1,
        mode: 0o640,
    };
    ContainerSpec { secrets: vec![file(100, "key", 1_000)], configs: vec![file(101, "conf", 2_000)], ..container() }
}

fn dependency(kind: DependencyKind, name: &str) -> DependencySpec {
    DependencySpec {
        kind,
        name: parse(name),
        labels: labels(name),
        data: FileData(format!("data of {name}").into_bytes()).into(),
        templated: kind == DependencyKind::Config,
    }
}

fn update_config(order: UpdateOrder, on_failure: FailureAction) -> UpdateConfig {
    UpdateConfig { parallelism: 2, delay_ms: 100, on_failure, monitor_ms: 7_000, max_failure_permille: 250, order }
}

pub(super) fn service_spec() -> ServiceSpec {
    let attribute = |name: &str| NodeAttribute::Label(name.to_owned());
    ServiceSpec {
        name: parse("web"),
        labels: labels("service"),
        task: Shared::from(TaskSpec {
            container: container().into(),
            resources: Resources {
                limit_nano_cpus: 500_000_000,
                limit_memory_bytes: 64 << 20,
                limit_pids: 100,
                reserve_nano_cpus: 100_000_000,
                reserve_memory_bytes: 32 << 20,
            },
            restart: RestartPolicy {
                condition: RestartCondition::OnFailure,
                delay_ms: 1_000,
                max_attempts: 3,
                window_ms: 60_000,
            },
            placement: Placement {
                constraints: vec![Constraint { attribute: attribute("disk"), equal: false, value: "hdd".to_owned() }],
                spread: vec![attribute("zone"), NodeAttribute::EngineLabel("rack".to_owned())],
                max_replicas_per_node: 4,
                platforms: vec![Platform { os: "linux".to_owned(), arch: "amd64".to_owned() }],
            },
            networks: vec![NetworkAttachment { network: NetworkId::from_random(70), aliases: vec!["api".to_owned()] }],
            force_update: 2,
            registry_auth: Some(registry_auth()),
            node_network: None,
        }),
        mode: ServiceMode::Replicated { replicas: 3 },
        update: update_config(UpdateOrder::StartFirst, FailureAction::Rollback),
        rollback: update_config(UpdateOrder::StopFirst, FailureAction::Continue),
        endpoint: EndpointSpec {
            mode: EndpointMode::Vip,
            ports: vec![PortSpec { protocol: Protocol::Udp, target: 53, published: Some(8053) }],
        },
        left_out: [SpecPart::StopGrace, SpecPart::RollbackMonitor].into(),
    }
}

fn network_spec() -> NetworkSpec {
    NetworkSpec {
        labels: labels("network"),
        v4: vec![SubnetSpec {
            subnet: parse("10.1.0.0/16"),
            gateway: Some([10, 1, 0, 254].into()),
            ip_range: Some(parse("10.1.0.0/24")),
            reserved: BTreeMap::from([("printer".to_owned(), [10, 1, 0, 9].into())]),
        }],
        v6: vec![SubnetSpec::new(parse("fd01::/64"))],
        ipv6: true,
        internal: true,
        encrypted: true,
        mtu: Some(1_400),
        vni: Vni::new(5_000),
        ipam_options: labels("ipam"),
        attachable: true,
        ..NetworkSpec::new(parse("app"))
    }
}

fn description() -> NodeDescription {
    NodeDescription {
        engine_labels: labels("engine"),
        addresses: vec![[192, 0, 2, 1].into(), [0xfd00, 0, 0, 0, 0, 0, 0, 1].into()],
        encryption: EncryptionSupport::Unavailable("no module".to_owned()),
        plugins: [EnginePlugin { kind: "Volume".to_owned(), name: "local".to_owned() }].into(),
        ..crate::fixture::description(&["198.51.100.0/24"])
    }
}

fn status() -> TaskStatus {
    TaskStatus {
        state: TaskState::Failed,
        since_ms: START_MS + 5,
        message: "exited".to_owned(),
        error: "exit code 3".to_owned(),
        exit_code: Some(3),
        container: Some("c0ffee".to_owned()),
        pid: Some(4_711),
    }
}

fn restarts() -> Restarts {
    Restarts { total: 4, ended_at_once: 2, recent_ms: vec![START_MS, START_MS + 1] }
}

fn update_status() -> UpdateStatus {
    UpdateStatus {
        state: UpdateState::RollbackPaused,
        started_ms: START_MS,
        completed_ms: Some(START_MS + 9),
        message: "update paused".to_owned(),
    }
}

fn identity() -> ContainerIdentity {
    ContainerIdentity { container: "c0ffee".to_owned(), name: "shell".to_owned() }
}

/// A state with at least one object of each type.
pub(super) fn state() -> ClusterState {
    let mut cluster = TestCluster::new();
    let node = cluster.node("n2", &["198.51.100.0/24"]);
    let network = NetworkId::from_random(70);
    cluster.ok(Command::CreateNetwork { id: network, spec: Box::new(network_spec()) });
    let service = cluster.add_service(service_spec());
    cluster.update_service(&service, |spec| spec.task.force_update = 3);
    let running = cluster.running_task(&service, 1, &node);
    cluster.ok(Command::SetTraffic { id: running, traffic: Traffic::Active });
    cluster.task(&service, 2);
    let mut state = cluster.state;
    let meta = state.services[&service].meta;
    // At level 0 a worker has a Raft id.
    state.allocated.next_raft_id = 3;
    let known = state.nodes.get_mut(&node).expect("the node");
    known.description = Some(description());
    known.spec.name = Some("second".to_owned());
    known.message = "text".to_owned();
    known.raft_id = 2;
    known.rotated = true;
    known.keys.keys.push(KeyRecord {
        key: key(7),
        epoch: 2,
        created_ms: START_MS,
        created_index: 3,
        stage: KeyStage::Retiring,
        stage_index: 4,
        stage_since_ms: START_MS + 1,
    });
    let configuration = NetworkId::from_random(71);
    state
        .configurations
        .insert(configuration.clone(), NetworkConfiguration { id: configuration, meta, spec: network_spec() });
    let web = state.services.get_mut(&service).expect("the service");
    web.update = Some(update_status());
    let freed = FreedAddress {
        network: NetworkId::from_random(70),
        addr: addr(99),
        freed_ms: START_MS,
        freed_index: 9,
        node: None,
        slot: Some((service, Slot::Replica(2))),
    };
    state.allocated.quarantine.push(freed);
    let container = AttachedContainer {
        id: TaskId::from_random(95),
        node,
        identity: Some(identity()),
        links: vec![ContainerLink {
            index: 1,
            network: NetworkId::from_random(70),
            addr: addr(98),
            mac: Mac::of_task(addr(98)),
            aliases: vec!["db".to_owned()],
            reserved_ms: Some(START_MS),
        }],
        running: true,
        changed_index: 8,
    };
    state.attached.insert(container.id.clone(), container);
    for (id, kind, name) in [(100, DependencyKind::Secret, "key"), (101, DependencyKind::Config, "conf")] {
        let id = DependencyId::from_random(id);
        state.dependencies.insert(id.clone(), Dependency { id, meta, spec: dependency(kind, name) });
    }
    state.epoch = 2;
    state.digests.insert(NodeId::from_random(60), StateDigest { index: 1_000, sha256: [6; 32] });
    let settings = state.cluster.as_mut().expect("a cluster");
    settings.root_rotation = Some(root_rotation());
    settings.lock = ManagerLock { key: Some(UnlockKey([5; 32])), version: 9 };
    settings.spec.force_rotate = 3;
    state
}

/// Every command that the first release had.
pub(super) fn commands() -> Vec<Command> {
    let (node, network) = (NodeId::from_random(60), NetworkId::from_random(70));
    let (service, task) = (ServiceId::from_random(80), TaskId::from_random(90));
    let public_key = PublicKey([9; 32]);
    let mut cluster = TestCluster::empty();
    let mut init = cluster.init();
    init.ca_cert_pem = "pem".to_owned();
    init.ca_key_sealed = vec![1, 2, 255];
    let node_spec = NodeSpec {
        name: Some("n".to_owned()),
        labels: labels("node"),
        role: Role::Manager,
        availability: Availability::Drain,
    };
    let spec = ClusterSpec { labels: labels("cluster"), task_history_limit: 7, ..ClusterSpec::default() };
    let join = JoinNode { ca_cert_pem: "pem".to_owned(), ..cluster.joining("n3", Role::Worker) };
    vec![
        Command::InitCluster(Box::new(init)),
        Command::UpdateCluster { version: 1, spec },
        Command::RotateToken { role: Role::Worker, secret: "secret".to_owned() },
        Command::JoinNode(Box::new(join)),
        Command::UpdateNode { id: node.clone(), version: 2, spec: node_spec },
        Command::RemoveNode { id: node.clone(), force: true },
        Command::CreateNetwork { id: network.clone(), spec: Box::new(network_spec()) },
        Command::RemoveNetwork { id: network },
        Command::CreateService { id: service.clone(), spec: Box::new(service_spec()) },
        Command::UpdateService { id: service.clone(), version: 3, spec: Box::new(service_spec()) },
        Command::RollbackService { id: service.clone(), version: 4, message: "failed".to_owned(), automatic: true },
        Command::RemoveService { id: service.clone() },
        Command::SetNodeStatus { id: node.clone(), status: NodeStatus::Down, message: "silent".to_owned() },
        Command::SetVoter { id: node.clone(), voter: true },
        Command::ClearRaftConfig { id: node.clone() },
        Command::CreateTask {
            id: task.clone(),
            service: service.clone(),
            slot: Slot::Node(node.clone()),
            desired: TaskState::Ready,
            not_before_ms: START_MS,
            restarts: restarts(),
        },
        Command::AssignTask { id: task.clone(), node: node.clone(), reuse: BTreeMap::new() },
        Command::DelayTask { id: task.clone(), error: "no suitable node".to_owned() },
        Command::SetDesired { id: task.clone(), desired: TaskState::Shutdown },
        Command::SetTraffic { id: task.clone(), traffic: Traffic::Drained },
        Command::OrphanTask { id: task.clone() },
        Command::ForgetTask { id: task.clone() },
        Command::ForgetService { id: service.clone() },
        Command::SetUpdateStatus { service, version: 5, status: update_status() },
        Command::ReleaseAddresses { acked_index: 6, owners: BTreeMap::new() },
        Command::RequestKey { node: node.clone() },
        Command::SetKeyStage { node: node.clone(), key: public_key, stage: KeyStage::Withdrawn },
        Command::ForgetKey { node: node.clone(), key: public_key },
        Command::ReportTasks { node: node.clone(), tasks: vec![(task, status())] },
        Command::DescribeNode { node: node.clone(), description: Box::new(description()) },
        Command::ReportKeys { node, keys: vec![key(8)], acked: 7 },
    ]
}

fn root_rotation() -> RootRotation {
    RootRotation {
        ca_cert_pem: "new".to_owned(),
        ca_key_sealed: vec![3, 4, 255],
        cross_signed_pem: "cross".to_owned(),
        worker_secret: "worker".to_owned(),
        manager_secret: "manager".to_owned(),
    }
}

/// Every command that later releases have added.
pub(super) fn later_commands() -> Vec<Command> {
    let node = NodeId::from_random(1);
    let convergence = |convergence| Command::SetConvergence { id: NodeId::from_random(1), convergence };
    let spec = ClusterSpec { force_rotate: 2, ..ClusterSpec::default() };
    let on_node_network = |id, network| {
        let mut spec = ServiceSpec::new(parse("local"), container());
        spec.task.node_network = Some(network);
        Command::CreateService { id: ServiceId::from_random(id), spec: Box::new(spec) }
    };
    let locked = InitCluster { unlock_key: Some(UnlockKey([4; 32])), ..TestCluster::empty().init() };
    vec![
        Command::SetFeatureLevel { level: 1 },
        Command::AssignTask {
            id: TaskId::from_random(90),
            node: node.clone(),
            reuse: BTreeMap::from([(NetworkId::from_random(70), addr(99))]),
        },
        Command::ReleaseAddresses { acked_index: 6, owners: BTreeMap::from([(node.clone(), 5)]) },
        convergence(Convergence::Lagging { reason: "a reason".to_owned() }),
        convergence(Convergence::CatchingUp),
        convergence(Convergence::Converged),
        Command::ReplaceRaftId { node: NodeId::from_random(60), raft_id: 7 },
        Command::ReportDigest { node, digest: StateDigest { index: 1_000, sha256: [6; 32] } },
        Command::RotateRoot { version: 6, spec, rotation: Box::new(root_rotation()) },
        Command::SetRotated { nodes: vec![NodeId::from_random(60)], ca_cert_pem: "new".to_owned() },
        Command::AttachContainer(Box::new(AttachContainer {
            node: NodeId::from_random(60),
            id: TaskId::from_random(95),
            identity: Some(identity()),
            networks: vec![WantedLink {
                network: NetworkId::from_random(70),
                v4: addr(98).v4,
                v6: Some(addr(98).v6),
                aliases: vec!["db".to_owned()],
            }],
            present: vec![NetworkId::from_random(70)],
            running: Some(true),
        })),
        Command::DetachContainer {
            node: NodeId::from_random(60),
            id: TaskId::from_random(95),
            networks: vec![NetworkId::from_random(70)],
        },
        Command::CreateNetwork { id: NetworkId::from_random(70), spec: Box::new(network_spec()) },
        Command::SetUnlockKey { version: 7, spec: ClusterSpec::default(), key: Some(UnlockKey([4; 32])) },
        Command::InitCluster(Box::new(locked)),
        on_node_network(84, NodeNetwork::Host),
        on_node_network(85, NodeNetwork::Bridge),
        Command::CreateDependency {
            id: DependencyId::from_random(100),
            spec: Box::new(dependency(DependencyKind::Secret, "key")),
        },
        Command::CreateDependency {
            id: DependencyId::from_random(101),
            spec: Box::new(dependency(DependencyKind::Config, "conf")),
        },
        Command::UpdateDependency { id: DependencyId::from_random(100), version: 8, labels: labels("changed") },
        Command::RemoveDependency { id: DependencyId::from_random(101) },
        Command::CreateService {
            id: ServiceId::from_random(86),
            spec: Box::new(ServiceSpec::new(parse("files"), container_with_files())),
        },
    ]
}

pub(super) fn log_id(index: u64) -> LogId<u64> {
    LogId::new(CommittedLeaderId::new(3, 1), index)
}

fn voters() -> Membership<u64, Voter> {
    let voter = |n: u64, last: u8| {
        let addr = std::net::SocketAddr::from(([192, 0, 2, last], 2377));
        (n, Voter { node: NodeId::from_random(n.into()), rpc_addr: addr })
    };
    let nodes = BTreeMap::from([voter(1, 1), voter(2, 2)]);
    Membership::new(vec![[1].into()], nodes)
}

pub(super) fn membership() -> StoredMembership<u64, Voter> {
    StoredMembership::new(Some(log_id(4)), voters())
}

pub(super) fn entries() -> Vec<Entry<TypeConfig>> {
    let batch = Proposal::new(ProposalId(u128::MAX - 1), START_MS, Command::Batch(commands()));
    vec![
        Entry { log_id: log_id(5), payload: EntryPayload::Blank },
        Entry { log_id: log_id(6), payload: EntryPayload::Normal(batch) },
        Entry { log_id: log_id(7), payload: EntryPayload::Membership(voters()) },
    ]
}

pub(super) fn append() -> AppendEntriesRequest<TypeConfig> {
    AppendEntriesRequest {
        vote: Vote::new_committed(3, 1),
        prev_log_id: Some(log_id(4)),
        entries: entries(),
        leader_commit: Some(log_id(3)),
    }
}

pub(super) fn vote_request() -> VoteRequest<u64> {
    VoteRequest::new(Vote::new(4, 2), Some(log_id(7)))
}

pub(super) fn append_replies() -> [AppendEntriesResponse<u64>; 4] {
    [
        AppendEntriesResponse::Success,
        AppendEntriesResponse::PartialSuccess(Some(log_id(5))),
        AppendEntriesResponse::Conflict,
        AppendEntriesResponse::HigherVote(Vote::new(5, 3)),
    ]
}

pub(super) fn vote_reply() -> VoteResponse<u64> {
    VoteResponse { vote: Vote::new(4, 2), vote_granted: true, last_log_id: Some(log_id(6)) }
}

pub(super) fn snapshot_header() -> SnapshotHeader {
    SnapshotHeader { vote: Vote::new_committed(3, 1), meta: snapshot_meta() }
}

pub(super) fn snapshot_reply() -> SnapshotResponse<u64> {
    SnapshotResponse { vote: Vote::new_committed(3, 1) }
}

pub(super) fn snapshot_meta() -> SnapshotMeta<u64, Voter> {
    SnapshotMeta { last_log_id: Some(log_id(7)), last_membership: membership(), snapshot_id: "3-1-7".to_owned() }
}

pub(super) fn plan() -> NodePlan {
    let (node, peer, task) = (NodeId::from_random(60), NodeId::from_random(61), TaskId::from_random(90));
    let (network, service) = (NetworkId::from_random(70), ServiceId::from_random(80));
    let subnets = weft_model::net::Subnets::dual(parse("10.1.0.0/16"), parse("fd01::/64"));
    let vni = Vni::new(5_000).expect("a VNI");
    let mac = Mac::of_task(addr(2));
    let attachment = AttachmentPlan {
        network: network.clone(),
        vni,
        mtu: Some(1_400),
        subnets: subnets.clone(),
        addr: addr(2),
        mac,
    };
    let attached = TaskPlan {
        id: task.clone(),
        service: service.clone(),
        service_name: parse("web"),
        name: "web.1.x".to_owned(),
        container: container().into(),
        resources: service_spec().task.resources,
        labels: labels("plan"),
        attachments: vec![attachment.clone()],
        desired: TaskGoal::Stop,
        expanded: Expanded { hostname: None, env: [(0, "A=1".to_owned())].into(), files: BTreeMap::new() },
        container_at: None,
        node_network: None,
        has_run: false,
        registry_auth: Some(registry_auth()),
    };
    let on_node_network = TaskPlan {
        id: TaskId::from_random(91),
        attachments: Vec::new(),
        node_network: Some(NodeNetwork::Host),
        has_run: true,
        ..attached.clone()
    };
    let data = |text: &str| Some(Shared::from(FileData(text.as_bytes().to_vec())));
    let with_files = TaskPlan {
        id: TaskId::from_random(92),
        container: container_with_files().into(),
        expanded: Expanded {
            files: [(DependencyId::from_random(101), data("expanded"))].into(),
            ..Expanded::default()
        },
        ..attached.clone()
    };
    NodePlan {
        generation: 77,
        cluster: ClusterId::from_random(50),
        hostname: parse("n1"),
        role: Role::Manager,
        raft_id: 5,
        managers: vec![ManagerPlan { node: node.clone(), rpc_addr: ([192, 0, 2, 1], 2377).into() }],
        peers: vec![PeerPlan { node: peer.clone(), addr: [192, 0, 2, 2].into() }],
        encryption: Some(EncryptionPlan {
            epoch: 3,
            own: vec![key(1).public_key],
            active: Some(key(1).public_key),
            peers: vec![EncryptedPeer {
                node: peer.clone(),
                addr: [192, 0, 2, 2].into(),
                keys: vec![key(2)],
                active: None,
            }],
        }),
        networks: vec![NetworkPlan {
            id: network.clone(),
            name: parse("app"),
            vni,
            subnets,
            ipv6: true,
            internal: true,
            ingress: false,
            encrypted: true,
        }],
        services: vec![ServicePlan {
            mesh: MeshServiceId(5),
            service: service.clone(),
            name: parse("web"),
            aliases: vec!["api".to_owned()],
            network: network.clone(),
            vip: Some(addr(3)),
            removing: true,
            backends: vec![BackendPlan {
                id: BackendId(6),
                task: task.clone(),
                task_name: "web.1".to_owned(),
                hostname: Some("web-1".to_owned()),
                node: peer.clone(),
                addr: addr(2),
                draining: true,
            }],
        }],
        ports: vec![PortPlan { port: 8_053, protocol: Protocol::Udp, mesh: MeshServiceId(5), target: 53 }],
        endpoints: vec![EndpointPlan { network, task: task.clone(), node: peer, addr: addr(2), mac }],
        tasks: vec![attached, on_node_network, with_files],
        epoch: 2,
        feature_level: 1,
        roots_pem: "pem".to_owned(),
        attached: vec![AttachedPlan {
            id: TaskId::from_random(95),
            identity: Some(identity()),
            links: vec![AttachedLink { index: 1, attachment: attachment.clone(), present: true }],
        }],
        attached_names: vec![AttachedName {
            network: attachment.network.clone(),
            addr: addr(98),
            identity: identity(),
            aliases: vec!["db".to_owned()],
        }],
        dependencies: vec![DependencyPlan { id: DependencyId::from_random(100), data: data("data") }],
        ..NodePlan::empty(node, [192, 0, 2, 1].into())
    }
}

pub(super) fn report() -> NodeReport {
    NodeReport {
        acked: 76,
        epoch: 2,
        addr: Some([192, 0, 2, 7].into()),
        problem: String::new(),
        description: Some(description()),
        keys: vec![key(1), key(2)],
        tasks: vec![(TaskId::from_random(90), status())],
        attached: Some(AttachedReports {
            containers: vec![AttachedReport {
                id: TaskId::from_random(95),
                identity: identity(),
                networks: vec![NetworkId::from_random(70)],
                running: true,
            }],
            unanswered: vec!["c0ffee".to_owned()],
        }),
    }
}

pub(super) fn outcomes() -> Vec<Result<Applied, Rejection>> {
    vec![
        Ok(Applied::Service(ServiceId::from_random(80))),
        Err(Rejection::NameInUse {
            kind: weft_model::command::ObjectKind::Network,
            name: "app".to_owned(),
            by: "web".to_owned(),
        }),
        Err(Rejection::Invalid("text".to_owned())),
    ]
}

pub(super) fn log_options() -> LogOptions {
    LogOptions { follow: true, tail: Some(9), since_ms: Some(1), until_ms: Some(2), stdout: true, stderr: true }
}

pub(super) fn backup() -> Backup {
    Backup { taken_ms: START_MS, term: 3, kek: vec![4; 32], state: state() }
}
