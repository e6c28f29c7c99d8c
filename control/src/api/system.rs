//! Handlers of `_ping`, `version` and `info`: what the node reports about itself.

use std::{env::consts, fs, path::Path};

use axum::{
    Json,
    extract::{Extension, State},
    http::HeaderName,
    response::{IntoResponse, Response},
};
use bollard_stubs::models::{self, LocalNodeState};
use serde_json::{Value, json};
use weft_model::spec::Role;

use super::{
    Api, engine,
    error::ApiError,
    version::{ApiVersion, ClientVersion, MIN_API_VERSION},
    wire,
};
use crate::swarm::{Membership, SwarmError};

/// `GET /_ping`: clients read the API version and this node's role in the cluster from the headers.
pub(super) async fn ping(State(api): State<Api>) -> Response {
    let swarm = match api.member.membership() {
        Membership::None => "inactive",
        Membership::Joining => "pending",
        Membership::Active { role: Role::Manager, .. } => "active/manager",
        Membership::Active { role: Role::Worker, .. } => "active/worker",
        Membership::Locked => "locked",
        Membership::Error(_) => "error",
    };
    let headers = [
        (HeaderName::from_static("swarm"), swarm),
        (HeaderName::from_static("cache-control"), "no-cache, no-store, must-revalidate"),
        (HeaderName::from_static("pragma"), "no-cache"),
        // 1 means the classic builder. 2 means BuildKit, which not every engine has.
        (HeaderName::from_static("builder-version"), "1"),
    ];
    (headers, "OK").into_response()
}

/// `GET /version`: weft, and the components of the local container engine.
pub(super) async fn version(State(api): State<Api>) -> Json<Value> {
    let newest = api.announced.version().await.to_string();
    let details = [
        ("ApiVersion", newest.clone()),
        ("MinAPIVersion", MIN_API_VERSION.to_string()),
        ("Os", consts::OS.to_owned()),
        ("Arch", architecture().to_owned()),
        ("KernelVersion", kernel_version()),
    ];
    let mut shown = wire::to_json(models::SystemVersion {
        platform: Some(models::SystemVersionPlatform { name: "weft".into() }),
        components: Some(vec![models::SystemVersionComponents {
            name: "weft".into(),
            version: api.node.version.clone(),
            details: Some(details.map(|(key, value)| (key.to_owned(), value)).into()),
        }]),
        version: Some(api.node.version.clone()),
        api_version: Some(newest),
        min_api_version: Some(MIN_API_VERSION.to_string()),
        git_commit: None,
        go_version: None,
        os: Some(consts::OS.into()),
        arch: Some(architecture().into()),
        kernel_version: Some(kernel_version()),
        experimental: Some(false),
        build_time: None,
    });
    if let Some(socket) = &api.node.engine {
        match engine::get_json(socket, "/version", None).await {
            Ok(engine) => add_engine(&mut shown, &engine),
            Err(error) => tracing::warn!(%error, "cannot read the version of the container engine"),
        }
    }
    Json(shown)
}

/// Adds the components of the engine. Both must accept the oldest version of the API.
fn add_engine(shown: &mut Value, engine: &Value) {
    if let (Some(shown), Some(components)) = (shown["Components"].as_array_mut(), engine["Components"].as_array()) {
        shown.extend(components.iter().cloned());
    }
    let oldest = engine["MinAPIVersion"].as_str().and_then(|version| version.parse::<ApiVersion>().ok());
    let oldest = oldest.map_or(MIN_API_VERSION, |oldest| oldest.max(MIN_API_VERSION));
    wire::set(shown, "MinAPIVersion", json!(oldest.to_string()));
}

/// `GET /info`: the answer of the local container engine, with the version and the cluster of weft
/// added. Without an engine, the answer has only what weft itself knows.
pub(super) async fn info(
    State(api): State<Api>,
    Extension(client): Extension<ClientVersion>,
) -> Result<Json<Value>, ApiError> {
    let mut info = match &api.node.engine {
        Some(socket) => engine::get_json(socket, "/info", client.0).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the info of the container engine");
            info_without_engine(&api, client)
        }),
        None => info_without_engine(&api, client),
    };
    if let Some(machine) = api.member.report().description {
        let labels = machine.engine_labels.iter().map(|(key, value)| format!("{key}={value}"));
        wire::set(&mut info, "Labels", labels.collect());
    }
    wire::set(&mut info, "Name", json!(api.node.hostname.as_str()));
    wire::set(&mut info, "ServerVersion", json!(api.node.version));
    wire::set(&mut info, "Swarm", swarm_info(&api));
    Ok(Json(info))
}

/// What weft itself knows. Clients expect each field that moby's answer always has, also if its
/// value says nothing here (`api/types/system/info.go`).
fn info_without_engine(api: &Api, client: ClientVersion) -> Value {
    let mut info = json!({
        "ID": api.node_id().map(|node| node.to_string()).unwrap_or_default(),
        "ContainersPaused": 0,
        "ContainersStopped": 0,
        "Images": 0,
        "Driver": "",
        "DriverStatus": [],
        "LoggingDriver": "",
        // The process runtime writes control groups itself.
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "2" } else { "1" },
        "OomKillDisable": false,
        "NFd": 0,
        "NGoroutines": 0,
        "NEventsListener": 0,
        "OSVersion": "",
        "IndexServerAddress": "",
        "GenericResources": null,
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Isolation": "",
        "InitBinary": "",
        "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": ""},
        "InitCommit": {"ID": ""},
        "CDISpecDirs": null,
    });
    if let (Some(info), Value::Object(known)) = (info.as_object_mut(), known_info(api)) {
        info.extend(known);
    }
    for field in ["Volume", "Authorization", "Log"] {
        wire::set(&mut info["Plugins"], field, json!([]));
    }
    // As moby's `daemon/server/router/system` does it.
    if client.is_before(ApiVersion::new(1, 47)) {
        for field in ["AllowNondistributableArtifactsCIDRs", "AllowNondistributableArtifactsHostnames"] {
            wire::set(&mut info["RegistryConfig"], field, Value::Null);
        }
    }
    if client.is_before(ApiVersion::new(1, 49)) {
        for field in ["ContainerdCommit", "RuncCommit", "InitCommit"] {
            wire::set(&mut info[field], "Expected", json!(""));
        }
    }
    if client.is_before(ApiVersion::new(1, 50)) {
        wire::set(&mut info, "BridgeNfIptables", json!(false));
        wire::set(&mut info, "BridgeNfIp6tables", json!(false));
    }
    info
}

fn known_info(api: &Api) -> Value {
    let tasks = api
        .state()
        .ok()
        .zip(api.node_id())
        .map_or(0, |(state, node)| state.tasks_on(&node).filter(|task| task.holds_addresses()).count() as i64);
    wire::to_json(models::SystemInfo {
        containers: Some(tasks),
        containers_running: Some(tasks),
        plugins: Some(models::PluginsInfo { network: Some(vec!["overlay".into()]), ..Default::default() }),
        docker_root_dir: Some(api.node.data_dir.display().to_string()),
        // The docker client prints a warning for each limit that is false here. The runtime applies
        // the limits of services, so they are true.
        memory_limit: Some(true),
        swap_limit: Some(true),
        cpu_cfs_period: Some(true),
        cpu_cfs_quota: Some(true),
        cpu_shares: Some(true),
        cpu_set: Some(true),
        pids_limit: Some(true),
        ipv4_forwarding: Some(true),
        debug: Some(false),
        system_time: Some(jiff::Timestamp::now().to_string()),
        kernel_version: Some(kernel_version()),
        operating_system: Some(operating_system()),
        os_type: Some(consts::OS.into()),
        architecture: Some(consts::ARCH.into()),
        ncpu: std::thread::available_parallelism().ok().and_then(|cpus| i64::try_from(cpus.get()).ok()),
        mem_total: Some(wire::signed(memory_total_bytes())),
        registry_config: Some(models::RegistryServiceConfig::default()),
        labels: Some(Vec::new()),
        experimental_build: Some(false),
        runtimes: Some([(api.node.runtime.clone(), models::Runtime::default())].into()),
        default_runtime: Some(api.node.runtime.clone()),
        live_restore_enabled: Some(true),
        security_options: Some(Vec::new()),
        warnings: Some(Vec::new()),
        ..Default::default()
    })
}

fn swarm_info(api: &Api) -> Value {
    let (state, node, addr, error) = match api.member.membership() {
        Membership::None => (LocalNodeState::INACTIVE, None, None, String::new()),
        Membership::Joining => (LocalNodeState::PENDING, None, None, String::new()),
        Membership::Active { node, addr, warning, .. } => (LocalNodeState::ACTIVE, Some(node), Some(addr), warning),
        Membership::Locked => (LocalNodeState::LOCKED, None, None, SwarmError::Locked.to_string()),
        Membership::Error(text) => (LocalNodeState::ERROR, None, None, text),
    };
    let managers = api.member.remotes().into_iter().map(|(node, addr)| (node.to_string(), addr.to_string())).collect();
    let node = node.map(|node| node.to_string()).unwrap_or_default();
    let local = wire::membership::LocalMember { state, node, addr, error, managers, report: api.member.report() };
    wire::membership::show(&local, api.state().ok().as_deref())
}

fn kernel_version() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The architecture under the name that Go uses for it, because clients expect this name.
fn architecture() -> &'static str {
    match consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The value of `PRETTY_NAME` in os-release(5).
fn operating_system() -> String {
    let file = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = file.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| consts::OS.to_owned(), |name| name.trim_matches('"').to_owned())
}

/// The size of all usable memory, from sysinfo(2).
fn memory_total_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram * u64::from(info.mem_unit)
}
