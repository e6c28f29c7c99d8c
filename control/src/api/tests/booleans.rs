//! Tests of the boolean query parameters of all routes, in all spellings that clients use.

use weft_model::{spec::ServiceMode, state::Meta};

use super::*;

/// The effect of a request with a boolean parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// The action that the parameter asks for was done.
    Done,
    NotDone,
    /// Status 400.
    Refused,
}

/// How moby reads a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// All texts but those that mean false are true.
    Lenient,
    /// Texts that mean neither true nor false are refused.
    Strict,
}

const PARAMETERS: &[(&str, &str, Reading)] = &[
    ("/swarm/leave", "force", Reading::Lenient),
    ("/nodes/n2", "force", Reading::Lenient),
    ("/swarm/update", "rotateWorkerToken", Reading::Strict),
    ("/swarm/update", "rotateManagerToken", Reading::Strict),
    ("/swarm/update", "rotateManagerUnlockKey", Reading::Strict),
    ("/services", "status", Reading::Strict),
    ("/networks/app", "verbose", Reading::Strict),
    ("/services/web/logs", "stdout", Reading::Lenient),
    ("/services/web/logs", "stderr", Reading::Lenient),
    ("/services/web/logs", "follow", Reading::Lenient),
    ("/services/web/logs", "timestamps", Reading::Lenient),
    ("/services/web/logs", "details", Reading::Lenient),
    ("/tasks/web.1/logs", "stdout", Reading::Lenient),
    ("/tasks/web.1/logs", "stderr", Reading::Lenient),
    ("/tasks/web.1/logs", "follow", Reading::Lenient),
    ("/tasks/web.1/logs", "timestamps", Reading::Lenient),
    ("/tasks/web.1/logs", "details", Reading::Lenient),
];

/// A manager with a second node, a network, and a service with one running task.
async fn cluster() -> Fixture {
    let api = Fixture::manager();
    api.network("app").await;
    api.post("/services/create", service("web")).await;
    api.change(|t| {
        t.node("n2", &[]);
        let id = t.state.service_by_name("web").expect("the service").id.clone();
        t.update(&id, |spec| spec.mode = ServiceMode::Replicated { replicas: 1 }).expect("an update");
        let node = t.first_node();
        t.running_task(&id, 1, &node);
    });
    api
}

/// Sends the request with `parameter=value` to a new cluster and returns its effect. The caller
/// must percent-encode `value`.
async fn effect_of(path: &str, parameter: &str, value: &str) -> Effect {
    let api = cluster().await;
    let done = match path {
        "/swarm/leave" => {
            let status = api.call(Method::POST, &format!("{path}?{parameter}={value}"), None).await.0;
            // Without force, the error says that the last manager needs force.
            assert!(matches!(status, StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE), "{status}");
            status == StatusCode::OK
        }
        "/nodes/n2" => {
            let (status, answer) = api.call(Method::DELETE, &format!("{path}?{parameter}={value}"), None).await;
            assert!(status == StatusCode::OK || answer.to_string().contains("not down"), "{answer}");
            status == StatusCode::OK
        }
        "/swarm/update" => {
            let key = UnlockKey([1; 32]);
            api.change(|t| {
                let Meta { version, .. } = t.settings().meta;
                let spec = t.settings().spec.clone();
                t.ok(Command::SetUnlockKey { version, spec, key: Some(key.clone()) });
            });
            let swarm = api.get("/swarm").await;
            let path = format!("{path}?version={}&{parameter}={value}", swarm["Version"]["Index"]);
            let status = api.call(Method::POST, &path, Some(swarm["Spec"].clone())).await.0;
            if status == StatusCode::BAD_REQUEST {
                return Effect::Refused;
            }
            let cluster = api.change(|t| t.state.cluster.clone()).expect("a cluster");
            let rotated = [&cluster.worker_secret, &cluster.manager_secret].map(|secret| secret == "rotated");
            match parameter {
                "rotateWorkerToken" => {
                    assert!(!rotated[1], "the manager token was rotated");
                    rotated[0]
                }
                "rotateManagerToken" => {
                    assert!(!rotated[0], "the worker token was rotated");
                    rotated[1]
                }
                _ => {
                    assert_eq!(rotated, [false, false]);
                    cluster.lock.key != Some(key)
                }
            }
        }
        "/services" | "/networks/app" => {
            let (status, shown) = api.call(Method::GET, &format!("{path}?{parameter}={value}"), None).await;
            if status == StatusCode::BAD_REQUEST {
                return Effect::Refused;
            }
            !shown[0]["ServiceStatus"].is_null() || !shown["Services"].is_null()
        }
        logs => {
            let task = api.change(|t| t.state.tasks.keys().next().expect("a task").clone());
            let path = logs.replace("web.1", task.as_str());
            // A request must choose a stream. If the parameter chooses one, `other` is the
            // other one.
            let other = if parameter == "stdout" { "stderr" } else { "stdout" };
            let uri = format!("{path}?{other}=1&{parameter}={value}");
            let request = Request::get(uri).body(Body::empty()).expect("a request");
            let response = api.router.clone().oneshot(request).await.expect("an answer");
            assert_eq!(response.status(), StatusCode::OK);
            let line = response.into_body().into_data_stream().next().await.expect("a line").expect("a line");
            let line = String::from_utf8_lossy(&line).into_owned();
            let options = api.log_options();
            match parameter {
                "stdout" => options.stdout,
                "stderr" => options.stderr,
                "follow" => options.follow,
                "timestamps" => line.contains("1970-01-01T"),
                _ => line.contains("com.docker.swarm.node.id="),
            }
        }
    };
    if done { Effect::Done } else { Effect::NotDone }
}

#[tokio::test]
async fn a_spelling_of_false_is_false_for_every_parameter() {
    // docker-py, for example, writes `False`.
    let spellings = ["", "%20", "0", "no", "No", "false", "False", "FALSE", "%20False%20", "none", "None", "NONE"];
    for (path, parameter, _) in PARAMETERS {
        for value in spellings {
            assert_eq!(effect_of(path, parameter, value).await, Effect::NotDone, "{path}?{parameter}={value}");
        }
    }
}

#[tokio::test]
async fn a_spelling_of_true_is_true_for_every_parameter() {
    for (path, parameter, _) in PARAMETERS {
        for value in ["1", "true", "True", "TRUE", "+true%20"] {
            assert_eq!(effect_of(path, parameter, value).await, Effect::Done, "{path}?{parameter}={value}");
        }
    }
}

#[tokio::test]
async fn other_texts_are_true_or_refused_as_in_moby() {
    for (path, parameter, reading) in PARAMETERS {
        let effect = if *reading == Reading::Strict { Effect::Refused } else { Effect::Done };
        for value in ["yes", "on", "2"] {
            assert_eq!(effect_of(path, parameter, value).await, effect, "{path}?{parameter}={value}");
        }
    }
    // insertDefaults has no effect: a spec is always shown with its defaults.
    let api = cluster().await;
    for value in ["1", "True", "0", "False", ""] {
        api.get(&format!("/services/web?insertDefaults={value}")).await;
    }
    api.refused(Method::GET, "/services/web?insertDefaults=yes", None, 400, "invalid value for insertDefaults: yes")
        .await;
}

#[tokio::test]
async fn a_python_client_without_force_does_not_leave_as_last_manager() {
    // These are the queries of docker-py's `swarm.leave()` and `swarm.update()`.
    let api = Fixture::manager();
    api.refused(Method::POST, "/v1.41/swarm/leave?force=False", None, 503, "Use --force").await;
    let swarm = api.get("/swarm").await;
    let path = format!(
        "/v1.41/swarm/update?rotateWorkerToken=False&rotateManagerToken=False&version={}",
        swarm["Version"]["Index"]
    );
    api.post(&path, swarm["Spec"].clone()).await;
    assert_eq!(api.get("/swarm").await["JoinTokens"], swarm["JoinTokens"]);
    let cluster = api.change(|t| t.state.cluster.clone()).expect("a cluster");
    assert_eq!([cluster.worker_secret.as_str(), &cluster.manager_secret], ["worker", "manager"]);
}
