//! Tests of secrets and configs, as the docker client uses them.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::*;

const PASSWORD: &str = "correct horse";

fn body(name: &str, data: &str) -> Value {
    json!({"Name": name, "Labels": {"team": "a"}, "Data": STANDARD.encode(data)})
}

impl Fixture {
    async fn create(&self, kind: &str, name: &str) -> String {
        let (status, made) = self.call(Method::POST, &format!("/{kind}s/create"), Some(body(name, PASSWORD))).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        made["ID"].as_str().expect("an id").to_owned()
    }

    /// The names of the objects that a filter selects.
    async fn names(&self, kind: &str, filters: Value) -> Vec<String> {
        let filters = crate::api::query::encoded(&filters.to_string());
        let found = self.get(&format!("/{kind}s?filters={filters}")).await;
        let mut names: Vec<_> = found
            .as_array()
            .expect("a list")
            .iter()
            .map(|found| found["Spec"]["Name"].as_str().expect("a name").to_owned())
            .collect();
        names.sort();
        names
    }
}

/// A service with this secret and this config.
fn with_files(secret: (&str, &str), config: (&str, &str)) -> Value {
    let file = |name: &str| json!({"Name": name, "UID": "1000", "GID": "0", "Mode": 0o400});
    let spec = with(
        service("web"),
        "/TaskTemplate/ContainerSpec/Secrets",
        json!([{"File": file("key"), "SecretID": secret.0, "SecretName": secret.1}]),
    );
    with(
        spec,
        "/TaskTemplate/ContainerSpec/Configs",
        json!([{"File": file("/etc/conf"), "ConfigID": config.0, "ConfigName": config.1}]),
    )
}

#[tokio::test]
async fn only_the_data_of_configs_is_shown() {
    let api = Fixture::manager();
    let (secret, config) = (api.create("secret", "key").await, api.create("config", "key").await);
    for path in [format!("/secrets/{secret}"), "/secrets/key".to_owned(), format!("/secrets/{}", &secret[..20])] {
        let shown = api.get(&path).await;
        assert_eq!((&shown["ID"], &shown["Spec"]), (&json!(secret), &json!({"Name": "key", "Labels": {"team": "a"}})));
        assert!(shown["Version"]["Index"].is_u64() && shown["CreatedAt"].is_string(), "{shown}");
    }
    let shown = api.get(&format!("/configs/{config}")).await;
    assert_eq!(shown["Spec"]["Data"], json!(STANDARD.encode(PASSWORD)));
    for path in ["/secrets", "/secrets/key"] {
        let text = api.get(path).await.to_string();
        assert!(!text.contains(&STANDARD.encode(PASSWORD)) && !text.contains(PASSWORD), "{text}");
    }
    api.change(|cluster| {
        let text = format!("{:?}", cluster.state.dependencies);
        assert!(!text.contains(PASSWORD) && text.contains("13 octets"), "{text}");
    });
}

#[tokio::test]
async fn a_list_has_what_any_of_the_naming_filters_names() {
    let api = Fixture::manager();
    let one = api.create("secret", "one").await;
    api.create("secret", "two").await;
    api.create("config", "one").await;
    for (filters, expected) in [
        (json!({}), vec!["one", "two"]),
        (json!({"name": ["o"]}), vec!["one"]),
        (json!({"name": {"TW": true}}), vec!["two"]),
        (json!({"names": ["o"]}), vec![]),
        (json!({"names": ["two"], "id": [one]}), vec!["one", "two"]),
        (json!({"label": ["team=a"], "name": ["t"]}), vec!["two"]),
        (json!({"label": ["team=b"]}), vec![]),
    ] {
        assert_eq!(api.names("secret", filters.clone()).await, expected, "{filters}");
    }
    api.refused(Method::GET, "/secrets?filters=%7B%22driver%22:%5B%22x%22%5D%7D", None, 400, "invalid filter").await;
}

#[tokio::test]
async fn errors_have_swarms_statuses_and_words() {
    let api = Fixture::manager();
    api.create("secret", "key").await;
    let with = |field: &str, value: Value| {
        let mut body = body("x", PASSWORD);
        body[field] = value;
        body
    };
    for (body, status, text) in [
        (body("key", "x"), 409, "secret key already exists"),
        (body("", "x"), 400, "name must be provided"),
        (body("a b", "x"), 400, "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed"),
        (body("x", ""), 400, "secret data must be larger than 0 and less than 512000 bytes"),
        (with("Data", json!("!")), 400, "no text in base64"),
        (with("Driver", json!({"Name": "vault"})), 501, "secret drivers (secret create --driver)"),
        (with("Templating", json!({"Name": "jinja"})), 501, "the template driver jinja"),
        (with("Templating", json!({"Name": "golang", "Options": {"a": "b"}})), 501, "Templating.Options"),
    ] {
        api.refused(Method::POST, "/secrets/create", Some(body), status, text).await;
    }
    api.refused(Method::GET, "/secrets/nope", None, 404, "secret nope not found").await;
    api.refused(Method::DELETE, "/configs/key", None, 404, "config key not found").await;
    // As in moby, fields that the Engine API does not have are ignored: configs have no driver.
    api.post("/secrets/create", with("Surprise", json!(1))).await;
    api.post("/configs/create", with("Driver", json!({"Name": "x"}))).await;
    let worker = Fixture::new(Membership::None, None);
    worker.refused(Method::GET, "/secrets", None, 503, "not a swarm manager").await;
}

#[tokio::test]
async fn an_update_changes_labels_only() {
    let api = Fixture::manager();
    api.create("config", "conf").await;
    let version = api.get("/configs/conf").await["Version"]["Index"].clone();
    let path = |version: &Value| format!("/configs/conf/update?version={version}");
    for other in
        [body("other", PASSWORD), body("conf", "other"), json!({"Name": "conf", "Templating": {"Name": "golang"}})]
    {
        api.refused(Method::POST, &path(&version), Some(other), 400, "only updates to Labels are allowed").await;
    }
    // `docker stack deploy` sends the whole spec, other clients leave the data out.
    for labels in [json!({"a": "b"}), json!({})] {
        let version = api.get("/configs/conf").await["Version"]["Index"].clone();
        api.post(&path(&version), json!({"Name": "conf", "Labels": labels, "Data": STANDARD.encode(PASSWORD)})).await;
        let shown = api.get("/configs/conf").await;
        assert_eq!(shown["Spec"]["Labels"], labels);
    }
    let body = json!({"Name": "conf", "Labels": {"c": "d"}});
    api.refused(Method::POST, &path(&version), Some(body), 409, "update out of sequence").await;
}

#[tokio::test]
async fn a_service_has_secrets_and_configs_until_they_are_taken_away() {
    let api = Fixture::manager();
    let (secret, config) = (api.create("secret", "key").await, api.create("config", "conf").await);
    let spec = with_files((&secret, "key"), (&config, "conf"));
    api.post("/services/create", spec.clone()).await;
    let shown = api.get("/services/web").await;
    for field in ["Secrets", "Configs"] {
        let path = format!("/Spec/TaskTemplate/ContainerSpec/{field}");
        assert_eq!(shown.pointer(&path), spec.pointer(&path["/Spec".len()..]));
    }
    api.refused(Method::DELETE, "/secrets/key", None, 400, "secret 'key' is in use by the following service: web")
        .await;
    api.refused(Method::DELETE, "/configs/conf", None, 400, "config 'conf' is in use by the following service: web")
        .await;
    let path = format!("/services/web/update?version={}", shown["Version"]["Index"]);
    api.post(&path, service("web")).await;
    for path in ["/secrets/key", "/configs/conf"] {
        assert_eq!(api.call(Method::DELETE, path, None).await.0, StatusCode::NO_CONTENT, "{path}");
    }
}

#[tokio::test]
async fn references_that_lead_to_nothing_are_refused() {
    let api = Fixture::manager();
    let (secret, config) = (api.create("secret", "key").await, api.create("config", "conf").await);
    let good = with_files((&secret, "key"), (&config, "conf"));
    for (path, value, text) in [
        ("/Secrets/0/SecretID", json!("x"), "secret not found: key"),
        ("/Secrets/0/SecretName", json!("other"), "secret not found: other"),
        ("/Configs/0/ConfigID", json!(secret), "config not found: conf"),
        ("/Secrets/0/SecretID", json!(""), "malformed secret reference"),
        ("/Secrets/0/File", Value::Null, "malformed secret reference, no target provided"),
        ("/Configs/0/File/Name", json!(""), "malformed file config reference, invalid target file name provided"),
        ("/Configs/0/File/Name", json!("a/../b"), "invalid target file name provided: \"a/../b\""),
        ("/Configs/0/File/UID", json!("www"), "UID \"www\" of config conf is no number"),
        ("/Secrets/0/File/Mode", json!(0o1777), "mode 0o1777 of secret key"),
    ] {
        let bad = with(good.clone(), &format!("/TaskTemplate/ContainerSpec{path}"), value);
        api.refused(Method::POST, "/services/create", Some(bad), 400, text).await;
    }
    api.post("/services/create", good).await;
}

#[tokio::test]
async fn nothing_is_created_before_all_managers_know_secrets() {
    let api = Fixture::manager();
    let (secret, config) = (api.create("secret", "key").await, api.create("config", "conf").await);
    api.change(|cluster| cluster.state.feature_level = 0);
    let text = "a manager runs an earlier release of weft, which has no secrets: upgrade all managers";
    api.refused(Method::POST, "/secrets/create", Some(body("x", "x")), 409, text).await;
    let spec = with_files((&secret, "key"), (&config, "conf"));
    api.refused(Method::POST, "/services/create", Some(spec), 409, text).await;
}
