//! Tests of containers on networks of the cluster.

use std::sync::PoisonError;

use axum::{
    extract::{Request as AnyRequest, State},
    response::{IntoResponse as _, Response},
};
use tokio::net::UnixListener;
use weft_model::{CONTAINER_GATEWAY_OPTION, CONTAINER_LINK_OPTION, CONTAINER_OPTION};

use super::*;

/// An engine that creates and connects every container, and remembers the requests.
#[derive(Clone, Default)]
struct Engine(Arc<Mutex<Requests>>);

#[derive(Default)]
struct Requests {
    /// The path and the body of each request.
    seen: Vec<(String, Value)>,
    /// What an inspection shows.
    inspected: Value,
    /// The status of creations and connections.
    status: StatusCode,
    /// The engine has no containers any more.
    has_lost_containers: bool,
}

async fn answer(State(engine): State<Engine>, request: AnyRequest) -> Response {
    let path = request.uri().to_string();
    if path == "/_ping" {
        return ([("api-version", "1.47")], "OK").into_response();
    }
    let is_read = request.method() == Method::GET;
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    let mut requests = engine.0.lock().unwrap_or_else(PoisonError::into_inner);
    if is_read && requests.has_lost_containers && path.contains("/containers/") {
        return StatusCode::NOT_FOUND.into_response();
    }
    if is_read {
        return axum::Json(requests.inspected.clone()).into_response();
    }
    requests.seen.push((path, serde_json::from_slice(&body).unwrap_or_default()));
    let answer = json!({"Id": "c0ffee", "Warnings": [], "NetworksDeleted": ["local"], "message": "the engine refuses"});
    (requests.status, axum::Json(answer)).into_response()
}

impl Engine {
    /// A manager with this engine, and the attachable networks `app` and `back`.
    async fn manager(&self) -> (tempfile::TempDir, Fixture) {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("engine.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async { axum::serve(listener, router).await });
        let cluster = fixture::TestCluster::new();
        let node = cluster.first_node();
        let id = cluster.state.cluster.as_ref().expect("a cluster").id.clone();
        let (addr, warning) = (cluster.state.nodes[&node].addr, String::new());
        let membership = Membership::Active { node, cluster: id, role: Role::Manager, addr, warning };
        let api = Fixture::with_engine(membership, Some(cluster), Some(socket));
        for (name, subnet) in [("app", "10.7.0.0/24"), ("back", "10.8.0.0/24")] {
            let ipam = json!({"Config": [{"Subnet": subnet}]});
            let body = json!({"Name": name, "Driver": "overlay", "Attachable": true, "IPAM": ipam});
            api.post("/networks/create", body).await;
        }
        api.network("closed").await;
        self.set(StatusCode::CREATED, Value::Null);
        (dir, api)
    }

    fn set(&self, status: StatusCode, inspected: Value) {
        let mut requests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (requests.status, requests.inspected) = (status, inspected);
    }

    /// The requests since the last call.
    fn seen(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).seen)
    }
}

/// What the state has of the attached containers: names, and networks with addresses.
fn attached(api: &Fixture) -> Vec<(String, Vec<String>)> {
    api.change(|cluster| {
        let containers = cluster.state.attached.values();
        containers
            .map(|container| {
                let links = container.links.iter().map(|link| {
                    assert_eq!(link.reserved_ms, None, "the address is confirmed");
                    let name = &cluster.state.networks[&link.network].spec.name;
                    format!("{name} {}", link.addr.first())
                });
                (container.label().to_owned(), links.collect())
            })
            .collect()
    })
}

fn on(endpoint: &Value) -> Value {
    json!({"Image": "x", "HostConfig": {"NetworkMode": "app"}, "NetworkingConfig": {"EndpointsConfig": {"app": endpoint}}})
}

#[tokio::test]
async fn a_container_is_created_with_the_address_that_the_cluster_gives_it() {
    let engine = Engine::default();
    let (_dir, api) = engine.manager().await;
    let wanted = json!({"IPAMConfig": {"IPv4Address": "10.7.0.50"}, "Aliases": ["db"]});
    let made = api.post("/v1.47/containers/create?name=shell", on(&wanted)).await;
    assert_eq!(made["Id"], "c0ffee");
    let [(path, body)] = &engine.seen()[..] else { panic!("one request") };
    assert_eq!(path, "/v1.47/containers/create?name=shell");
    assert_eq!(body["HostConfig"]["NetworkMode"], "docker-app");
    let endpoint = &body["NetworkingConfig"]["EndpointsConfig"]["docker-app"];
    assert_eq!(endpoint["IPAMConfig"]["IPv4Address"], "10.7.0.50");
    assert!(endpoint["IPAMConfig"]["IPv6Address"].is_string() && endpoint["Aliases"] == json!(["db"]), "{endpoint}");
    let options = endpoint["DriverOpts"].as_object().expect("options");
    assert_eq!(options[CONTAINER_LINK_OPTION], "0");
    assert!(options[CONTAINER_OPTION].is_string() && options.contains_key(CONTAINER_GATEWAY_OPTION), "{endpoint}");
    assert_eq!(attached(&api), [("shell".to_owned(), vec!["app 10.7.0.50".to_owned()])]);
    let shown = api.get("/networks/app").await;
    assert_eq!(shown["Containers"]["c0ffee"]["IPv4Address"], "10.7.0.50/24", "{shown}");
    api.refused(Method::DELETE, "/networks/app", None, 409, "is in use by container shell on node n1").await;
}

/// As `docker compose up` does it with `external: true`: from API 1.44 on with one request, before
/// with one network and then a connection for each other.
#[tokio::test]
async fn a_container_is_created_on_several_networks_as_compose_does() {
    let engine = Engine::default();
    let (_dir, api) = engine.manager().await;
    let body = json!({
        "Image": "x",
        "HostConfig": {"NetworkMode": "app", "PortBindings": {}},
        "NetworkingConfig": {"EndpointsConfig": {
            "app": {"Aliases": ["p-web-1", "web"], "IPAMConfig": null, "Links": null, "MacAddress": ""},
            "back": {"Aliases": ["p-web-1", "web"]},
            "own": {"Aliases": ["web"]},
        }},
    });
    api.post("/v1.47/containers/create?name=p-web-1", body).await;
    let [(_, body)] = &engine.seen()[..] else { panic!("one request") };
    let endpoints = body["NetworkingConfig"]["EndpointsConfig"].as_object().expect("endpoints");
    assert_eq!(endpoints.keys().collect::<Vec<_>>(), ["docker-app", "docker-back", "own"]);
    assert_eq!(endpoints["own"], json!({"Aliases": ["web"]}));
    // The default route leads through the engine's network.
    assert!(
        !endpoints["docker-app"]["DriverOpts"].as_object().expect("options").contains_key(CONTAINER_GATEWAY_OPTION)
    );
    let [(name, links)] = &attached(&api)[..] else { panic!("one container") };
    assert_eq!((name.as_str(), links.len()), ("p-web-1", 2));

    let id = endpoints["docker-app"]["DriverOpts"][CONTAINER_OPTION].clone();
    let networks = json!({"docker-app": {"NetworkID": "docker-app", "DriverOpts": {CONTAINER_OPTION: id}}});
    let shown = json!({"Id": "c0ffee", "Name": "/p-web-1", "Config": {}, "NetworkSettings": {"Networks": networks}});
    engine.set(StatusCode::OK, shown);
    let connection = json!({"Container": "p-web-1", "EndpointConfig": {"Aliases": ["web"]}});
    api.refused(Method::POST, "/networks/app/connect", Some(connection.clone()), 403, "already exists in network app")
        .await;
    api.post("/networks/back/disconnect", json!({"Container": "p-web-1", "Force": true})).await;
    assert_eq!(attached(&api)[0].1.len(), 1);
    engine.seen();
    api.post("/v1.41/networks/back/connect", connection).await;
    let [(path, body)] = &engine.seen()[..] else { panic!("one request") };
    assert_eq!((path.as_str(), &body["Container"]), ("/v1.41/networks/docker-back/connect", &json!("p-web-1")));
    assert_eq!(body["EndpointConfig"]["DriverOpts"][CONTAINER_OPTION], id, "the same container");
    assert_eq!(body["EndpointConfig"]["DriverOpts"][CONTAINER_LINK_OPTION], "1");
    assert_eq!(attached(&api)[0].1.len(), 2);
}

#[tokio::test]
async fn a_forced_disconnection_frees_the_address_of_a_container_that_the_engine_has_lost() {
    let engine = Engine::default();
    let (_dir, api) = engine.manager().await;
    api.post("/v1.47/containers/create?name=shell", on(&json!({}))).await;
    engine.0.lock().unwrap_or_else(PoisonError::into_inner).has_lost_containers = true;
    let disconnection = |name: &str, force: bool| json!({"Container": name, "Force": force});
    let path = "/networks/app/disconnect";
    api.refused(Method::POST, path, Some(disconnection("shell", false)), 404, "no such container: shell").await;
    for other in ["other", ""] {
        api.refused(Method::POST, path, Some(disconnection(other, true)), 404, "no such container").await;
    }
    api.refused(Method::POST, "/networks/back/disconnect", Some(disconnection("shell", true)), 404, "shell").await;
    api.refused(Method::DELETE, "/networks/app", None, 409, "is in use by container shell").await;
    api.post(path, disconnection("shell", true)).await;
    assert_eq!(attached(&api), []);
    assert_eq!(api.call(Method::DELETE, "/networks/app", None).await.0, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn what_the_engine_refuses_leaves_no_address() {
    let engine = Engine::default();
    let (_dir, api) = engine.manager().await;
    engine.set(StatusCode::CONFLICT, json!({"Id": "c0ffee", "Name": "/shell", "Config": {}, "NetworkSettings": {}}));
    api.refused(Method::POST, "/containers/create?name=shell", Some(on(&json!({}))), 409, "the engine refuses").await;
    let connection = json!({"Container": "shell"});
    api.refused(Method::POST, "/networks/app/connect", Some(connection), 409, "the engine refuses").await;
    assert_eq!(attached(&api), []);
}

#[tokio::test]
async fn requests_that_cannot_be_honoured_are_refused_by_name() {
    let engine = Engine::default();
    let (_dir, api) = engine.manager().await;
    let closed = json!({"HostConfig": {"NetworkMode": "closed"}});
    let words = "Could not attach to network closed: rpc error: code = PermissionDenied desc = network closed not \
                 manually attachable";
    api.refused(Method::POST, "/containers/create", Some(closed), 403, words).await;
    for (endpoint, status, text) in [
        (json!({"MacAddress": "02:42:0a:07:00:09"}), 501, "--mac-address"),
        (json!({"IPAMConfig": {"LinkLocalIPs": ["169.254.1.1"]}}), 501, "--link-local-ip"),
        (json!({"Links": ["db:db"]}), 501, "--link)"),
        (json!({"DriverOpts": {CONTAINER_OPTION: "x"}}), 501, "--driver-opt"),
        (json!({"IPAMConfig": {"IPv4Address": "10.8.0.9"}}), 400, "no subnet of network app contains address 10.8.0.9"),
        (json!({"IPAMConfig": {"IPv4Address": "10.7.0.1"}}), 409, "Address already in use"),
        (json!({"IPAMConfig": {"IPv4Address": "x"}}), 400, "x is no IPv4 address"),
    ] {
        api.refused(Method::POST, "/containers/create", Some(on(&endpoint)), status, text).await;
    }
    let mut published = on(&json!({}));
    published["HostConfig"]["PortBindings"] = json!({"80/tcp": [{"HostPort": "8080"}]});
    api.refused(Method::POST, "/containers/create", Some(published), 501, "run --publish").await;
    let mut mac = on(&json!({}));
    mac["MacAddress"] = json!("02:42:0a:07:00:09");
    api.refused(Method::POST, "/containers/create", Some(mac), 501, "--mac-address").await;
    let task = json!({"Id": "1", "Name": "/web.1", "Config": {"Labels": {"weft.task": "x"}}, "NetworkSettings": {}});
    engine.set(StatusCode::OK, task);
    for path in ["/networks/app/connect", "/networks/app/disconnect"] {
        api.refused(Method::POST, path, Some(json!({"Container": "web.1"})), 403, "is a task").await;
    }
    assert_eq!((attached(&api), engine.seen()), (vec![], vec![]));
}

#[tokio::test]
async fn other_requests_are_forwarded_as_they_are() {
    let engine = Engine::default();
    let (_dir, api) = engine.manager().await;
    for body in [
        json!({"Image": "x"}),
        json!({"HostConfig": {"NetworkMode": "default"}}),
        json!({"hostConfig": {"networkMode": "own"}, "NetworkingConfig": {"EndpointsConfig": {"own": null}}}),
    ] {
        api.post("/containers/create", body.clone()).await;
        assert_eq!(engine.seen(), [("/containers/create".to_owned(), body)]);
    }
}

#[tokio::test]
async fn unused_networks_are_pruned() {
    let engine = Engine::default();
    let (_dir, api) = engine.manager().await;
    api.post("/containers/create?name=shell", on(&json!({}))).await;
    let mut web = service("web");
    web["TaskTemplate"]["Networks"] = json!([{"Target": "closed"}]);
    api.post("/services/create", web).await;
    engine.seen();
    let filters =
        |filters: Value| format!("/networks/prune?filters={}", crate::api::query::encoded(&filters.to_string()));
    // The cluster of the test was created in 2023.
    for kept in [json!({"label": ["none"]}), json!({"until": ["2020-01-01T00:00:00Z"]})] {
        assert_eq!(api.post(&filters(kept), Value::Null).await["NetworksDeleted"], json!(["local"]));
    }
    api.refused(Method::POST, &filters(json!({"until": ["x"]})), None, 400, "until=x").await;
    api.refused(Method::POST, &filters(json!({"colour": ["x"]})), None, 400, "invalid filter 'colour'").await;
    engine.seen();
    let pruned = api.post(&filters(json!({"until": ["24h"]})), Value::Null).await;
    assert_eq!(pruned["NetworksDeleted"], json!(["back", "local"]), "not those that are in use");
    let [(path, _)] = &engine.seen()[..] else { panic!("one request") };
    assert!(path.contains("label%21") && path.contains("weft.network"), "{path}");
}

#[tokio::test]
async fn a_mode_that_chosen_networks_replace_does_not_count() {
    let engine = Engine::default();
    let (_dir, api) = engine.manager().await;
    for mode in [json!({}), json!({"NetworkMode": "default"}), json!({"NetworkMode": ""})] {
        let endpoints = json!({"EndpointsConfig": {"app": {}}});
        let body = json!({"Image": "x", "HostConfig": mode, "NetworkingConfig": endpoints});
        api.post("/v1.47/containers/create?name=shell", body).await;
        let [(_, body)] = &engine.seen()[..] else { panic!("one request") };
        let options = &body["NetworkingConfig"]["EndpointsConfig"]["docker-app"]["DriverOpts"];
        assert_eq!(options[CONTAINER_GATEWAY_OPTION], "1", "{body}");
    }
}

#[tokio::test]
async fn odd_bodies_and_networks_of_the_engine_that_stand_for_others_are_refused() {
    let engine = Engine::default();
    let (_dir, api) = engine.manager().await;
    for body in [json!({"HostConfig": {"NetworkMode": "app"}, "NetworkingConfig": []}), json!({"HostConfig": ["app"]})]
    {
        api.refused(Method::POST, "/containers/create", Some(body), 400, "must be an object").await;
    }
    let body = json!({"Container": "shell", "EndpointConfig": []});
    api.refused(Method::POST, "/networks/app/connect", Some(body), 400, "must be an object").await;

    let docker_network = json!({"Name": "app", "Id": "d1", "Labels": {"weft.network": "an id"}});
    engine.set(StatusCode::CREATED, docker_network);
    let connection = Some(json!({"Container": "shell"}));
    for path in ["/networks/d1/connect", "/networks/d1/disconnect"] {
        api.refused(Method::POST, path, connection.clone(), 404, "no such network: d1").await;
    }
    let body = json!({"Image": "x", "HostConfig": {"NetworkMode": "d1"}});
    api.refused(Method::POST, "/containers/create", Some(body), 404, "no such network: d1").await;
    assert!(engine.seen().is_empty() && attached(&api).is_empty());
}
