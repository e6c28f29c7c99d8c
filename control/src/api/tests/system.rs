//! Tests of `_ping`, `version`, `info` and `events`.

use super::*;

#[tokio::test]
async fn every_answer_has_the_headers_that_identify_the_api() {
    let api = Fixture::manager();
    for path in ["/_ping", "/v1.24/_ping", "/v1.53/_ping"] {
        let request = Request::head(path).body(Body::empty()).expect("a request");
        let response = api.router.clone().oneshot(request).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["api-version"], "1.53");
        assert_eq!(response.headers()["swarm"], "active/manager");
        assert_eq!(response.headers()["ostype"], "linux");
    }
    api.refused(Method::GET, "/v1.99/info", None, 400, "client version 1.99 is too new").await;
    api.refused(Method::GET, "/v1.12/info", None, 400, "too old").await;
    assert_eq!(api.get("/v1.50/version").await["ApiVersion"], "1.53");
}

#[tokio::test]
async fn info_shows_the_membership_of_the_node() {
    let api = Fixture::manager();
    let info = api.get("/v1.41/info").await;
    assert_eq!(info["Name"], "n1");
    let swarm = &info["Swarm"];
    assert_eq!((&swarm["LocalNodeState"], &swarm["ControlAvailable"]), (&json!("active"), &json!(true)));
    assert_eq!((&swarm["Nodes"], &swarm["Managers"]), (&json!(1), &json!(1)));
    assert_eq!(swarm["Cluster"]["Spec"]["Dispatcher"]["HeartbeatPeriod"], 5_000_000_000u64);

    assert!(info["MemTotal"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{info}");
    assert!(info["KernelVersion"].as_str().is_some_and(|version| version.contains('.')), "{info}");

    let outside = Fixture::new(Membership::None, None);
    let info = outside.get("/info").await;
    assert_eq!(
        (&info["Swarm"]["LocalNodeState"], &info["Swarm"]["ControlAvailable"]),
        (&json!("inactive"), &json!(false))
    );
}

/// Clients with types for the answer, such as those in Go, Java or TypeScript, expect these fields.
#[tokio::test]
async fn info_without_an_engine_has_the_fields_of_mobys() {
    let api = Fixture::manager();
    let info = api.get("/info").await;
    // The fields of moby's `api/types/system/info.go` that are not omitted if they are empty.
    for field in [
        "ID",
        "Containers",
        "ContainersRunning",
        "ContainersPaused",
        "ContainersStopped",
        "Images",
        "Driver",
        "DriverStatus",
        "Plugins",
        "MemoryLimit",
        "SwapLimit",
        "CpuCfsPeriod",
        "CpuCfsQuota",
        "CPUShares",
        "CPUSet",
        "PidsLimit",
        "IPv4Forwarding",
        "Debug",
        "NFd",
        "OomKillDisable",
        "NGoroutines",
        "SystemTime",
        "LoggingDriver",
        "CgroupDriver",
        "NEventsListener",
        "KernelVersion",
        "OperatingSystem",
        "OSVersion",
        "OSType",
        "Architecture",
        "IndexServerAddress",
        "RegistryConfig",
        "NCPU",
        "MemTotal",
        "GenericResources",
        "DockerRootDir",
        "HttpProxy",
        "HttpsProxy",
        "NoProxy",
        "Name",
        "Labels",
        "ExperimentalBuild",
        "ServerVersion",
        "Runtimes",
        "DefaultRuntime",
        "Swarm",
        "LiveRestoreEnabled",
        "Isolation",
        "InitBinary",
        "ContainerdCommit",
        "RuncCommit",
        "InitCommit",
        "SecurityOptions",
        "CDISpecDirs",
        "Warnings",
    ] {
        assert!(info.get(field).is_some(), "{field}: {info}");
    }
    assert_eq!(info["Plugins"], json!({"Volume": [], "Network": ["overlay"], "Authorization": [], "Log": []}));
    assert_eq!(info["Labels"], json!(["zone=a"]));
    assert_eq!(
        api.get("/nodes/self").await["Description"]["Engine"]["Plugins"],
        json!([{"Type": "Network", "Name": "overlay"}])
    );

    api.change(|t| {
        let plugin = |kind: &str, name: &str| weft_model::report::EnginePlugin { kind: kind.into(), name: name.into() };
        let plugins = [plugin("Volume", "local"), plugin("Network", "overlay"), plugin("Log", "journald")].into();
        let node = t.first_node();
        let machine = weft_model::report::NodeDescription { plugins, ..fixture::description(&[]) };
        t.ok(Command::DescribeNode { node, description: Box::new(machine) });
    });
    let plugin = |kind: &str, name: &str| json!({"Type": kind, "Name": name});
    assert_eq!(
        api.get("/nodes/self").await["Description"]["Engine"]["Plugins"],
        json!([plugin("Log", "journald"), plugin("Network", "overlay"), plugin("Volume", "local")])
    );

    // Fields that moby shows only in earlier versions.
    for (version, commit, netfilter, registry) in
        [("1.53", false, false, false), ("1.48", true, true, false), ("1.41", true, true, true)]
    {
        let info = api.get(&format!("/v{version}/info")).await;
        assert_eq!(info["RuncCommit"].get("Expected").is_some(), commit, "{version}");
        assert_eq!(info.get("BridgeNfIptables").is_some(), netfilter, "{version}");
        let artifacts = info["RegistryConfig"].get("AllowNondistributableArtifactsCIDRs");
        assert_eq!(artifacts.is_some(), registry, "{version}");
    }
}

#[tokio::test]
async fn only_managers_show_the_cluster() {
    let outside = Fixture::new(Membership::None, None);
    let worker = Membership::Active {
        node: NodeId::from_random(1),
        cluster: fixture::TestCluster::new().state.cluster.expect("a cluster").id,
        role: Role::Worker,
        addr: "192.0.2.3".parse().expect("an address"),
        warning: "it cannot renew its certificate".to_owned(),
    };
    let worker = Fixture::new(worker, None);
    let shown = worker.get("/info").await;
    assert_eq!(shown["Swarm"]["LocalNodeState"], "active");
    assert_eq!(shown["Swarm"]["Error"], "it cannot renew its certificate");
    for path in ["/swarm", "/swarm/unlockkey", "/nodes", "/services", "/tasks", "/networks", "/services/x", "/events"] {
        outside
            .refused(Method::GET, path, None, 503, "This node is not a swarm manager. Use \"weft swarm init\"")
            .await;
        worker.refused(Method::GET, path, None, 503, "Worker nodes can't be used to view or modify").await;
    }
}

#[tokio::test]
async fn each_change_of_the_cluster_state_is_an_event() {
    let api = Fixture::manager();
    let request = Request::get("/v1.50/events").body(Body::empty()).expect("a request");
    let response = api.router.clone().oneshot(request).await.expect("an answer");
    let mut lines = response.into_body().into_data_stream();
    let mut next = async || -> Value {
        let line = lines.next().await.expect("an event").expect("a line");
        serde_json::from_slice(&line).expect("JSON")
    };
    let seen =
        |event: &Value| format!("{} {} {}", event["Type"], event["Action"], event["Actor"]["Attributes"]["name"]);

    api.network("app").await;
    assert_eq!(seen(&next().await), r#""network" "create" "app""#);
    api.post("/services/create", service("web")).await;
    assert_eq!(seen(&next().await), r#""service" "create" "web""#);
    let id = api.change(|t| t.state.service_by_name("web").expect("the service").id.clone());
    api.change(|t| t.update(&id, |spec| spec.mode = weft_model::spec::ServiceMode::Replicated { replicas: 5 }))
        .expect("an update");
    let event = next().await;
    assert_eq!(event["Actor"]["Attributes"], json!({"name": "web", "replicas.old": "2", "replicas.new": "5"}));
    assert_eq!(event["scope"], "swarm");
    api.call(Method::DELETE, "/services/web", None).await;
    assert_eq!(seen(&next().await), r#""service" "remove" "web""#);
    api.change(|t| t.node("n2", &[]));
    assert_eq!(seen(&next().await), r#""node" "create" "n2""#);
}

#[tokio::test]
async fn past_events_are_kept_and_filtered_as_in_moby() {
    let api = Fixture::manager();
    // The task that records events sees the state of the beginning, and each change.
    tokio::task::yield_now().await;
    api.network("app").await;
    tokio::task::yield_now().await;
    api.post("/services/create", service("web")).await;
    tokio::task::yield_now().await;
    api.change(|t| t.node("n2", &[]));
    // Events have the time of the cluster.
    let now_s = api.change(|t| t.state.now_ms) / 1_000;
    let read = async |query: &str| -> Vec<String> {
        let (status, text) = api.call(Method::GET, &format!("/v1.50/events?{query}"), None).await;
        assert_eq!(status, StatusCode::OK, "{query}: {text}");
        // One event alone is parsed already.
        let text = text.as_str().map_or_else(|| text.to_string(), str::to_owned);
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        events
            .filter(Value::is_object)
            .map(|event| format!("{} {}", text(&event["Action"]), text(&event["Actor"]["Attributes"]["name"])))
            .collect()
    };
    let all = ["create app", "create web", "create n2"];
    let until = now_s + 1;
    for (query, want) in [
        (format!("since=0&until={until}"), &all[..]),
        (format!("until={until}"), &all),
        (format!("since={}&until={until}", now_s - 3_600), &all),
        (format!("since={until}&until={until}"), &[]),
        (format!("until={}", now_s - 3_600), &[]),
        (format!("until={until}&filters=%7B%22service%22%3A%5B%22we%22%5D%7D"), &all[1..2]),
        (format!("until={until}&filters=%7B%22type%22%3A%7B%22node%22%3Atrue%7D%7D"), &all[2..]),
        // No event of the cluster is about these.
        (format!("until={until}&filters=%7B%22container%22%3A%5B%22web%22%5D%7D"), &[]),
        (format!("until={until}&filters=%7B%22secret%22%3A%5B%22web%22%5D%7D"), &[]),
        (format!("until={until}&filters=%7B%22daemon%22%3A%5B%22n2%22%5D%7D"), &[]),
    ] {
        assert_eq!(read(&query).await, want, "{query}");
    }
    let query = format!("/events?since={until}&until={now_s}");
    api.refused(Method::GET, &query, None, 400, "`since` cannot be after").await;
    api.refused(Method::GET, "/events?filters=%7B%22colour%22%3A%5B%22red%22%5D%7D", None, 400, "invalid filter").await;

    // The past first, and then what happens.
    let request = Request::get("/v1.52/events?since=0").body(Body::empty()).expect("a request");
    let response = api.router.clone().oneshot(request).await.expect("an answer");
    assert_eq!(response.headers()["content-type"], "application/jsonl");
    let mut lines = response.into_body().into_data_stream();
    api.change(|t| t.node("n3", &[]));
    for name in ["app", "web", "n2", "n3"] {
        let line = lines.next().await.expect("an event").expect("a line");
        let event: Value = serde_json::from_slice(&line).expect("JSON");
        assert_eq!(event["Actor"]["Attributes"]["name"], name);
    }
}

#[test]
fn rejections_have_the_statuses_that_clients_expect() {
    use weft_model::Rejection;
    for (rejection, status) in [
        (Rejection::NotFound { kind: ObjectKind::Service, id: "x".into() }, 404),
        (Rejection::PortInUse { port: 1, protocol: "tcp".into(), by: "x".into() }, 409),
        (Rejection::Invalid("x".into()), 400),
        (Rejection::NotInitialised, 503),
    ] {
        assert_eq!(crate::api::error::ApiError::from(rejection.clone()).status().as_u16(), status, "{rejection}");
    }
}
