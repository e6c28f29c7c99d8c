//! Tests of requests that are forwarded to the local container engine.

use axum::{
    extract::Request as AnyRequest,
    response::{IntoResponse as _, Response},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};

use super::*;

/// The id of the engine's network `bridge`.
const BRIDGE: &str = "b7c2e1";

/// The handler of an engine with API version 1.41. It answers with the request that it got.
async fn old_engine(mut request: AnyRequest) -> Response {
    if request.uri().path() == "/_ping" {
        return ([("api-version", "1.41")], "OK").into_response();
    }
    if request.headers().contains_key("upgrade") {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.expect("a hijacked connection"));
            let mut received = String::new();
            stream.read_to_string(&mut received).await.expect("the client's bytes");
            stream.write_all(format!("received {received}").as_bytes()).await.expect("a client that reads");
        });
        let headers = [("connection", "Upgrade"), ("upgrade", "tcp")];
        return (StatusCode::SWITCHING_PROTOCOLS, headers).into_response();
    }
    if matches!(request.uri().path(), "/networks" | "/v1.41/networks") {
        return axum::Json(json!([
            {"Name": "bridge", "Id": BRIDGE, "Scope": "local"},
            {"Name": "none", "Id": "d1", "Scope": "local"},
            {"Name": "mine", "Id": "e1", "Scope": "local"},
            {"Name": "old", "Scope": "swarm"},
        ]))
        .into_response();
    }
    if request.uri().path().ends_with("/networks/bridge") {
        return axum::Json(json!({"Name": "bridge", "Id": BRIDGE, "Scope": "local"})).into_response();
    }
    let (parts, body) = request.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    let request = format!("{} {} {}", parts.method, parts.uri, String::from_utf8_lossy(&body));
    (StatusCode::IM_A_TEAPOT, axum::Json(json!({"request": request}))).into_response()
}

/// A node with an engine that is not in a cluster. The socket of the engine is in the directory.
async fn with_engine() -> (tempfile::TempDir, Fixture) {
    let (dir, socket) = serve_engine();
    (dir, Fixture::with_engine(Membership::None, None, Some(socket)))
}

fn serve_engine() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("engine.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let server = async { axum::serve(listener, Router::new().fallback(old_engine)).await };
    tokio::spawn(server);
    (dir, socket)
}

#[tokio::test]
async fn requests_that_are_not_about_the_cluster_are_forwarded_in_the_lower_version() {
    let (_dir, api) = with_engine().await;
    for (method, path, body, forwarded) in [
        (Method::GET, "/v1.41/containers/json?all=1", None, "GET /v1.41/containers/json?all=1 "),
        (Method::GET, "/v1.40/containers/x/json?size=1", None, "GET /v1.40/containers/x/json?size=1 "),
        (Method::GET, "/v1.41/images/json", None, "GET /v1.41/images/json "),
        (Method::PUT, "/v1.41/containers/json", None, "PUT /v1.41/containers/json "),
        (
            Method::POST,
            "/v1.30/containers/create",
            Some(json!({"Image": "x"})),
            "POST /v1.30/containers/create {\"Image\":\"x\"}",
        ),
        (Method::POST, "/networks/create", Some(json!({"Name": "b"})), "POST /networks/create {\"Name\":\"b\"}"),
        (Method::GET, "/v1.41/events", None, "GET /v1.41/events "),
    ] {
        let (status, answer) = api.call(method, path, body).await;
        assert_eq!((status, answer["request"].as_str()), (StatusCode::IM_A_TEAPOT, Some(forwarded)), "{path}");
    }
    let listed = api.get("/v1.41/networks").await;
    let names: Vec<_> = listed.as_array().into_iter().flatten().map(|network| &network["Name"]).collect();
    assert_eq!(names, ["bridge", "none", "mine"]);
}

#[tokio::test]
async fn a_hijacked_connection_is_forwarded_to_the_engine() {
    let (dir, api) = with_engine().await;
    let socket = dir.path().join("api.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    tokio::spawn(crate::api::serve(listener, api.router));
    let mut client = UnixStream::connect(&socket).await.expect("the API");
    let request = b"POST /v1.41/exec/x/start HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
    client.write_all(request).await.expect("a request");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.expect("the answer's head"));
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    client.write_all(b"hello").await.expect("a connection");
    // The client closes its sending side, and continues to read.
    client.shutdown().await.expect("a connection");
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("the engine's answer");
    assert_eq!(answer, "received hello");
}

#[tokio::test]
async fn an_error_names_the_engine_that_does_not_answer() {
    let api = Fixture::with_engine(Membership::None, None, Some("/nonexistent/engine.sock".into()));
    api.refused(Method::GET, "/containers/json", None, 503, "container engine at /nonexistent/engine.sock").await;
    assert_eq!(api.get("/info").await["Name"], "n1");
}

#[tokio::test]
async fn a_service_can_name_the_network_of_the_nodes_by_its_id_in_the_engine() {
    let (_dir, socket) = serve_engine();
    let api = Fixture::manager_with(Some(socket));
    let bridge = api.get("/networks/bridge?scope=swarm").await;
    let on = |name: &str, target: &str| {
        let spec = with(service(name), "/EndpointSpec/Ports", json!([]));
        with(spec, "/TaskTemplate/Networks", json!([{"Target": target}]))
    };
    for (name, target) in [("whole", BRIDGE), ("prefix", &BRIDGE[..3])] {
        api.post("/services/create", on(name, target)).await;
        let networks = &api.get(&format!("/services/{name}")).await["Spec"]["TaskTemplate"]["Networks"];
        assert_eq!(networks, &json!([{"Target": bridge["Id"]}]));
    }
    for (target, status, text) in [
        ("d1", 404, "could not find the corresponding predefined swarm network: network none not found"),
        ("none", 404, "could not find the corresponding predefined swarm network: network none not found"),
        ("mine", 403, "The network mine cannot be used with services."),
        ("e1", 403, "The network mine cannot be used with services."),
        ("missing", 404, "no such network: missing"),
    ] {
        api.refused(Method::POST, "/services/create", Some(on("x", target)), status, text).await;
    }
    // By its name alone, a client asks for the engine's network.
    assert_eq!(api.get("/networks/bridge").await["Id"], BRIDGE);
}

#[tokio::test]
async fn a_node_without_an_engine_has_no_container_image_or_volume() {
    let api = Fixture::manager();
    for (method, path, text) in [
        (Method::GET, "/containers/web/json", "no such container: web (node n1 has no container engine"),
        (Method::GET, "/containers/web/logs", "no such container: web ("),
        (Method::GET, "/containers/web/attach/ws", "no such container: web ("),
        (Method::POST, "/v1.41/containers/web/stop", "no such container: web ("),
        (Method::DELETE, "/containers/web", "no such container: web ("),
        (Method::GET, "/exec/x/json", "no such exec instance: x ("),
        (Method::GET, "/images/a/b:c/json", "no such image: a/b:c ("),
        (Method::POST, "/images/a/b/push", "no such image: a/b ("),
        (Method::DELETE, "/images/a/b", "no such image: a/b ("),
        (Method::GET, "/v1.41/volumes/web", "no such volume: web ("),
        (Method::DELETE, "/volumes/web", "no such volume: web ("),
        (Method::GET, "/secrets/web", "secret web not found"),
        (Method::GET, "/v1.41/configs/web", "config web not found"),
        (Method::DELETE, "/configs/web", "config web not found"),
        // weft has no such objects on any node.
        (Method::GET, "/plugins/a/b:c/json", "no such plugin: a/b:c ("),
    ] {
        api.refused(method, path, None, 404, text).await;
    }
    for (method, path) in [
        (Method::GET, "/containers/json"),
        (Method::GET, "/images/json"),
        (Method::GET, "/images/get"),
        (Method::GET, "/volumes"),
        (Method::POST, "/containers/prune"),
        (Method::POST, "/volumes/create"),
        (Method::POST, "/images/create"),
        (Method::POST, "/build"),
    ] {
        api.refused(method, path, None, 501, "container engine").await;
    }
    api.refused(Method::POST, "/plugins/pull", Some(json!({})), 501, "weft does not support").await;
}

#[tokio::test]
async fn inspecting_a_name_reaches_the_object_on_a_node_without_an_engine() {
    // The paths that `docker inspect` asks for one after the other, without a type.
    let paths = ["/containers/{}/json", "/images/{}/json", "/networks/{}", "/volumes/{}", "/services/{}"];
    let more = ["/tasks/{}", "/nodes/{}", "/plugins/{}/json", "/secrets/{}", "/configs/{}"];
    let manager = Fixture::manager();
    manager.post("/services/create", service("web")).await;
    manager.network("app").await;
    let first_found = async |name: &str| {
        for path in paths.iter().chain(&more) {
            let (status, _) = manager.call(Method::GET, &path.replace("{}", name), None).await;
            match status {
                StatusCode::OK => return Some(*path),
                status => assert_eq!(status, StatusCode::NOT_FOUND, "{path}"),
            }
        }
        None
    };
    assert_eq!(first_found("web").await, Some("/services/{}"));
    assert_eq!(first_found("app").await, Some("/networks/{}"));
    assert_eq!(first_found("n1").await, Some("/nodes/{}"));
    assert_eq!(first_found("missing").await, None);
    // On other nodes it asks for no objects of the cluster.
    let outside = Fixture::new(Membership::None, None);
    for path in paths[..4].iter().chain(&["/plugins/{}/json"]) {
        outside.refused(Method::GET, &path.replace("{}", "web"), None, 404, "no such").await;
    }
}
