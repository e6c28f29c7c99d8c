//! Tests of what weft makes of the answers of a container engine: containers, docker networks that
//! stand for networks of the cluster, events, and versions.

use axum::{
    extract::Request as AnyRequest,
    response::{IntoResponse as _, Response},
};
use tokio::net::UnixListener;
use weft_model::{DualAddr, NetworkId, NodePlan};

use super::*;
use crate::fixture::{network_spec, service_spec, tcp};

/// The engine's ids.
const DOCKER_NETWORK: &str = "f6d9ab5b3a3ad5e1f0a9f3c9a7b1f3f3d2c66a0a7f8c3b5d1e9f0a1b2c3d4e5f";
const CONTAINER: &str = "0c5f9f1f3ed8a7c1b6f4f7d8c9b0a1e2d3c4b5a69788796a5b4c3d2e1f0a9b8c";

/// An engine in memory: its version, its answers by path, and the requests that it got.
#[derive(Debug)]
struct Script {
    version: Mutex<&'static str>,
    answers: Mutex<Vec<(String, Value)>>,
    requests: Mutex<Vec<String>>,
}

impl Script {
    fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer_with(&self, path: &str, body: Value) {
        Self::lock(&self.answers).insert(0, (path.to_owned(), body));
    }

    /// The requests since the last call.
    fn requests(&self) -> Vec<String> {
        Self::lock(&self.requests).drain(..).collect()
    }

    fn answer(&self, request: &AnyRequest) -> Response {
        if request.uri().path() == "/_ping" {
            return ([("api-version", *Self::lock(&self.version))], "OK").into_response();
        }
        let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
        let query = percent_encoding::percent_decode_str(&query).decode_utf8_lossy().into_owned();
        let path = request.uri().path();
        let path = path.strip_prefix("/v1.41").unwrap_or(path);
        Self::lock(&self.requests).push(format!("{} {path}{query}", request.method()));
        let answers = Self::lock(&self.answers);
        let found = answers.iter().find(|(known, _)| known == path).map(|(_, body)| body.clone());
        match found {
            // The lines of a stream.
            Some(Value::String(lines)) => {
                // Chunks do not end where events do.
                let chunks: Vec<_> = lines.into_bytes().chunks(100).map(|chunk| Ok(chunk.to_vec())).collect();
                Body::from_stream(stream::iter(chunks as Vec<Result<Vec<u8>, std::io::Error>>)).into_response()
            }
            Some(body) => axum::Json(body).into_response(),
            None => {
                (StatusCode::NOT_FOUND, axum::Json(json!({"message": format!("{path} not found")}))).into_response()
            }
        }
    }
}

/// A node with a task on a network of the cluster, `app`, and its engine.
struct Node {
    api: Fixture,
    engine: Arc<Script>,
    network: NetworkId,
    task: TaskId,
    _dir: tempfile::TempDir,
}

impl Node {
    async fn new(role: Role) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("engine.sock");
        let engine =
            Arc::new(Script { version: Mutex::new("1.41"), answers: Mutex::default(), requests: Mutex::default() });
        let listener = UnixListener::bind(&socket).expect("a socket");
        let script = Arc::clone(&engine);
        let handler = move |request: AnyRequest| async move { script.answer(&request) };
        tokio::spawn(async { axum::serve(listener, Router::new().fallback(handler)).await });

        let mut cluster = fixture::TestCluster::new();
        let node = cluster.first_node();
        let network = cluster.add_network(network_spec("app"));
        let mut spec = service_spec("web", 1, &[&network]);
        spec.endpoint.ports = vec![tcp(Some(8080), 80)];
        let service = cluster.add_service(spec);
        let task = cluster.running_task(&service, 1, &node);
        let plan = plan(&cluster.state, &node);
        let id = cluster.state.cluster.as_ref().expect("a cluster").id.clone();
        let membership = Membership::Active {
            node,
            cluster: id,
            role,
            addr: "192.0.2.1".parse().expect("an address"),
            warning: String::new(),
        };
        let cluster = (role == Role::Manager).then_some(cluster);
        let api = Fixture::with_engine(membership, cluster, Some(socket));
        *Script::lock(&api.member.plan) = plan.map(Arc::new);
        let this = Self { api, engine, network, task, _dir: dir };
        this.engine
            .answer_with("/networks", json!([this.docker_network(), {"Name": "bridge", "Id": "b1", "Labels": {}}]));
        for text in [DOCKER_NETWORK, &DOCKER_NETWORK[..12], "app"] {
            this.engine.answer_with(&format!("/networks/{text}"), this.docker_network());
        }
        this
    }

    /// As `docker network inspect` of version 20.10 shows it.
    fn docker_network(&self) -> Value {
        json!({
            "Name": "app", "Id": DOCKER_NETWORK, "Created": "2026-01-02T03:04:05.678Z", "Scope": "local",
            "Driver": "weft", "EnableIPv6": true, "Internal": false, "Attachable": false, "Ingress": false,
            "ConfigFrom": {"Network": ""}, "ConfigOnly": false, "Options": {},
            "IPAM": {"Driver": "weft", "Options": null, "Config": [{"Subnet": "10.0.1.0/24", "Gateway": "10.0.1.1"}]},
            "Containers": {CONTAINER: {
                "Name": "web.1.x", "EndpointID": "e1", "MacAddress": "02:42:0a:00:01:07",
                "IPv4Address": "10.0.1.7/24", "IPv6Address": "fd00:1::7/64",
            }},
            "Labels": {"weft.network": self.network.as_str(), "weft.node": "n1"},
        })
    }

    /// The container of the task in the engine's list.
    fn listed(&self) -> Value {
        json!({
            "Id": CONTAINER, "Names": ["/web.1.x"], "Image": "weft/whoami", "State": "running", "Status": "Up 2 minutes",
            "Ports": [{"PrivatePort": 80, "Type": "tcp"}, {"PrivatePort": 7, "Type": "udp"}],
            "Labels": {"weft.task": self.task.as_str(), "weft.node": "n1"}, "SizeRw": 12,
            "HostConfig": {"NetworkMode": DOCKER_NETWORK},
            "NetworkSettings": {"Networks": {"app": self.endpoint()}},
            "Unknown": {"kept": [1, 2.5]},
        })
    }

    fn endpoint(&self) -> Value {
        json!({
            "IPAMConfig": {"IPv4Address": "10.0.1.7", "IPv6Address": "fd00:1::7"}, "Links": null, "Aliases": ["0c5f9f1f3ed8"],
            "NetworkID": DOCKER_NETWORK, "EndpointID": "e1", "Gateway": "10.0.1.1", "IPAddress": "10.0.1.7",
            "IPPrefixLen": 24, "MacAddress": "02:42:0a:00:01:07",
            "GlobalIPv6Address": "fd00:1::7", "GlobalIPv6PrefixLen": 64,
            "DriverOpts": {"weft.task": self.task.as_str(), "weft.link": "0"},
        })
    }

    /// The network `app` was not asked to have IPv6, so the address is not shown.
    fn shown_endpoint(&self) -> Value {
        let shown = with(with(self.endpoint(), "/NetworkID", json!(self.network.as_str())), "/DriverOpts", Value::Null);
        let shown = with(shown, "/IPAMConfig", json!({"IPv4Address": "10.0.1.7"}));
        with(with(shown, "/GlobalIPv6Address", json!("")), "/GlobalIPv6PrefixLen", json!(0))
    }
}

#[tokio::test]
async fn listed_containers_have_the_clusters_networks_and_ports() {
    let node = Node::new(Role::Manager).await;
    let own = json!({
        "Id": "other", "State": "running", "Ports": [], "Labels": {"weft.task": "no id"},
        "HostConfig": {"NetworkMode": "default"},
        "NetworkSettings": {"Networks": {"bridge": {"NetworkID": "b1", "DriverOpts": null}}},
    });
    let ended = with(node.listed(), "/State", json!("exited"));
    node.engine.answer_with("/containers/json", json!([node.listed(), own, ended]));
    let shown = node.api.get("/v1.41/containers/json?all=1").await;

    let port = |host: &str| json!({"IP": host, "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"});
    let rewritten = |container: Value| {
        let container = with(container, "/HostConfig/NetworkMode", json!("app"));
        with(container, "/NetworkSettings/Networks", json!({"app": node.shown_endpoint()}))
    };
    let ports = json!([{"PrivatePort": 7, "Type": "udp"}, port("0.0.0.0"), port("::")]);
    assert_eq!(shown[0], with(rewritten(node.listed()), "/Ports", ports));
    assert_eq!(shown[1], own);
    assert_eq!(shown[2], rewritten(ended), "a container that has ended has no published ports");

    let worker = Node::new(Role::Worker).await;
    worker.engine.answer_with("/containers/json", json!([worker.listed()]));
    let shown = worker.api.get("/containers/json").await;
    assert_eq!(shown[0]["Ports"][1], port("0.0.0.0"), "workers have the ports from their plan");

    node.engine.answer_with("/system/df", json!({"LayersSize": 1, "Containers": [node.listed()]}));
    let usage = node.api.get("/system/df").await;
    assert_eq!(usage["Containers"][0]["NetworkSettings"]["Networks"]["app"], node.shown_endpoint());
    assert_eq!(usage["LayersSize"], 1);
}

#[tokio::test]
async fn an_inspected_container_names_no_docker_network() {
    let node = Node::new(Role::Manager).await;
    let container = json!({
        "Id": CONTAINER, "Name": "/web.1.x", "State": {"Status": "running", "Running": true},
        "HostConfig": {"NetworkMode": DOCKER_NETWORK, "Dns": ["127.0.0.12"]},
        "Config": {"Hostname": "0c5f9f1f3ed8", "Labels": {"weft.task": node.task.as_str()}},
        "NetworkSettings": {"SandboxKey": "/s", "Ports": {"7/udp": null}, "Networks": {"app": node.endpoint()}},
    });
    node.engine.answer_with("/containers/0c5f9f1f3ed8/json", container.clone());
    let shown = node.api.get("/v1.41/containers/0c5f9f1f3ed8/json").await;
    let bindings = json!([{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}]);
    let want = with(container.clone(), "/HostConfig/NetworkMode", json!("app"));
    let want = with(want, "/NetworkSettings/Ports", json!({"7/udp": null, "80/tcp": bindings}));
    let want = with(want, "/NetworkSettings/Networks", json!({"app": node.shown_endpoint()}));
    assert_eq!(shown, want);
    assert!(!shown.to_string().contains(DOCKER_NETWORK));

    // Before its first start, an engine knows a network only by what the request called it.
    let created = with(container, "/State", json!({"Status": "created", "Running": false}));
    let unknown = with(node.endpoint(), "/NetworkID", json!(""));
    let created = with(created, "/NetworkSettings", json!({"Ports": {}, "Networks": {DOCKER_NETWORK: unknown}}));
    node.engine.answer_with("/containers/c/json", created);
    let settings = node.api.get("/containers/c/json").await["NetworkSettings"].clone();
    assert_eq!(settings, json!({"Ports": {}, "Networks": {"app": node.shown_endpoint()}}));
    node.api.refused(Method::GET, "/containers/missing/json", None, 404, "not found").await;
}

#[tokio::test]
async fn a_network_with_ipv6_shows_the_addresses_of_containers() {
    let node = Node::new(Role::Worker).await;
    {
        let mut plan = Script::lock(&node.api.member.plan);
        let mut changed: NodePlan = plan.as_deref().cloned().expect("a plan");
        changed.networks.iter_mut().filter(|network| network.id == node.network).for_each(|n| n.ipv6 = true);
        *plan = Some(Arc::new(changed));
    }
    node.engine.answer_with("/containers/json", json!([node.listed()]));
    let shown = node.api.get("/containers/json").await[0]["NetworkSettings"]["Networks"]["app"].clone();
    assert_eq!((&shown["GlobalIPv6Address"], &shown["GlobalIPv6PrefixLen"]), (&json!("fd00:1::7"), &json!(64)));
    assert_eq!(shown["IPAMConfig"]["IPv6Address"], "fd00:1::7");
    let shown = node.api.get("/networks/app").await;
    assert_eq!(shown["Containers"], node.docker_network()["Containers"]);
}

#[tokio::test]
async fn a_network_without_ipv4_publishes_over_ipv6() {
    let node = Node::new(Role::Worker).await;
    {
        let mut plan = Script::lock(&node.api.member.plan);
        let mut changed: NodePlan = plan.as_deref().cloned().expect("a plan");
        changed.tasks[0].attachments[0].addr = DualAddr { v4: None, v6: [0xfd00, 1, 0, 0, 0, 0, 0, 7].into() };
        *plan = Some(Arc::new(changed));
    }
    node.engine.answer_with("/containers/json", json!([node.listed()]));
    let ports = node.api.get("/containers/json").await[0]["Ports"].clone();
    assert_eq!(ports[1], json!({"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}));
    assert_eq!(ports.as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn filters_match_what_is_shown() {
    let node = Node::new(Role::Manager).await;
    node.engine.answer_with("/containers/json", json!([node.listed()]));
    node.api.get(&format!("/containers/json?filters=%7B%22network%22:[%22{}%22]%7D", node.network)).await;
    let asked = node.engine.requests().pop().expect("a request");
    let filters = json!({"network": [node.network.as_str(), DOCKER_NETWORK]});
    assert_eq!(asked, format!("GET /containers/json?filters={filters}"));
    for (filters, count) in
        [("%7B%22publish%22:[%228080%22]%7D", 1), ("%7B%22publish%22:[%2280%22]%7D", 0), ("%7B%7D", 1)]
    {
        let shown = node.api.get(&format!("/containers/json?filters={filters}")).await;
        assert_eq!(shown.as_array().map(Vec::len), Some(count), "{filters}");
    }
}

#[tokio::test]
async fn networks_of_the_cluster_appear_once_on_managers_and_workers() {
    for role in [Role::Manager, Role::Worker] {
        let node = Node::new(role).await;
        let listed = node.api.get("/networks").await;
        let listed = listed.as_array().expect("a list");
        let apps: Vec<_> = listed.iter().filter(|network| network["Name"] == "app").collect();
        assert_eq!(apps.len(), 1, "{role:?}: {listed:?}");
        assert_eq!((&apps[0]["Id"], &apps[0]["Driver"]), (&json!(node.network.as_str()), &json!("overlay")));
        assert!(listed.iter().any(|network| network["Name"] == "bridge"));
        for text in ["app", node.network.as_str()] {
            let shown = node.api.get(&format!("/networks/{text}")).await;
            assert_eq!(
                (&shown["Id"], &shown["Scope"], &shown["Driver"]),
                (&json!(node.network.as_str()), &json!("swarm"), &json!("overlay")),
                "{role:?}"
            );
            let containers = &shown["Containers"];
            let expected = node.docker_network();
            let expected = with(expected, &format!("/Containers/{CONTAINER}/IPv6Address"), json!(""));
            assert_eq!(containers, &expected["Containers"], "{role:?}: {containers}");
        }
        // No request reaches the docker network.
        let why = if role == Role::Manager { "no such network" } else { "Worker nodes can't" };
        let status = if role == Role::Manager { 404 } else { 503 };
        for text in [DOCKER_NETWORK, &DOCKER_NETWORK[..12]] {
            let path = format!("/networks/{text}");
            node.api.refused(Method::GET, &path, None, status, why).await;
            node.api.refused(Method::DELETE, &path, None, status, why).await;
        }
        if role == Role::Worker {
            node.api.refused(Method::DELETE, "/networks/app", None, 503, "Worker nodes can't").await;
        }
        let requests = node.engine.requests();
        assert!(!requests.iter().any(|request| request.starts_with("DELETE")), "{requests:?}");
    }
}

#[tokio::test]
async fn unused_networks_of_users_are_removed_and_no_others() {
    let node = Node::new(Role::Worker).await;
    node.engine.answer_with("/networks/prune", json!({"NetworksDeleted": ["spare"]}));
    let pruned = node.api.call(Method::POST, "/networks/prune?filters=%7B%22until%22:[%221h%22]%7D", None).await;
    assert_eq!(pruned, (StatusCode::OK, json!({"NetworksDeleted": ["spare"]})));
    let asked = node.engine.requests().pop().expect("a request");
    assert_eq!(asked, r#"POST /networks/prune?filters={"label!":["weft.network"],"until":["1h"]}"#);
}

/// The events of an engine of version 20.10, one in each line.
fn events(node: &Node) -> String {
    let event = |kind: &str, action: &str, id: &str, attributes: Value| {
        let actor = json!({"ID": id, "Attributes": attributes});
        json!({"Type": kind, "Action": action, "Actor": actor, "scope": "local", "time": 1, "timeNano": 1_000_000_000})
    };
    let network = |action: &str, id: &str, name: &str, kind: &str| {
        event("network", action, id, json!({"name": name, "type": kind, "container": CONTAINER}))
    };
    let all = [
        network("create", DOCKER_NETWORK, "app", "weft"),
        network("connect", DOCKER_NETWORK, "app", "weft"),
        event("container", "start", CONTAINER, json!({"image": "weft/whoami", "weft.task": node.task.as_str()})),
        network("connect", "b1", "bridge", "bridge"),
        network("disconnect", DOCKER_NETWORK, "app", "weft"),
        network("destroy", DOCKER_NETWORK, "app", "weft"),
        network("connect", "unknown", "gone", "weft"),
    ];
    all.map(|event| format!("{event}\n")).concat()
}

async fn read_events(node: &Node, path: &str) -> Vec<Value> {
    let request = Request::get(path).body(Body::empty()).expect("a request");
    let response = node.api.router.clone().oneshot(request).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    let bytes = response.into_body().collect().await.expect("the engine's stream ends").to_bytes();
    let lines = String::from_utf8(bytes.to_vec()).expect("a text");
    lines.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[tokio::test]
async fn events_of_docker_networks_are_those_of_the_clusters() {
    let node = Node::new(Role::Worker).await;
    node.engine.answer_with("/events", Value::String(events(&node)));
    let seen = |event: &Value| {
        let attributes = &event["Actor"]["Attributes"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let [action, id] = [&event["Action"], &event["Actor"]["ID"]].map(text);
        format!("{action} {id} {} {}", text(&attributes["name"]), text(&attributes["type"]))
    };
    let id = node.network.to_string();
    let (connected, disconnected) = (format!("connect {id} app overlay"), format!("disconnect {id} app overlay"));
    let (started, bridged) = (format!("start {CONTAINER}  "), "connect b1 bridge bridge".to_owned());
    let all = read_events(&node, "/v1.41/events").await;
    let all: Vec<_> = all.iter().map(seen).collect();
    assert_eq!(all, [connected.clone(), started, bridged.clone(), disconnected.clone()]);

    node.engine.requests();
    for (filter, want) in [
        ("app", vec![connected.clone(), disconnected.clone()]),
        (&id[..8], vec![connected, disconnected]),
        ("bridge", vec![bridged]),
        (&DOCKER_NETWORK[..8], vec![]),
    ] {
        let path = format!("/events?filters=%7B%22network%22:[%22{filter}%22],%22scope%22:[%22local%22]%7D");
        let shown = read_events(&node, &path).await;
        assert_eq!(shown.iter().map(seen).collect::<Vec<_>>(), want, "{filter}");
        let asked = node.engine.requests();
        let asked = asked.iter().find(|request| request.contains("/events")).expect("a request for events");
        assert_eq!(asked, r#"GET /events?filters={"scope":["local"]}"#);
    }
    read_events(&node, "/events?filters=%7B%22container%22:[%22x%22]%7D").await;
}

#[tokio::test]
async fn past_events_of_a_manager_are_those_of_the_cluster_and_of_its_engine() {
    let node = Node::new(Role::Manager).await;
    node.engine.answer_with("/events", Value::String(events(&node)));
    // The task that records events sees the state of the beginning.
    tokio::task::yield_now().await;
    node.api.change(|t| t.node("n2", &[]));
    node.engine.requests();
    let past = read_events(&node, "/events?since=0&until=1700000001").await;
    let is_shown = |kind: &str, scope: &str, count: usize| {
        let found = past.iter().filter(|event| event["Type"] == kind && event["scope"] == scope).count();
        assert_eq!(found, count, "{kind} {scope}: {past:?}");
    };
    is_shown("node", "swarm", 1);
    is_shown("container", "local", 1);
    is_shown("network", "local", 3);
    let asked = node.engine.requests();
    assert!(asked.iter().any(|request| request == "GET /events?since=0&until=1700000001"), "{asked:?}");
}

#[tokio::test]
async fn the_announced_version_holds_for_weft_and_the_engine() {
    let node = Node::new(Role::Manager).await;
    let components = json!([{"Name": "Engine", "Version": "29.0.0", "Details": {"ApiVersion": "1.44"}}]);
    let version = json!({"ApiVersion": "1.44", "MinAPIVersion": "1.40", "Components": components});
    for (engine, announced) in [("1.44", "1.44"), ("1.41", "1.41"), ("1.99", "1.53"), ("unknown", "1.53")] {
        *Script::lock(&node.engine.version) = engine;
        node.engine.answer_with("/version", version.clone());
        node.engine.answer_with("/v1.53/version", version.clone());
        node.api.announced.forget().await;
        let request = Request::head("/_ping").body(Body::empty()).expect("a request");
        let response = node.api.router.clone().oneshot(request).await.expect("an answer");
        assert_eq!(response.headers()["api-version"], announced, "{engine}");
        let shown = node.api.get(&format!("/v{announced}/version")).await;
        assert_eq!((&shown["ApiVersion"], &shown["MinAPIVersion"]), (&json!(announced), &json!("1.40")));
        let parts = &shown["Components"];
        assert_eq!((&parts[0]["Name"], &parts[0]["Details"]["ApiVersion"]), (&json!("weft"), &json!(announced)));
        assert_eq!(parts[1], components[0]);
        let newer = if announced == "1.53" { "1.54" } else { "1.45" };
        let text = format!("client version {newer} is too new. Maximum supported API version is {announced}");
        node.api.refused(Method::GET, &format!("/v{newer}/nodes"), None, 400, &text).await;
    }
}
