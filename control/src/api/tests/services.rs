//! Tests of services and their tasks.

use weft_model::{report::NodeDescription, wireguard::EncryptionSupport};

use super::*;

#[tokio::test]
async fn a_service_is_shown_as_it_was_requested() {
    let api = Fixture::manager();
    let network = api.network("app").await;
    let mut requested = service("web");
    requested["TaskTemplate"]["Networks"] = json!([{"Target": "app", "Aliases": ["w"]}]);
    requested["TaskTemplate"]["Placement"] = json!({"Constraints": ["node.role == worker"], "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}], "Platforms": [{"Architecture": "amd64", "OS": "linux"}, {"OS": "linux"}]});
    requested["UpdateConfig"] = json!({"Parallelism": 2, "Delay": 1_000_000_000u64, "FailureAction": "rollback", "MaxFailureRatio": 0.1, "Order": "start-first"});
    let made = api.post("/v1.50/services/create", requested).await;
    let id = made["ID"].as_str().expect("an id");
    let shown = api.get("/services/web?insertDefaults=true").await;
    assert_eq!(shown["ID"], id);
    let spec = &shown["Spec"];
    assert_eq!(spec["TaskTemplate"]["Networks"], json!([{"Target": network, "Aliases": ["w"]}]));
    assert_eq!(spec["TaskTemplate"]["Placement"]["Constraints"], json!(["node.role==worker"]));
    assert_eq!(
        spec["TaskTemplate"]["Placement"]["Platforms"],
        json!([{"Architecture": "amd64", "OS": "linux"}, {"OS": "linux"}])
    );
    assert_eq!(spec["UpdateConfig"]["FailureAction"], "rollback");
    assert_eq!(spec["UpdateConfig"]["MaxFailureRatio"], 0.1);
    assert_eq!(shown["Endpoint"]["Ports"][0]["PublishedPort"], 8080);
    assert_eq!(shown["Endpoint"]["VirtualIPs"][1]["NetworkID"], network.as_str());

    // `docker service update` reads the spec, changes it, and sends all of it back.
    let changed = with(spec.clone(), "/TaskTemplate/ContainerSpec/Image", json!("weft/whoami:2"));
    let path = format!("/services/{id}/update?version={}&registryAuthFrom=spec", shown["Version"]["Index"]);
    api.post(&path, changed.clone()).await;
    let shown = api.get("/services/web").await;
    assert_eq!(shown["Spec"], changed);
    assert_eq!(shown["PreviousSpec"]["TaskTemplate"]["ContainerSpec"]["Image"], "weft/whoami:latest");
    api.refused(Method::POST, &path, Some(changed.clone()), 409, "out of sequence").await;

    let path = format!("/services/{id}/update?rollback=previous&version={}", shown["Version"]["Index"]);
    api.post(&path, changed).await;
    assert_eq!(api.get("/services/web").await["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"], "weft/whoami:latest");

    let unnamed = with(service(""), "/EndpointSpec/Ports", json!([]));
    let unnamed = api.post("/services/create", unnamed).await["ID"].as_str().expect("an id").to_owned();
    let shown = api.get(&format!("/services/{unnamed}")).await;
    assert!(shown["Spec"]["Name"].as_str().is_some_and(|name| name.starts_with("service-")), "{shown}");
    assert_eq!(api.call(Method::DELETE, "/services/web", None).await.0, StatusCode::OK);
    api.refused(Method::GET, "/services/web", None, 404, "no such service: web").await;
}

#[tokio::test]
async fn the_parameters_of_an_update_are_those_of_clients() {
    let api = Fixture::manager();
    api.post("/services/create", service("web")).await;
    let path = async |more: &str| {
        let shown = api.get("/services/web").await;
        (format!("/services/web/update?version={}{more}", shown["Version"]["Index"]), shown["Spec"].clone())
    };
    // Version 29 of the docker client always writes `rollback`.
    let queries = ["&registryAuthFrom=spec&rollback=none", "&rollback=&registryAuthFrom=", "&rollback=none"];
    for (query, image) in queries.into_iter().zip(["weft/whoami:2", "weft/whoami:3", "weft/whoami:4"]) {
        let (path, spec) = path(query).await;
        api.post(&path, with(spec, "/TaskTemplate/ContainerSpec/Image", json!(image))).await;
        assert_eq!(api.get("/services/web").await["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"], image, "{query}");
    }
    let (path, spec) = path("&rollback=next").await;
    api.refused(Method::POST, &path, Some(spec), 400, "invalid rollback \"next\": give \"previous\" or \"none\"").await;
}

#[tokio::test]
async fn placements_and_variables_are_taken_as_swarm_takes_them() {
    let api = Fixture::manager();
    let mut requested = service("web");
    requested["TaskTemplate"]["Placement"] = json!({
        "Constraints": ["node.labels.os == ubuntu 14.04", "Node.Role == Manager", "node.ip != 192.0.2.0/28"],
        "Preferences": [{"Spread": {"SpreadDescriptor": "Node.Labels.zone"}}, {"Spread": {"SpreadDescriptor": "node.hostname"}}],
    });
    requested["TaskTemplate"]["ContainerSpec"]["Env"] = json!(["A=1", "PATH", "B="]);
    api.post("/services/create", requested.clone()).await;
    let shown = api.get("/services/web").await;
    let template = &shown["Spec"]["TaskTemplate"];
    assert_eq!(template["ContainerSpec"]["Env"], json!(["A=1", "PATH", "B="]));
    assert_eq!(
        template["Placement"]["Constraints"],
        json!(["node.labels.os==ubuntu 14.04", "node.role==Manager", "node.ip!=192.0.2.0/28"])
    );
    assert_eq!(
        template["Placement"]["Preferences"],
        json!([{"Spread": {"SpreadDescriptor": "node.labels.zone"}}, {"Spread": {"SpreadDescriptor": "node.hostname"}}])
    );
    for bad in ["", "=x", "A=\0"] {
        let requested = with(service("bad"), "/TaskTemplate/ContainerSpec/Env", json!([bad]));
        api.refused(Method::POST, "/services/create", Some(requested), 400, "invalid environment variable").await;
    }
    // Managers of the first release cannot read it.
    api.change(|t| t.state.feature_level = 0);
    let requested = with(requested, "/Name", json!("new"));
    api.refused(Method::POST, "/services/create", Some(requested), 409, "no node.ip in placements: upgrade").await;
}

#[tokio::test]
async fn names_of_tasks_are_shown_as_they_were_requested() {
    let api = Fixture::manager();
    let mut requested = service("web");
    let container = &mut requested["TaskTemplate"]["ContainerSpec"];
    container["DNSConfig"] =
        json!({"Nameservers": ["2001:DB8::53", "192.0.2.53"], "Search": ["corp.test"], "Options": ["timeout:1"]});
    container["Hosts"] = json!(["192.0.2.7\tdb.test db"]);
    api.post("/services/create", requested).await;
    let shown = api.get("/services/web").await;
    let container = &shown["Spec"]["TaskTemplate"]["ContainerSpec"];
    assert_eq!(
        container["DNSConfig"],
        json!({"Nameservers": ["2001:db8::53", "192.0.2.53"], "Search": ["corp.test"], "Options": ["timeout:1"]})
    );
    assert_eq!(container["Hosts"], json!(["192.0.2.7 db.test db"]));

    let mut changed = shown["Spec"].clone();
    changed["TaskTemplate"]["ContainerSpec"]["DNSConfig"] = json!({"Search": ["."]});
    changed["TaskTemplate"]["ContainerSpec"]["Hosts"] = json!([]);
    api.post(&format!("/services/web/update?version={}", shown["Version"]["Index"]), changed).await;
    let updated = api.get("/services/web").await;
    let container = &updated["Spec"]["TaskTemplate"]["ContainerSpec"];
    assert_eq!((&container["DNSConfig"], &container["Hosts"]), (&json!({"Search": ["."]}), &Value::Null));
    assert_eq!(updated["PreviousSpec"]["TaskTemplate"], shown["Spec"]["TaskTemplate"]);
}

#[tokio::test]
async fn networks_beside_the_template_are_used_if_the_template_has_none() {
    let api = Fixture::manager();
    let network = api.network("app").await;
    // Clients of API 1.24 write the networks beside the template.
    let mut old = service("old");
    old["EndpointSpec"]["Ports"] = json!([]);
    old["Networks"] = json!([{"Target": "app"}]);
    api.post("/v1.24/services/create", old.clone()).await;
    let shown = api.get("/services/old").await;
    assert_eq!(shown["Spec"]["TaskTemplate"]["Networks"], json!([{"Target": network}]));
    old["Name"] = json!("both");
    old["TaskTemplate"]["Networks"] = json!([{"Target": "app"}]);
    api.network("other").await;
    old["Networks"] = json!([{"Target": "other"}]);
    let made = api.post("/services/create", old).await;
    assert_eq!(made["Warnings"], json!(["the field Networks was ignored: the Engine API has no such field"]));
    let shown = api.get("/services/both").await;
    assert_eq!(shown["Spec"]["TaskTemplate"]["Networks"], json!([{"Target": network}]));
}

#[tokio::test]
async fn unsupported_features_are_refused_by_name() {
    let api = Fixture::manager();
    for (path, value, text) in [
        (
            "/TaskTemplate/ContainerSpec/Mounts",
            json!([{"Type": "bind", "Source": "/a", "Target": "/b"}]),
            "mounts (--mount)",
        ),
        ("/TaskTemplate/ContainerSpec/Healthcheck", json!({"Test": ["NONE"]}), "health checks"),
        (
            "/TaskTemplate/ContainerSpec/Configs",
            json!([{"ConfigID": "x", "ConfigName": "x", "Runtime": {}}]),
            "configs as credential specs",
        ),
        ("/TaskTemplate/ContainerSpec/CapabilityAdd", json!(["CAP_NET_ADMIN"]), "--cap-add"),
        ("/TaskTemplate/ContainerSpec/Sysctls", json!({"a": "b"}), "--sysctl"),
        ("/TaskTemplate/ContainerSpec/TTY", json!(true), "--tty"),
        ("/TaskTemplate/ContainerSpec/Privileges", json!({"NoNewPrivileges": true}), "privileges"),
        ("/TaskTemplate/LogDriver", json!({"Name": "syslog"}), "--log-driver"),
        ("/TaskTemplate/Runtime", json!("plugin"), "plugin"),
        ("/Mode", json!({"ReplicatedJob": {"MaxConcurrent": 1}}), "replicated-job"),
        ("/Mode", json!({"GlobalJob": {}}), "global-job"),
        ("/EndpointSpec/Ports/0/PublishMode", json!("host"), "mode=host"),
        ("/EndpointSpec/Ports/0/PublishMode", json!("dsr"), "mode=dsr"),
        ("/EndpointSpec/Ports/0/Protocol", json!("sctp"), "SCTP"),
        ("/EndpointSpec/Ports/0/Name", json!("web"), "named ports"),
    ] {
        let spec = service("web");
        let bad = match path.strip_prefix("/EndpointSpec/Ports/0/") {
            Some(field) => {
                let mut spec = spec;
                spec["EndpointSpec"]["Ports"][0][field] = value;
                spec
            }
            None => with(spec, path, value),
        };
        api.refused(Method::POST, "/services/create", Some(bad), 501, text).await;
    }
    for (path, what) in [
        ("/plugins/privileges", "plugins"),
        ("/distribution/a/b/json", "container engine"),
        ("/distribution/weft/whoami:latest/json", "a digest of weft/whoami:latest: the image is a part of weft"),
        ("/containers/json", "container engine"),
        ("/images/create", "container engine"),
    ] {
        api.refused(Method::GET, path, None, 501, what).await;
    }
    for path in ["/secrets", "/v1.41/configs?filters=%7B%7D", "/plugins"] {
        assert_eq!(api.get(path).await, json!([]), "{path}");
    }
    assert_eq!(api.get("/services").await, json!([]), "a refused request changed something");
}

#[tokio::test]
async fn an_invalid_service_gets_an_error_that_says_what_to_do() {
    let api = Fixture::manager();
    api.post("/services/create", service("first")).await;
    for (path, value, status, text) in [
        ("/Name", json!("not a name"), 400, "not a valid service name"),
        ("/Name", json!("first"), 409, "name first is in use"),
        ("/TaskTemplate/ContainerSpec/Image", json!(""), 400, "name the image"),
        ("/TaskTemplate/ContainerSpec/Env", json!(["=x"]), 400, "NAME=value"),
        ("/TaskTemplate/Networks", json!([{"Target": "nowhere"}]), 404, "no such network: nowhere"),
        ("/TaskTemplate/Networks", json!([{"Target": "ingress"}]), 400, "is the ingress network"),
        ("/TaskTemplate/Placement/Constraints", json!(["node.color==red"]), 400, "its attribute must be"),
        ("/TaskTemplate/ContainerSpec/DNSConfig", json!({"Nameservers": ["dns.test"]}), 400, "(--dns): give an IPv4"),
        ("/TaskTemplate/ContainerSpec/DNSConfig", json!({"Search": ["a..b"]}), 400, "not a search domain"),
        ("/TaskTemplate/ContainerSpec/DNSConfig", json!({"Options": ["ndots:x"]}), 400, "an option of resolv.conf"),
        ("/TaskTemplate/ContainerSpec/Hosts", json!(["db 192.0.2.7"]), 400, "not an entry of a hosts file"),
        ("/TaskTemplate/RestartPolicy/Condition", json!("sometimes"), 400, "sometimes"),
        ("/TaskTemplate/RestartPolicy/Delay", json!(1_500_000), 501, "nearest that it can honour"),
        ("/TaskTemplate/RestartPolicy/Delay", json!(500_000), 501, "TaskTemplate.RestartPolicy.Delay of 500000 ns"),
        ("/TaskTemplate/RestartPolicy/Window", json!(1), 501, "the nearest that it can honour is 1000000 ns (1 ms)"),
        ("/TaskTemplate/ContainerSpec/StopGracePeriod", json!(1), 501, "give whole milliseconds"),
        ("/UpdateConfig", json!({"Delay": 1}), 501, "UpdateConfig.Delay of 1 ns"),
        ("/UpdateConfig", json!({"Monitor": 1}), 501, "UpdateConfig.Monitor of 1 ns"),
        ("/RollbackConfig", json!({"Delay": 1}), 501, "RollbackConfig.Delay of 1 ns"),
        ("/UpdateConfig", json!({"MaxFailureRatio": 0.0001}), 501, "UpdateConfig.MaxFailureRatio 0.0001"),
        ("/Mode", json!({"Replicated": {"Replicas": -1}}), 400, "negative"),
        ("/EndpointSpec/Ports", json!([{"TargetPort": 0, "PublishedPort": 81}]), 400, "TargetPort is 0"),
        ("/EndpointSpec/Ports", json!([{"TargetPort": 80, "PublishedPort": 65536}]), 400, "from 1 to 65535"),
        (
            "/EndpointSpec/Ports",
            json!([{"TargetPort": 80, "PublishedPort": 81}, {"TargetPort": 82, "PublishedPort": 81}]),
            400,
            "published twice",
        ),
        (
            "/EndpointSpec/Ports",
            json!([{"TargetPort": 80, "PublishedPort": 8080}]),
            409,
            "already published by service first",
        ),
        ("/EndpointSpec/Ports", json!([{"TargetPort": 80, "PublishedPort": 2377}]), 400, "reserved"),
    ] {
        let name = if path == "/Name" { value.clone() } else { json!("second") };
        let spec = with(with(service("second"), "/EndpointSpec/Ports", json!([])), "/Name", name);
        let bad = with(spec, path, value);
        api.refused(Method::POST, "/services/create", Some(bad), status, text).await;
    }
    api.refused(Method::POST, "/services/first/update", Some(service("first")), 400, "invalid version").await;
    api.refused(Method::DELETE, "/services/none", None, 404, "no such service: none").await;
    api.refused(Method::POST, "/services/create", Some(json!([])), 400, "must be a JSON object").await;
    assert_eq!(api.get("/services").await.as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn tasks_and_replica_counts_are_shown() {
    let api = Fixture::manager();
    api.post("/services/create", service("web")).await;
    let (id, task) = api.change(|t| {
        let id = t.state.service_by_name("web").expect("the service").id.clone();
        let node = t.first_node();
        t.task(&id, 2);
        (id.clone(), t.running_task(&id, 1, &node))
    });
    let listed = api.get("/services?status=true").await;
    assert_eq!(listed[0]["ServiceStatus"], json!({"RunningTasks": 1, "DesiredTasks": 2, "CompletedTasks": 0}));
    assert_eq!(api.get("/services").await[0]["ServiceStatus"], Value::Null);
    for (filter, count) in [
        ("%7B%22service%22%3A%5B%22web%22%5D%7D", 2),
        ("%7B%22service%22%3A%5B%22web%22%5D%2C%22_up-to-date%22%3A%5B%22true%22%5D%7D", 2),
        ("%7B%22desired-state%22%3A%7B%22shutdown%22%3Atrue%7D%7D", 0),
        ("%7B%22desired-state%22%3A%5B%22Running%22%2C%22complete%22%5D%7D", 2),
        ("%7B%22desired-state%22%3A%5B%22FAILED%22%5D%7D", 0),
        ("%7B%22node%22%3A%5B%22n1%22%5D%7D", 1),
    ] {
        let tasks = api.get(&format!("/tasks?filters={filter}")).await;
        assert_eq!(tasks.as_array().map(Vec::len), Some(count), "{filter}");
    }
    // If an update is reverted before any task was replaced, the tasks are up to date again.
    let up_to_date = "/tasks?filters=%7B%22_up-to-date%22%3A%5B%22true%22%5D%7D";
    for (force, count) in [(1, 0), (0, 2)] {
        api.change(|t| t.update(&id, |spec| spec.task.force_update = force).expect("updated"));
        assert_eq!(api.get(up_to_date).await.as_array().map(Vec::len), Some(count), "force {force}");
    }
    let shown = api.get(&format!("/tasks/{task}")).await;
    assert_eq!((&shown["Status"]["State"], &shown["DesiredState"]), (&json!("running"), &json!("running")));
    assert_eq!((&shown["Slot"], &shown["ServiceID"]), (&json!(1), &json!(id.as_str())));
    assert!(shown["NetworksAttachments"][0]["Addresses"][0].as_str().is_some_and(|a| a.contains('/')), "{shown}");
    api.refused(Method::GET, "/tasks/none", None, 404, "no such task: none").await;

    let (status, logs) = api.call(Method::GET, "/services/web/logs?stdout=1&details=1", None).await;
    assert_eq!(status, StatusCode::OK);
    let text = logs.as_str().unwrap_or_default();
    assert!(
        text.contains(&format!(
            "com.docker.swarm.task.id={task},com.docker.swarm.task.name=web.1.{task} I am {task}\n"
        )),
        "{text:?}"
    );
    api.refused(Method::GET, "/services/web/logs", None, 400, "at least one stream").await;
    for (version, content_type) in
        [("/v1.41", "raw-stream"), ("/v1.42", "multiplexed-stream"), ("", "multiplexed-stream")]
    {
        for path in ["/services/web".to_owned(), format!("/tasks/{task}")] {
            let uri = format!("{version}{path}/logs?stdout=1");
            let request = Request::get(&uri).body(Body::empty()).expect("a request");
            let response = api.router.clone().oneshot(request).await.expect("an answer");
            let expected = format!("application/vnd.docker.{content_type}");
            assert_eq!(response.headers()["content-type"], expected, "{uri}");
        }
    }
}

#[tokio::test]
async fn followed_logs_begin_with_the_tail_and_show_later_tasks_whole() {
    let api = Fixture::manager();
    api.post("/services/create", service("web")).await;
    let start = |slot| {
        api.change(|t| {
            let id = t.state.service_by_name("web").expect("the service").id.clone();
            let node = t.first_node();
            t.running_task(&id, slot, &node)
        })
    };
    let first = start(1);
    let request = Request::get("/services/web/logs?stdout=1&follow=1&tail=3&since=5").body(Body::empty());
    let response = api.router.clone().oneshot(request.expect("a request")).await.expect("an answer");
    let mut lines = response.into_body().into_data_stream();
    let mut next = async || String::from_utf8_lossy(&lines.next().await.expect("a line").expect("a line")).into_owned();
    let line = next().await;
    assert!(line.ends_with(&format!("I am {first}\n")), "{line}");
    let options = api.log_options();
    assert_eq!((options.tail, options.since_ms, options.follow), (Some(3), Some(5_000), true));
    let second = start(2);
    let line = next().await;
    assert!(line.ends_with(&format!("I am {second}\n")), "{line}");
    let options = api.log_options();
    assert_eq!((options.tail, options.since_ms, options.follow), (None, Some(5_000), true));
}

#[tokio::test(start_paused = true)]
async fn followed_logs_end_at_the_time_until() {
    let api = Fixture::manager();
    api.post("/services/create", service("web")).await;
    let seconds = |from_now: i64| crate::host::now_ms().saturating_add_signed(from_now * 1_000) / 1_000;
    for (until, follows) in [(seconds(3_600), true), (seconds(-3_600), false)] {
        api.change(|t| {
            let id = t.state.service_by_name("web").expect("the service").id.clone();
            let node = t.first_node();
            t.running_task(&id, 1, &node);
        });
        // The body ends although the service runs on.
        let path = format!("/services/web/logs?stdout=1&follow=1&until={until}");
        let (status, _) = api.call(Method::GET, &path, None).await;
        assert_eq!(status, StatusCode::OK);
        let options = api.log_options();
        assert_eq!((options.follow, options.until_ms), (follows, Some(until * 1_000)));
    }
}

#[tokio::test]
async fn clients_of_earlier_versions_get_the_form_of_these() {
    let api = Fixture::manager();
    let network = api.network("app").await;
    let networks = json!([{"Target": network}]);
    api.post("/services/create", with(service("web"), "/TaskTemplate/Networks", networks.clone())).await;
    for (version, beside, status) in
        [("/v1.24", true, false), ("/v1.25", false, false), ("/v1.41", false, true), ("", false, true)]
    {
        let inspected = api.get(&format!("{version}/services/web")).await;
        let listed = api.get(&format!("{version}/services?status=1")).await[0].clone();
        for shown in [&inspected, &listed] {
            let expected = if beside { networks.clone() } else { Value::Null };
            assert_eq!(shown["Spec"]["Networks"], expected, "{version}");
            assert_eq!(shown["Spec"]["TaskTemplate"]["Networks"], networks);
        }
        assert_eq!(listed.get("ServiceStatus").is_some(), status, "{version}");
    }
    // A client of 1.24 sends back what it has read.
    let shown = api.get("/v1.24/services/web").await;
    let path = format!("/v1.24/services/web/update?version={}", shown["Version"]["Index"]);
    assert_eq!(api.post(&path, shown["Spec"].clone()).await["Warnings"], Value::Null);
}

#[tokio::test]
async fn a_spec_is_shown_as_it_was_sent_and_with_its_defaults_if_asked() {
    let api = Fixture::manager();
    let sent = json!({
        "Name": "web", "Labels": {},
        "TaskTemplate": {
            "ContainerSpec": {"Image": "weft/whoami", "Isolation": "default"},
            "RestartPolicy": {"Condition": "on-failure", "MaxAttempts": 0},
            "ForceUpdate": 0, "Runtime": "container",
        },
        "Mode": {"Replicated": {"Replicas": 1}},
    });
    let id = api.post("/services/create", sent.clone()).await["ID"].clone();
    let id: weft_model::ServiceId = id.as_str().expect("an id").parse().expect("an id");
    let shown = api.get("/services/web").await;
    assert_eq!(shown["Spec"], sent);
    assert_eq!(api.get("/services").await[0]["Spec"], sent);
    let task = api.change(|t| t.task(&id, 1));
    assert_eq!(api.get(&format!("/tasks/{task}")).await["Spec"], sent["TaskTemplate"]);

    // The defaults of swarmkit, in `api/defaults/service.go`.
    let full = api.get("/services/web?insertDefaults=true").await["Spec"].clone();
    let update = json!({
        "Parallelism": 1, "Delay": 0, "FailureAction": "pause", "Monitor": 5_000_000_000u64, "MaxFailureRatio": 0.0,
        "Order": "stop-first",
    });
    assert_eq!((&full["UpdateConfig"], &full["RollbackConfig"]), (&update, &update));
    assert_eq!(full["EndpointSpec"], json!({"Mode": "vip"}));
    let template = &full["TaskTemplate"];
    assert_eq!(
        template["RestartPolicy"],
        json!({"Condition": "on-failure", "Delay": 5_000_000_000u64, "MaxAttempts": 0})
    );
    assert_eq!(template["ContainerSpec"]["StopGracePeriod"], 10_000_000_000u64);
    assert_eq!(template["ContainerSpec"]["DNSConfig"], json!({}));
    assert_eq!(
        (&template["Placement"], &template["Resources"]),
        (&json!({}), &json!({"Limits": {}, "Reservations": {}}))
    );

    // Values that are sent, and equal the defaults, are shown. No task is replaced because of them.
    let path = |shown: &Value| format!("/services/web/update?version={}", shown["Version"]["Index"]);
    api.post(&path(&shown), full.clone()).await;
    let shown = api.get("/services/web").await;
    assert_eq!((&shown["Spec"], &shown["PreviousSpec"]), (&full, &sent));
    let up_to_date = api.get(&tasks_with(&json!({"service": ["web"], "_up-to-date": ["true"]}))).await;
    assert_eq!(up_to_date.as_array().map(Vec::len), Some(1));
    // A part that is left out again has its default again.
    let slow = with(full, "/TaskTemplate/ContainerSpec/StopGracePeriod", json!(1_000_000_000u64));
    api.post(&path(&shown), slow).await;
    let shown = api.get("/services/web").await;
    api.post(&path(&shown), sent.clone()).await;
    assert_eq!(api.get("/services/web").await["Spec"], sent);
    let full = api.get("/services/web?insertDefaults=1").await;
    assert_eq!(full["Spec"]["TaskTemplate"]["ContainerSpec"]["StopGracePeriod"], 10_000_000_000u64);
    api.refused(Method::GET, "/services/web?insertDefaults=maybe", None, 400, "insertDefaults").await;
}

/// Traefik and Prometheus look for targets on the ingress network.
#[tokio::test]
async fn a_published_service_is_shown_on_the_ingress_network_with_addresses_that_reach_it() {
    let api = Fixture::manager();
    api.network("app").await;
    let ingress = api.get("/networks/ingress").await["Id"].clone();
    let networks = json!([{"Target": "app"}]);
    let own = with(service("own"), "/TaskTemplate/Networks", networks.clone());
    let hidden = with(with(service("hidden"), "/TaskTemplate/Networks", networks), "/EndpointSpec/Ports", json!([]));
    let none = with(service("none"), "/EndpointSpec/Ports", json!([{"TargetPort": 80, "PublishedPort": 8081}]));
    let mut shown = Vec::new();
    for spec in [own, hidden, none] {
        let id: weft_model::ServiceId =
            api.post("/services/create", spec).await["ID"].as_str().expect("an id").parse().expect("an id");
        let task = api.change(|t| {
            let node = t.first_node();
            t.running_task(&id, 1, &node)
        });
        let service = api.get(&format!("/services/{id}")).await["Endpoint"]["VirtualIPs"].clone();
        shown.push((service, api.get(&format!("/tasks/{task}")).await["NetworksAttachments"].clone()));
    }
    let names = |attached: &Value| -> Vec<String> {
        let attached = attached.as_array().expect("a list").iter();
        attached.map(|one| one["Network"]["Spec"]["Name"].as_str().expect("a name").to_owned()).collect()
    };
    let on_ingress = |index: usize| {
        let (vips, attached): &(Value, Value) = &shown[index];
        let vips = vips.as_array().into_iter().flatten();
        (vips.filter(|vip| vip["NetworkID"] == ingress).map(|vip| vip["Addr"].clone()).collect::<Vec<_>>(), attached)
    };

    let (vips, attached) = on_ingress(0);
    assert_eq!(names(attached), ["ingress", "app"]);
    // Published ports lead to these addresses.
    assert_eq!(attached[0]["Addresses"], attached[1]["Addresses"]);
    assert_eq!(vips, [shown[0].0[1]["Addr"].clone()]);

    let (vips, attached) = on_ingress(1);
    assert_eq!((vips, names(attached)), (vec![], vec!["app".to_owned()]), "it publishes no port");

    let (vips, attached) = on_ingress(2);
    assert_eq!(names(attached), ["ingress"]);
    assert_eq!(vips, [json!("192.0.2.1/32")], "its published port answers at the node");
    assert_eq!(shown[2].0.as_array().map(Vec::len), Some(1));
}

/// `GET /tasks` with these filters.
fn tasks_with(filters: &Value) -> String {
    format!("/tasks?filters={}", crate::api::query::encoded(&filters.to_string()))
}

#[tokio::test]
async fn filters_of_tasks_name_services_and_nodes_as_paths_do() {
    let api = Fixture::manager();
    api.post("/services/create", service("web")).await;
    api.post("/services/create", with(service("web2"), "/EndpointSpec/Ports", json!([]))).await;
    let (id, node) = api.change(|t| {
        let id = t.state.service_by_name("web").expect("the service").id.clone();
        let node = t.first_node();
        t.task(&id, 2);
        t.running_task(&id, 1, &node);
        (id, node)
    });
    let other = api.get("/services/web2").await["ID"].as_str().expect("an id").to_owned();
    let unique = (1..).map(|len| &id.as_str()[..len]).find(|prefix| !other.starts_with(prefix)).expect("a prefix");
    for (filters, count) in [
        (json!({"service": [id.as_str()]}), 2),
        (json!({"service": {"web": true}}), 2),
        (json!({"service": [unique]}), 2),
        (json!({"service": ["web2"]}), 0),
        (json!({"service": ["web", "web2"]}), 2),
        (json!({"node": ["n1"]}), 1),
        (json!({"node": [node.as_str()]}), 1),
        (json!({"node": [&node.as_str()[..10]]}), 1),
        (json!({"node": ["self"]}), 1),
        (json!({"desired-state": ["running"]}), 2),
        (json!({"desired-state": ["RUNNING", "shutdown"]}), 2),
        (json!({"desired-state": [""]}), 2),
    ] {
        let tasks = api.get(&tasks_with(&filters)).await;
        assert_eq!(tasks.as_array().map(Vec::len), Some(count), "{filters}");
    }
    // The states of moby, in `api/types/swarm/task.go`.
    for state in [
        "new",
        "pending",
        "assigned",
        "accepted",
        "preparing",
        "ready",
        "starting",
        "complete",
        "shutdown",
        "failed",
        "rejected",
        "remove",
        "orphaned",
    ] {
        assert_eq!(api.get(&tasks_with(&json!({"desired-state": [state]}))).await, json!([]), "{state}");
    }
    for (filters, status, text) in [
        (json!({"service": ["other"]}), 404, "no such service: other"),
        (json!({"service": ["web", "other"]}), 404, "no such service: other"),
        (json!({"node": ["n9"]}), 404, "no such node: n9"),
        (json!({"desired-state": ["odd"]}), 400, "invalid desired-state filter 'odd'"),
    ] {
        api.refused(Method::GET, &tasks_with(&filters), None, status, text).await;
    }
    for (filter, count) in
        [("role=MANAGER", Some(1)), ("membership=pending", Some(0)), ("role=", Some(1)), ("membership=x", None)]
    {
        let (name, value) = filter.split_once('=').expect("a filter");
        let filters = json!({name: [value]}).to_string();
        let (status, nodes) =
            api.call(Method::GET, &format!("/nodes?filters={}", crate::api::query::encoded(&filters)), None).await;
        assert_eq!(
            (status == StatusCode::OK).then(|| nodes.as_array().map(Vec::len).expect("a list")),
            count,
            "{filter}"
        );
    }
    api.call(Method::DELETE, "/services/web", None).await;
    api.refused(Method::GET, &tasks_with(&json!({"service": ["web"]})), None, 404, "no such service: web").await;
}

#[tokio::test]
async fn a_service_that_no_node_can_run_encrypted_gets_a_warning() {
    let api = Fixture::manager();
    api.post("/networks/create", json!({"Name": "secret", "Driver": "overlay", "Options": {"encrypted": ""}})).await;
    let on_secret = |name: &str| {
        let mut body = service(name);
        body["EndpointSpec"] = json!({});
        body["TaskTemplate"]["Networks"] = json!([{"Target": "secret"}]);
        body
    };
    assert_eq!(api.post("/services/create", on_secret("first")).await["Warnings"], json!([]));
    api.change(|t| {
        let encryption = EncryptionSupport::Unavailable("no TUN device".to_owned());
        let description = Box::new(NodeDescription { encryption, ..fixture::description(&[]) });
        t.ok(Command::DescribeNode { node: t.first_node(), description });
    });
    let warned = api.post("/services/create", on_secret("second")).await;
    assert!(warned["Warnings"][0].as_str().is_some_and(|text| text.contains("no node can encrypt")), "{warned}");
}

/// A service without ports, on these networks.
fn service_on(name: &str, networks: Value) -> Value {
    let spec = with(service(name), "/EndpointSpec/Ports", json!([]));
    with(spec, "/TaskTemplate/Networks", networks)
}

#[tokio::test]
async fn a_service_on_a_network_of_the_nodes_is_shown_as_in_swarm() {
    let api = Fixture::manager();
    for name in ["host", "bridge"] {
        let id = api.get(&format!("/networks/{name}?scope=swarm")).await["Id"].as_str().expect("an id").to_owned();
        // The weft client sends the name, and the docker client the id.
        for (service, target) in [("by-name", name), ("by-id", &id)] {
            let service = format!("{service}-{name}");
            api.post("/services/create", service_on(&service, json!([{"Target": target}]))).await;
            let shown = api.get(&format!("/services/{service}")).await;
            assert_eq!(shown["Spec"]["TaskTemplate"]["Networks"], json!([{"Target": id}]));
            assert_eq!(shown["Endpoint"]["VirtualIPs"], json!([{"NetworkID": id}]));
            // `docker service update` sends all of it back.
            let path = format!("/services/{service}/update?version={}", shown["Version"]["Index"]);
            api.post(&path, shown["Spec"].clone()).await;
        }
    }
    let without_vip = service_on("dnsrr", json!([{"Target": "host"}]));
    let without_vip = with(without_vip, "/EndpointSpec", json!({"Mode": "dnsrr"}));
    api.post("/services/create", without_vip).await;
    assert_eq!(api.get("/services/dnsrr").await["Endpoint"]["VirtualIPs"], Value::Null);
    let task = api.change(|t| {
        let (node, service) = (t.first_node(), t.state.service_by_name("by-name-host").expect("a service").id.clone());
        t.running_task(&service, 1, &node)
    });
    let host = api.get("/networks/host?scope=swarm").await;
    let shown = api.get(&format!("/tasks/{task}")).await;
    let attached = &shown["NetworksAttachments"];
    assert_eq!(attached.as_array().map(Vec::len), Some(1), "{shown}");
    assert_eq!((&attached[0]["Network"]["ID"], &attached[0]["Addresses"]), (&host["Id"], &Value::Null));
    assert_eq!(attached[0]["Network"]["Spec"]["Name"], "host");
    assert_eq!(host["Containers"].as_object().map(serde_json::Map::len), Some(1), "{host}");
}

#[tokio::test]
async fn refuses_a_network_of_the_nodes_with_what_it_cannot_have() {
    let api = Fixture::manager();
    api.network("app").await;
    for (networks, status, text) in [
        (
            json!([{"Target": "none"}]),
            404,
            "could not find the corresponding predefined swarm network: network none not found",
        ),
        (json!([{"Target": "missing"}]), 404, "no such network: missing"),
        (json!([{"Target": "host"}, {"Target": "host"}]), 400, "network host is attached twice"),
        (json!([{"Target": "host"}, {"Target": "app"}]), 400, "network host belongs to each node"),
        (json!([{"Target": "app"}, {"Target": "bridge"}]), 400, "network bridge belongs to each node"),
        (json!([{"Target": "bridge"}, {"Target": "host"}]), 400, "network host belongs to each node"),
        (json!([{"Target": "host", "Aliases": ["a"]}]), 400, "aliases are only supported for networks of the cluster"),
    ] {
        api.refused(Method::POST, "/services/create", Some(service_on("web", networks)), status, text).await;
    }
    let published = with(service("web"), "/TaskTemplate/Networks", json!([{"Target": "host"}]));
    let text = "a service on network host cannot publish ports: leave the ports out";
    api.refused(Method::POST, "/services/create", Some(published), 400, text).await;
    api.change(|t| t.state.feature_level = 0);
    let early = service_on("web", json!([{"Target": "host"}]));
    api.refused(Method::POST, "/services/create", Some(early), 409, "upgrade all managers").await;
}
