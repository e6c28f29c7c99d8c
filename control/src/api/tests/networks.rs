//! Tests of networks.

use super::*;

#[tokio::test]
async fn networks_are_created_shown_and_removed() {
    let api = Fixture::manager();
    let body = json!({
        "CheckDuplicate": true, "Name": "app", "Driver": "overlay", "Scope": "", "EnableIPv6": true, "Internal": false,
        "Attachable": true, "Ingress": false, "ConfigOnly": false, "ConfigFrom": null,
        "IPAM": {"Driver": "default", "Options": {"com.docker.network.ipam.serial": "true"}, "Config": [
            {"Subnet": "fd00:1::/64", "AuxiliaryAddresses": {"a": "fd00:1::a"}},
            {
                "Subnet": "10.7.0.0/24", "Gateway": "10.7.0.254", "IPRange": "10.7.0.128/25",
                "AuxiliaryAddresses": {"printer": "10.7.0.200", "router": "10.7.0.9"},
            },
        ]},
        "Options": {"com.docker.network.driver.mtu": "1400", "com.docker.network.driver.overlay.vxlanid_list": "7000"},
        "Labels": {"a": "b"},
    });
    let made = api.post("/v1.41/networks/create", body.clone()).await;
    let id = made["Id"].as_str().expect("an id");
    let shown = api.get("/networks/app").await;
    assert_eq!(shown["Id"], id);
    for (field, value) in [
        ("Driver", json!("overlay")),
        ("Scope", json!("swarm")),
        ("EnableIPv6", json!(true)),
        ("Attachable", json!(true)),
        ("Ingress", json!(false)),
        ("Labels", json!({"a": "b"})),
        ("Options", body["Options"].clone()),
    ] {
        assert_eq!(shown[field], value, "{field}");
    }
    assert_eq!(
        shown["IPAM"],
        json!({"Driver": "default", "Options": {"com.docker.network.ipam.serial": "true"}, "Config": [
            {
                "Subnet": "10.7.0.0/24", "Gateway": "10.7.0.254", "IPRange": "10.7.0.128/25",
                "AuxiliaryAddresses": {"printer": "10.7.0.200", "router": "10.7.0.9"},
            },
            {"Subnet": "fd00:1::/64", "Gateway": "fd00:1::1", "AuxiliaryAddresses": {"a": "fd00:1::a"}},
        ]})
    );
    let ingress = api.get("/networks/ingress").await;
    assert_eq!((&ingress["Ingress"], &ingress["Scope"]), (&json!(true), &json!("swarm")));
    assert_eq!(api.get("/networks").await.as_array().map(Vec::len), Some(2));
    let custom = api.get("/networks?filters=%7B%22type%22%3A%7B%22custom%22%3Atrue%7D%7D").await;
    assert_eq!(custom.as_array().map(Vec::len), Some(1));

    let mut service = service("web");
    service["TaskTemplate"]["Networks"] = json!([{"Target": "app", "Aliases": ["w"]}]);
    api.post("/services/create", service).await;
    api.refused(Method::DELETE, "/networks/app", None, 409, "in use by").await;
    let verbose = api.get("/networks/app?verbose=true").await;
    assert!(verbose["Services"]["web"]["VIP"].as_str().is_some_and(|vip| vip.starts_with("10.7.0.")), "{verbose}");
    api.call(Method::DELETE, "/services/web", None).await;
    api.refused(Method::GET, "/networks/none", None, 404, "no such network: none").await;

    let subnet = |text: &str| json!([{"Subnet": text}]);
    for (path, value, status, text) in [
        ("/Name", json!("-x"), 400, "not a valid network name"),
        ("/Driver", json!("macvlan"), 501, "container engine"),
        ("/Options/encrypted", json!("false"), 400, "leave the option out"),
        ("/Options/mtu", json!("1400"), 501, "network option mtu"),
        ("/Ingress", json!(true), 400, "has the ingress network ingress already: remove it first"),
        ("/Options/com.docker.network.driver.mtu", json!("500"), 400, "IPv6 needs at least 1280"),
        ("/Options/com.docker.network.driver.overlay.vxlanid_list", json!("7000"), 409, "VNI 7000 is in use by"),
        ("/Scope", json!("local"), 501, "Scope"),
        ("/ConfigFrom", json!({"Network": "none"}), 400, "no configuration-only network none"),
        ("/EnableIPv4", json!(false), 400, "subnet 10.7.0.0/24 is IPv4: leave --ipv4=false out"),
        ("/IPAM/Driver", json!("dhcp"), 501, "IPAM"),
        ("/IPAM/Options/x", json!("y"), 501, "the IPAM option x=y"),
        ("/IPAM/Config", subnet("10.9.0.1/24"), 400, "did you mean 10.9.0.0/24?"),
        ("/IPAM/Config", subnet("10.9.0.0"), 400, "prefix length"),
        ("/IPAM/Config", subnet("10.9.0.0/33"), 400, "invalid subnet"),
        ("/IPAM/Config", json!([{"Gateway": "10.9.0.1"}]), 400, "needs its subnet"),
        ("/IPAM/Config", json!([{"Subnet": "10.9.0.0/24", "Gateway": "10.8.0.1"}]), 400, "not inside"),
        ("/IPAM/Config", json!([{"Subnet": "10.9.0.0/24"}, {"Subnet": "10.9.0.0/25"}]), 400, "overlap: choose others"),
        (
            "/IPAM/Config",
            json!([{"Subnet": "10.9.0.0/24", "AuxiliaryAddresses": {"r": "10.8.0.9"}}]),
            400,
            "auxiliary address r 10.8.0.9 is not inside",
        ),
    ] {
        let other = with(body.clone(), "/Name", json!("other"));
        // Without the VNI, which the first network has.
        let other = with(other, "/Options", json!({"com.docker.network.driver.mtu": "1400"}));
        let bad = with(other, path, value);
        api.refused(Method::POST, "/networks/create", Some(bad), status, text).await;
    }
    let v6_only = with(body.clone(), "/EnableIPv6", json!(false));
    api.refused(Method::POST, "/networks/create", Some(v6_only), 400, "add --ipv6").await;
    api.refused(Method::POST, "/networks/create", Some(body), 409, "name app is in use").await;
}

#[tokio::test]
async fn encrypted_networks_are_created_and_shown_as_in_docker() {
    let api = Fixture::manager();
    let body = json!({"Name": "secret", "Driver": "overlay", "Options": {"encrypted": ""}});
    api.post("/networks/create", body).await;
    let shown = api.get("/networks/secret").await;
    assert_eq!(shown["Options"]["encrypted"], "", "{shown}");
    assert!(api.change(|t| t.state.network_by_name("secret").is_some_and(|network| network.spec.encrypted)));
    api.network("clear").await;
    assert_eq!(api.get("/networks/clear").await["Options"].get("encrypted"), None);
}

#[tokio::test]
async fn the_ingress_network_is_replaced_while_no_service_uses_it() {
    let api = Fixture::manager();
    api.post("/services/create", service("web")).await;
    api.refused(Method::DELETE, "/networks/ingress", None, 409, "in use by service web").await;
    api.call(Method::DELETE, "/services/web", None).await;
    let id = api.change(|t| t.state.services.keys().next().expect("the removed service").clone());
    api.change(|t| t.ok(Command::ForgetService { id }));
    assert_eq!(api.call(Method::DELETE, "/networks/ingress", None).await.0, StatusCode::NO_CONTENT);
    let text = "no ingress network for services without --network";
    api.refused(Method::POST, "/services/create", Some(service("web")), 400, text).await;
    let body = json!({
        "Name": "mine", "Driver": "overlay", "Ingress": true, "Options": {"encrypted": ""},
        "IPAM": {"Config": [{"Subnet": "10.11.0.0/16", "Gateway": "10.11.0.2"}]},
    });
    api.post("/networks/create", body).await;
    let shown = api.get("/networks/mine").await;
    assert_eq!((&shown["Ingress"], &shown["Options"]["encrypted"]), (&json!(true), &json!("")));
    api.post("/services/create", service("web")).await;
    let attached = api.change(|t| t.state.service_by_name("web").expect("the service").endpoints[0].network.clone());
    assert_eq!(shown["Id"], attached.as_str());
}

#[tokio::test]
async fn a_network_has_several_subnets_or_no_ipv4() {
    let api = Fixture::manager();
    let configs = json!([
        {"Subnet": "10.7.0.0/24", "Gateway": "10.7.0.1"}, {"Subnet": "fd00:7::/64", "Gateway": "fd00:7::1"},
        {"Subnet": "10.8.0.0/24", "Gateway": "10.8.0.9"},
    ]);
    let body = json!({"Name": "two", "Driver": "overlay", "EnableIPv6": true, "IPAM": {"Config": configs}});
    api.post("/networks/create", body).await;
    let mut shown = api.get("/networks/two").await["IPAM"]["Config"].clone();
    shown.as_array_mut().expect("a list").swap(1, 2);
    assert_eq!(shown, configs, "IPv4 first");

    let body = |ipv6: bool| json!({"Name": "six", "Driver": "overlay", "EnableIPv4": false, "EnableIPv6": ipv6});
    api.refused(Method::POST, "/networks/create", Some(body(false)), 400, "needs IPv4 or IPv6").await;
    api.post("/networks/create", body(true)).await;
    let shown = api.get("/networks/six").await;
    assert_eq!((&shown["EnableIPv4"], &shown["EnableIPv6"]), (&json!(false), &json!(true)));
    let subnets = shown["IPAM"]["Config"].as_array().expect("a list");
    assert!(subnets.len() == 1 && subnets[0]["Subnet"].as_str().is_some_and(|s| s.starts_with("fd")), "{shown}");
    let mut service = service("web");
    service["TaskTemplate"]["Networks"] = json!([{"Target": "six"}]);
    api.post("/services/create", service).await;
    let vip = &api.get("/services/web").await["Endpoint"]["VirtualIPs"][1]["Addr"];
    assert!(vip.as_str().is_some_and(|vip| vip.starts_with("fd") && vip.ends_with("/64")), "{vip}");
}

/// Prometheus makes a target of each address of a task, and Traefik takes the last one.
#[tokio::test]
async fn only_addresses_of_the_families_of_a_network_are_shown() {
    let api = Fixture::manager();
    for (network, ipv4, ipv6) in [("four", true, false), ("both", true, true), ("six", false, true)] {
        let body = json!({"Name": network, "Driver": "overlay", "EnableIPv4": ipv4, "EnableIPv6": ipv6});
        api.post("/networks/create", body).await;
        let mut web = with(service(&format!("on-{network}")), "/EndpointSpec/Ports", json!([]));
        web["TaskTemplate"]["Networks"] = json!([{"Target": network}]);
        let id: weft_model::ServiceId =
            api.post("/services/create", web).await["ID"].as_str().expect("an id").parse().expect("an id");
        let task = api.change(|t| {
            let node = t.first_node();
            t.running_task(&id, 1, &node)
        });
        let families = |texts: Vec<&str>| texts.into_iter().map(|text| text.contains(':')).collect::<Vec<_>>();
        let expected = [(ipv4, false), (ipv6, true)].into_iter().filter(|(on, _)| *on).map(|(_, v6)| v6);
        let expected: Vec<bool> = expected.collect();

        let shown = api.get(&format!("/tasks/{task}")).await;
        let attached = &shown["NetworksAttachments"][0];
        let addresses = attached["Addresses"].as_array().expect("a list");
        assert_eq!(families(addresses.iter().filter_map(Value::as_str).collect()), expected, "{attached}");
        let subnets = attached["Network"]["IPAMOptions"]["Configs"].as_array().expect("a list");
        assert_eq!(families(subnets.iter().filter_map(|config| config["Subnet"].as_str()).collect()), expected);

        let inspected = api.get(&format!("/networks/{network}?verbose=true")).await;
        let (_, container) = inspected["Containers"].as_object().expect("an object").iter().next().expect("the task");
        assert_eq!(container["IPv4Address"] != "", ipv4, "{container}");
        assert_eq!(container["IPv6Address"] != "", ipv6, "{container}");
        let vips = api.get(&format!("/services/{id}")).await["Endpoint"]["VirtualIPs"].clone();
        let vip = vips[0]["Addr"].as_str().expect("an address");
        assert!(vip.contains(':') != ipv4 && vips[1].is_null(), "{vips}");
        let listed = &inspected["Services"][format!("on-{network}")];
        for ip in [&listed["VIP"], &listed["Tasks"][0]["EndpointIP"]] {
            assert_eq!(ip.as_str().expect("an address").contains(':'), !ipv4, "{listed}");
        }
    }
}

#[tokio::test]
async fn networks_take_their_options_from_a_configuration() {
    let api = Fixture::manager();
    let mtu = json!({"com.docker.network.driver.mtu": "1400"});
    let options = json!({
        "Name": "options", "Driver": "overlay", "ConfigOnly": true, "Labels": {"a": "1", "b": "1"},
        "IPAM": {"Config": [{"Subnet": "10.7.0.0/24", "Gateway": "10.7.0.9"}]}, "Options": mtu,
    });
    api.post("/networks/create", options.clone()).await;
    let create = |name: &str, body: Value| {
        let fields = json!({"Name": name, "Driver": "overlay", "ConfigFrom": {"Network": "options"}});
        let fields = fields.as_object().cloned().expect("an object");
        Value::Object(body.as_object().cloned().expect("an object").into_iter().chain(fields).collect())
    };
    api.post("/networks/create", create("app", json!({"Labels": {"b": "2"}, "Internal": true}))).await;
    let shown = api.get("/networks/app").await;
    assert_eq!(shown["IPAM"]["Config"], json!([{"Subnet": "10.7.0.0/24", "Gateway": "10.7.0.9"}]));
    assert_eq!(shown["Options"]["com.docker.network.driver.mtu"], "1400");
    assert_eq!(shown["Labels"], json!({"a": "1", "b": "2"}));
    assert_eq!((&shown["Internal"], &shown["ConfigFrom"]["Network"]), (&json!(true), &json!("options")));
    let configuration = api.get("/networks/options").await;
    assert_eq!((&configuration["ConfigOnly"], &configuration["Driver"]), (&json!(true), &json!("null")));
    assert_eq!(api.get("/networks").await.as_array().map(Vec::len), Some(3), "with the ingress network");

    let path = "/networks/create";
    api.refused(Method::POST, path, Some(options.clone()), 409, "name options is in use").await;
    let both = create("x", json!({"Options": mtu}));
    api.refused(Method::POST, path, Some(both), 400, "takes its options from options").await;
    let internal = with(with(options, "/Name", json!("y")), "/Internal", json!(true));
    api.refused(Method::POST, path, Some(internal), 400, "only holds options").await;
    let mut web = service("web");
    web["TaskTemplate"]["Networks"] = json!([{"Target": "options"}]);
    api.refused(Method::POST, "/services/create", Some(web), 400, "--config-from options").await;
    api.refused(Method::DELETE, "/networks/options", None, 409, "in use by network app").await;
    for name in ["app", "options"] {
        assert_eq!(api.call(Method::DELETE, &format!("/networks/{name}"), None).await.0, StatusCode::NO_CONTENT);
    }
}

#[tokio::test]
async fn a_network_is_removed_after_the_tasks_of_a_removed_service_release_their_addresses() {
    let api = Fixture::manager();
    api.network("app").await;
    let mut web = service("web");
    web["TaskTemplate"]["Networks"] = json!([{"Target": "app"}]);
    api.post("/services/create", web).await;
    let (id, task) = api.change(|t| {
        let (id, node) = (t.state.service_by_name("web").expect("the service").id.clone(), t.first_node());
        let task = t.running_task(&id, 1, &node);
        (id, task)
    });
    api.call(Method::DELETE, "/services/web", None).await;
    let leave = async {
        api.change(|t| {
            t.observe(&task, weft_model::state::TaskState::Shutdown);
            t.ok(Command::ForgetTask { id: task.clone() });
            t.ok(Command::ForgetService { id: id.clone() });
        });
    };
    let (removed, ()) = tokio::join!(api.call(Method::DELETE, "/networks/app", None), leave);
    assert_eq!(removed.0, StatusCode::NO_CONTENT, "{}", removed.1);
}

#[tokio::test]
async fn the_networks_of_the_nodes_are_found_and_not_listed_as_in_swarm() {
    let api = Fixture::manager();
    for name in ["host", "bridge"] {
        let found = api.get(&format!("/networks/{name}?scope=swarm")).await;
        let id = found["Id"].as_str().expect("an id");
        assert_eq!(found, api.get(&format!("/networks/{id}")).await);
        assert_eq!(found, api.get(&format!("/networks/{name}")).await, "this node has no engine");
        for (field, value) in [
            ("Name", json!(name)),
            ("Driver", json!(name)),
            ("Scope", json!("swarm")),
            ("Labels", json!({"com.docker.swarm.predefined": "true"})),
            ("Containers", json!({})),
        ] {
            assert_eq!(found[field], value, "{field}");
        }
        let text = format!("network {id} ({name}) is a swarm predefined network and cannot be removed");
        api.refused(Method::DELETE, &format!("/networks/{name}"), None, 403, &text).await;
        api.refused(Method::DELETE, &format!("/networks/{id}"), None, 403, &text).await;
    }
    assert_eq!(api.get("/networks").await.as_array().map(Vec::len), Some(1));
    for name in ["host", "bridge", "none", "default"] {
        let body = json!({"Name": name, "Driver": "overlay"});
        let text = format!("operation is not permitted on predefined {name} network");
        api.refused(Method::POST, "/networks/create", Some(body), 403, &text).await;
    }
}

#[tokio::test]
async fn a_network_of_an_earlier_release_keeps_its_reserved_name() {
    let api = Fixture::manager();
    let id = api.change(|t| t.add_network(fixture::network_spec("host")));
    assert_eq!(api.get("/networks/host").await["Id"], id.as_str());
    assert_eq!(api.get("/networks/host?scope=swarm").await["Id"], id.as_str());
    let mut web = service("web");
    web["TaskTemplate"]["Networks"] = json!([{"Target": "host"}]);
    api.post("/services/create", web).await;
    let shown = api.get("/services/web").await;
    assert_eq!(shown["Spec"]["TaskTemplate"]["Networks"], json!([{"Target": id.as_str()}]));
    api.change(|t| t.add_network(fixture::network_spec("bridge")));
    assert_eq!(api.call(Method::DELETE, "/networks/bridge", None).await.0, StatusCode::NO_CONTENT);
    assert_eq!(api.get("/networks/bridge").await["Driver"], "bridge");
}
