//! Tests of credentials for registries, and of images that are pinned by their digest.

use axum::{
    extract::Request as AnyRequest,
    http::HeaderMap,
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::net::UnixListener;
use weft_model::spec::{RegistryAuth, ServiceSpec};

use super::*;

const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn user(password: &str) -> String {
    STANDARD.encode(json!({"username": "ann", "password": password, "serveraddress": "registry.test"}).to_string())
}

fn auth(password: &str) -> Option<RegistryAuth> {
    Some(RegistryAuth {
        username: "ann".to_owned(),
        password: password.to_owned(),
        server_address: "registry.test".to_owned(),
        ..RegistryAuth::default()
    })
}

impl Fixture {
    /// Sends a request with a header `X-Registry-Auth`, or without one.
    async fn post_with_auth(&self, path: &str, header: Option<&str>, body: &Value) -> (StatusCode, Value) {
        let mut request = Request::builder().method(Method::POST).uri(path);
        if let Some(header) = header {
            request = request.header("X-Registry-Auth", header);
        }
        let request = request.body(Body::from(body.to_string())).expect("a request");
        let response = self.router.clone().oneshot(request).await.expect("an answer");
        let status = response.status();
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice(&bytes).expect("JSON"))
    }

    /// Updates the service `web` with its own spec.
    async fn update_with_auth(&self, query: &str, header: Option<&str>) -> (StatusCode, Value) {
        let shown = self.get("/services/web").await;
        let path = format!("/services/web/update?version={}{query}", shown["Version"]["Index"]);
        self.post_with_auth(&path, header, &shown["Spec"]).await
    }

    fn spec(&self) -> ServiceSpec {
        self.change(|t| t.state.service_by_name("web").expect("the service").spec.clone())
    }

    fn credentials(&self) -> Option<RegistryAuth> {
        self.spec().task.registry_auth.clone()
    }
}

#[tokio::test]
async fn credentials_stay_with_the_service_and_are_never_shown() {
    let api = Fixture::manager();
    let (status, made) = api.post_with_auth("/v1.50/services/create", Some(&user("pa55-1")), &service("web")).await;
    assert_eq!((status, &made["Warnings"]), (StatusCode::CREATED, &json!([])));
    assert_eq!(api.credentials(), auth("pa55-1"));

    // An update without a header keeps them, one with a header replaces them, and an empty user
    // removes them.
    for (query, header, expected) in [
        ("", None, auth("pa55-1")),
        ("&registryAuthFrom=spec", None, auth("pa55-1")),
        ("&registryAuthFrom=spec", Some(user("pa55-2")), auth("pa55-2")),
        ("&registryAuthFrom=previous-spec", None, auth("pa55-1")),
        ("&registryAuthFrom=previous-spec", None, auth("pa55-2")),
        ("", Some(STANDARD.encode("{}")), None),
        ("&registryAuthFrom=previous-spec", None, auth("pa55-2")),
        ("&rollback=previous&registryAuthFrom=previous-spec", None, None),
        ("&rollback=previous", Some(user("ignored")), auth("pa55-2")),
    ] {
        let (status, answer) = api.update_with_auth(query, header.as_deref()).await;
        assert_eq!((status, &answer["Warnings"]), (StatusCode::OK, &Value::Null), "{query}: {answer}");
        assert_eq!(api.credentials(), expected, "{query} {header:?}");
    }

    let id = api.change(|t| t.state.service_by_name("web").expect("the service").id.clone());
    let task = api.change(|t| {
        let node = t.first_node();
        t.running_task(&id, 1, &node)
    });
    for path in ["/services", "/services/web", "/tasks", &format!("/tasks/{task}"), "/services/web?insertDefaults=true"]
    {
        let shown = api.get(path).await.to_string();
        assert!(!shown.contains("pa55") && !shown.contains("ann"), "{path} shows credentials: {shown}");
    }
    assert!(!api.change(|t| format!("{:?}", t.state)).contains("pa55"), "the debug text shows credentials");
}

#[tokio::test]
async fn the_query_about_credentials_is_checked() {
    let api = Fixture::manager();
    api.post("/services/create", service("web")).await;
    for (query, text) in [
        ("&registryAuthFrom=previous-spec", "service web has no previous spec: give registryAuthFrom=spec"),
        ("&registryAuthFrom=other", "invalid registryAuthFrom \"other\": give \"spec\" or \"previous-spec\""),
    ] {
        let (status, answer) = api.update_with_auth(query, None).await;
        assert_eq!((status, answer["message"].as_str()), (StatusCode::BAD_REQUEST, Some(text)), "{query}");
    }
    let long = "a".repeat(20_000);
    let (status, answer) = api.post_with_auth("/services/create", Some(&long), &service("long")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
}

#[tokio::test]
async fn a_header_that_cannot_be_decoded_is_ignored_with_a_warning() {
    let api = Fixture::manager();
    let warning = json!(["the header X-Registry-Auth was ignored, because it is not base64"]);
    let (status, made) = api.post_with_auth("/services/create", Some("not base64"), &service("web")).await;
    assert_eq!((status, &made["Warnings"]), (StatusCode::CREATED, &warning));
    assert_eq!(api.credentials(), None);
    api.update_with_auth("", Some(&user("secret"))).await;
    let (status, updated) = api.update_with_auth("", Some("not base64")).await;
    assert_eq!((status, &updated["Warnings"]), (StatusCode::OK, &warning));
    assert_eq!(api.credentials(), auth("secret"), "the credentials of before are kept");
}

#[tokio::test]
async fn what_an_older_manager_does_not_know_is_left_out_with_a_warning() {
    let api = Fixture::manager();
    let spec = with(service("web"), "/TaskTemplate/Placement", json!({"Platforms": [{"OS": "linux"}]}));
    let (_, made) = api.post_with_auth("/services/create", Some(&user("pa55")), &spec).await;
    assert_eq!(made["Warnings"], json!([]));
    api.change(|t| t.state.feature_level = 0);
    let (_, updated) = api.update_with_auth("", None).await;
    let warning = updated["Warnings"][0].as_str().unwrap_or_default();
    assert!(warning.starts_with("the registry credentials and platforms of the service were left out"), "{warning}");
}

/// An engine that knows the digest of one image, which needs a password.
async fn engine(request: AnyRequest) -> Response {
    let wanted = super::super::credentials::encode(&auth("a?>?>").expect("credentials"));
    let has_password = |headers: &HeaderMap| headers.get("x-registry-auth").is_some_and(|found| *found == *wanted);
    match request.uri().path() {
        "/_ping" => ([("api-version", "1.41")], "OK").into_response(),
        "/distribution/registry.test:5000/team/web:1/json" if has_password(request.headers()) => {
            axum::Json(json!({"Descriptor": {"digest": DIGEST}, "Platforms": []})).into_response()
        }
        _ => (StatusCode::UNAUTHORIZED, axum::Json(json!({"message": "no basic auth credentials"}))).into_response(),
    }
}

#[tokio::test]
async fn images_are_pinned_for_clients_that_do_not_do_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("engine.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    tokio::spawn(async { axum::serve(listener, Router::new().fallback(engine)).await });
    let api = Fixture::manager_with(Some(socket));
    let image = "registry.test:5000/team/web:1";
    let pinned = format!("{image}@{DIGEST}");
    let requested = |name: &str, image: &str| {
        let spec = with(service(name), "/TaskTemplate/ContainerSpec/Image", json!(image));
        with(spec, "/EndpointSpec/Ports", json!([]))
    };
    let shown = async |name: &str| {
        api.get(&format!("/services/{name}")).await["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"].clone()
    };
    let right = user("a?>?>");

    // Current clients ask themselves, and mean what they send.
    api.post_with_auth("/v1.30/services/create", Some(&right), &requested("new", image)).await;
    assert_eq!(shown("new").await, image);

    let (_, made) = api.post_with_auth("/v1.29/services/create", Some(&right), &requested("web", image)).await;
    assert_eq!((&made["Warnings"], &shown("web").await), (&json!([]), &json!(pinned)));
    // The credentials that the service has are used for this too.
    let version = api.get("/services/web").await["Version"]["Index"].clone();
    let path = format!("/v1.29/services/web/update?version={version}");
    let (_, updated) = api.post_with_auth(&path, None, &requested("web", image)).await;
    assert_eq!((&updated["Warnings"], &shown("web").await), (&Value::Null, &json!(pinned)));

    let (status, made) = api.post_with_auth("/v1.29/services/create", None, &requested("open", image)).await;
    assert_eq!((status, &shown("open").await), (StatusCode::CREATED, &json!(image)));
    let warning = made["Warnings"][0].as_str().unwrap_or_default();
    assert!(warning.contains(image) && warning.contains("no basic auth credentials"), "{warning}");

    let (_, made) = api.post_with_auth("/v1.29/services/create", None, &requested("own", "weft/whoami")).await;
    assert_eq!((&made["Warnings"], &shown("own").await), (&json!([]), &json!("weft/whoami")));
}
