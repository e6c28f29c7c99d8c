//! Tests of bodies whose field names are in another case.

use super::*;

/// Returns the body with the names of all fields in lower case. A name is a field if it starts with
/// a capital letter. In these tests, the keys of labels do not.
fn lower_case(body: Value) -> Value {
    match body {
        Value::Object(map) => {
            Value::Object(map.into_iter().map(|(name, value)| (name.to_lowercase(), lower_case(value))).collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(lower_case).collect()),
        scalar => scalar,
    }
}

#[tokio::test]
async fn a_service_has_the_mode_that_a_python_client_asks_for() {
    // docker-py writes the mode in lower case, and the fields below it with capital letters.
    let api = Fixture::manager();
    for (name, mode, shown) in [
        ("a", json!({"global": {}}), json!({"Global": {}})),
        ("b", json!({"replicated": {"Replicas": 3}}), json!({"Replicated": {"Replicas": 3}})),
        ("c", json!({"replicated": {}}), json!({"Replicated": {"Replicas": 1}})),
    ] {
        let body = with(with(service(name), "/EndpointSpec/Ports", json!([])), "/Mode", mode.clone());
        api.post("/services/create", body).await;
        assert_eq!(api.get(&format!("/services/{name}")).await["Spec"]["Mode"], shown, "{mode}");
    }
}

#[tokio::test]
async fn every_body_may_have_its_field_names_in_lower_case() {
    let api = Fixture::manager();
    let network = json!({
        "CheckDuplicate": true, "Name": "app", "Driver": "overlay", "EnableIPv6": true, "Internal": true,
        "IPAM": {"Config": [{"Subnet": "10.7.0.0/24", "Gateway": "10.7.0.254"}, {"Subnet": "fd00:1::/64"}]},
    });
    api.post("/networks/create", lower_case(network)).await;
    let network = api.get("/networks/app").await;
    assert_eq!((&network["Internal"], &network["EnableIPv6"]), (&json!(true), &json!(true)));
    assert_eq!(network["IPAM"]["Config"][0], json!({"Subnet": "10.7.0.0/24", "Gateway": "10.7.0.254"}));

    let mut web = service("web");
    web["TaskTemplate"]["Networks"] = json!([{"Target": "app", "Aliases": ["w"]}]);
    web["UpdateConfig"] = json!({"Parallelism": 2, "Delay": 1_000_000_000u64});
    api.post("/services/create", lower_case(web)).await;
    let shown = api.get("/services/web").await;
    let spec = &shown["Spec"];
    assert_eq!(spec["TaskTemplate"]["Networks"], json!([{"Target": network["Id"], "Aliases": ["w"]}]));
    assert_eq!(spec["EndpointSpec"]["Ports"][0]["PublishedPort"], 8080);
    assert_eq!(spec["UpdateConfig"]["Parallelism"], 2);
    let changed = lower_case(with(spec.clone(), "/Mode", json!({"Replicated": {"Replicas": 7}})));
    api.post(&format!("/services/web/update?version={}", shown["Version"]["Index"]), changed).await;
    assert_eq!(api.get("/services/web").await["Spec"]["Mode"]["Replicated"]["Replicas"], 7);

    let node = api.get("/nodes/self").await;
    let changed = lower_case(with(node["Spec"].clone(), "/Availability", json!("drain")));
    api.post(&format!("/nodes/self/update?version={}", node["Version"]["Index"]), changed).await;
    assert_eq!(api.get("/nodes/self").await["Spec"]["Availability"], "drain");

    let swarm = api.get("/swarm").await;
    let changed = with(swarm["Spec"].clone(), "/Dispatcher/HeartbeatMisses", json!(7));
    let changed = lower_case(with(changed, "/Orchestration/TaskHistoryRetentionLimit", json!(2)));
    api.post(&format!("/swarm/update?version={}", swarm["Version"]["Index"]), changed).await;
    let spec = &api.get("/swarm").await["Spec"];
    assert_eq!(spec["Dispatcher"]["HeartbeatMisses"], 7);
    assert_eq!(spec["Orchestration"]["TaskHistoryRetentionLimit"], 2);

    let outside = Fixture::new(Membership::None, None);
    let init = json!({
        "ListenAddr": "0.0.0.0:2378", "AdvertiseAddr": "192.0.2.1", "Availability": "drain", "DefaultAddrPool": ["10.9.0.0/16"],
        "AutoLockManagers": true,
        "Spec": {"Dispatcher": {"HeartbeatPeriod": 1_000_000_000u64, "HeartbeatMisses": 5}},
    });
    outside.post("/swarm/init", lower_case(init)).await;
    let join = json!({"AdvertiseAddr": "192.0.2.3", "RemoteAddrs": ["192.0.2.1"], "JoinToken": "SWMTKN-1-x", "Availability": "pause"});
    outside.post("/swarm/join", lower_case(join)).await;
    let requests = outside.member.requests.lock().unwrap_or_else(PoisonError::into_inner);
    for part in [
        "192.0.2.1",
        "0.0.0.0:2378",
        "heartbeat_ms: 1000",
        "heartbeat_misses: 5",
        "auto_lock: true",
        "Drain",
        "10.9.0.0",
    ] {
        assert!(requests[0].contains(part), "{}: no {part}", requests[0]);
    }
    for part in ["192.0.2.3", "192.0.2.1:2377", "SWMTKN-1-x", "Pause"] {
        assert!(requests[1].contains(part), "{}: no {part}", requests[1]);
    }
}

#[tokio::test]
async fn unsupported_fields_are_refused_by_name_in_any_case() {
    let api = Fixture::manager();
    for (path, value, status, text) in [
        ("/TaskTemplate/ContainerSpec/Mounts", json!([{"Target": "/b"}]), 501, "mounts (--mount)"),
        ("/TaskTemplate/ContainerSpec/Healthcheck", json!({"Test": ["NONE"]}), 501, "health checks"),
        ("/Mode", json!({"GlobalJob": {}}), 501, "global-job"),
        ("/EndpointSpec/Ports", json!([{"TargetPort": 80, "PublishMode": "host"}]), 501, "mode=host"),
    ] {
        let body = lower_case(with(service("web"), path, value));
        api.refused(Method::POST, "/services/create", Some(body), status, text).await;
    }
    let twice = json!({"Name": "web", "name": "other"});
    api.refused(Method::POST, "/services/create", Some(twice), 400, "field Name is there twice").await;
    let twice = with(service("web"), "/Mode", json!({"Global": {}, "global": {}}));
    api.refused(Method::POST, "/services/create", Some(twice), 400, "field Global is there twice").await;
    assert_eq!(api.get("/services").await, json!([]), "a refused request changed something");
}

#[tokio::test]
async fn fields_that_the_engine_api_does_not_have_are_ignored_with_a_warning() {
    let api = Fixture::manager();
    let warning = |field: &str| format!("the field {field} was ignored: the Engine API has no such field");
    // The example in Dockerode's tests.
    let mut body = json!({
        "Name": "dockerode",
        "TaskTemplate": {
            "ContainerSpec": {"Image": "weft/whoami:latest", "Surprise": 1, "DNSConfig": {"Search": ["a"], "Domain": "b"}},
            "Resources": {"Limits": {}, "Reservations": {}},
            "RestartPolicy": {},
            "Placement": {"Platforms": [{"OS": "linux", "OSVersion": "10"}]},
        },
        "Mode": {"Global": {"Replicas": 2}},
        "UpdateConfig": {"Parallelism": 1},
        "EndpointSpec": {"ExposedPorts": [{"Protocol": "tcp", "Port": 6379}]},
        "Empty": {"Of": ""},
    });
    let made = api.post("/services/create", body.clone()).await;
    let mut warnings: Vec<String> = serde_json::from_value(made["Warnings"].clone()).expect("warnings");
    warnings.sort();
    let expected = [
        "EndpointSpec.ExposedPorts",
        "Mode.Global.Replicas",
        "TaskTemplate.ContainerSpec.DNSConfig.Domain",
        "TaskTemplate.ContainerSpec.Surprise",
        "TaskTemplate.Placement.Platforms[0].OSVersion",
    ];
    assert_eq!(warnings, expected.map(warning));
    let shown = api.get("/services/dockerode").await;
    assert_eq!(shown["Spec"]["Mode"], json!({"Global": {}}));
    body["Mode"] = json!({"Global": {}});
    body["EndpointSpec"] = Value::Null;
    body["TaskTemplate"]["Placement"] = Value::Null;
    body["TaskTemplate"]["ContainerSpec"]["DNSConfig"] = Value::Null;
    let path = format!("/services/dockerode/update?version={}", shown["Version"]["Index"]);
    let updated = api.post(&path, body).await;
    assert_eq!(updated["Warnings"], json!([warning("TaskTemplate.ContainerSpec.Surprise")]));

    let network = json!({"Name": "app", "Driver": "overlay", "EnableDNS": true, "IPAM": {"Config": [{"Zone": "x"}]}});
    api.refused(Method::POST, "/networks/create", Some(network), 400, "needs its subnet").await;
    let network = json!({"Name": "app", "Driver": "overlay", "EnableDNS": true, "CheckDuplicate": true});
    assert_eq!(api.post("/networks/create", network).await["Warning"], warning("EnableDNS"));

    let swarm = api.get("/swarm").await;
    let mut spec = swarm["Spec"].clone();
    spec["AcceptancePolicy"] = json!({"Policies": [{"Role": "MANAGER", "Autoaccept": false}]});
    spec["Orchestration"]["TaskHistoryRetentionLimit"] = json!(7);
    api.post(&format!("/swarm/update?version={}", swarm["Version"]["Index"]), spec).await;
    assert_eq!(api.get("/swarm").await["Spec"]["Orchestration"]["TaskHistoryRetentionLimit"], 7);

    let node = api.get("/nodes/self").await;
    let spec = with(node["Spec"].clone(), "/Membership", json!("accepted"));
    api.post(&format!("/nodes/self/update?version={}", node["Version"]["Index"]), spec).await;

    let outside = Fixture::new(Membership::None, None);
    let init = json!({
        "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "192.0.2.1", "ForceNewCluster": false,
        "Spec": {"AcceptancePolicy": {"Policies": [{"Role": "MANAGER"}]}, "Orchestration": {}, "Raft": {}},
        "Surprise": 1,
    });
    outside.post("/swarm/init", init).await;
    let join = json!({"RemoteAddrs": ["192.0.2.1"], "JoinToken": "SWMTKN-1-x", "Secret": "x", "Manager": true});
    outside.post("/swarm/join", join).await;
}
