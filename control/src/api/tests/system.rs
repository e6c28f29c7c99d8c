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
    for path in ["/swarm", "/nodes", "/services", "/tasks", "/networks", "/services/x", "/events"] {
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
    api.refused(Method::GET, "/events?since=1000", None, 501, "no past events").await;
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
