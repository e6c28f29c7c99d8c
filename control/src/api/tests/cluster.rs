//! Tests of the cluster and its nodes.

use weft_model::{
    report::NodeDescription,
    state::KeyStage,
    wireguard::{EncryptionSupport, NodeKey, PublicKey},
};

use super::*;

#[tokio::test]
async fn init_and_join_accept_the_requests_of_clients() {
    let api = Fixture::new(Membership::None, None);
    let body = json!({
        "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "192.0.2.1", "DataPathAddr": "", "DataPathPort": 0,
        "ForceNewCluster": false, "AutoLockManagers": true, "Availability": "drain", "DefaultAddrPool": null, "SubnetSize": 0,
        "Spec": {
            "Labels": null, "Orchestration": {}, "Raft": {"ElectionTick": 0, "HeartbeatTick": 0},
            "Dispatcher": {"HeartbeatPeriod": 1_000_000_000u64, "HeartbeatMisses": 5}, "CAConfig": {}, "TaskDefaults": {},
            "EncryptionConfig": {"AutoLockManagers": true},
        },
    });
    let node = api.post("/v1.50/swarm/init", body.clone()).await;
    assert_eq!(node.as_str().map(str::len), Some(25));
    let join = json!({"ListenAddr": "", "AdvertiseAddr": "", "RemoteAddrs": ["192.0.2.1"], "JoinToken": "SWMTKN-1-x", "Availability": "active"});
    api.post("/swarm/join", join.clone()).await;
    {
        let requests = api.member.requests.lock().unwrap_or_else(PoisonError::into_inner);
        for part in
            ["Some(192.0.2.1)", "0.0.0.0:2377", "heartbeat_ms: 1000", "heartbeat_misses: 5", "auto_lock: true", "Drain"]
        {
            assert!(requests[0].contains(part), "{}: no {part}", requests[0]);
        }
        assert!(requests[1].contains("192.0.2.1:2377"), "{}", requests[1]);
    }
    for (path, body, status, text) in [
        ("/swarm/init", with(body.clone(), "/AutoLockManagers", json!("yes")), 400, "give true or false"),
        ("/swarm/init", json!({"ForceNewCluster": true, "AutoLockManagers": true}), 400, "keeps its settings"),
        ("/swarm/init", json!({"ForceNewCluster": true, "DataPathPort": 5000}), 400, "leave --data-path-addr and"),
        ("/swarm/init", json!({"ForceNewCluster": true, "DataPathAddr": "192.0.2.1"}), 400, "leave --data-path-addr"),
        ("/swarm/init", json!({"ForceNewCluster": true, "ListenAddr": "192.0.2.1"}), 400, "leave --listen-addr out"),
        ("/swarm/init", with(body.clone(), "/DataPathPort", json!(77_890)), 400, "--data-path-port"),
        ("/swarm/init", with(body.clone(), "/DataPathAddr", json!("nowhere0")), 400, "invalid data path address"),
        ("/swarm/init", with(body.clone(), "/ForceNewCluster", json!(true)), 400, "keeps its settings"),
        ("/swarm/init", with(body.clone(), "/AdvertiseAddr", json!("nowhere0")), 400, "name of an interface"),
        ("/swarm/init", with(body.clone(), "/Availability", json!("asleep")), 400, "use active, pause or drain"),
        ("/swarm/init", with(body.clone(), "/Spec/Raft/SnapshotInterval", json!(500)), 501, "Raft settings"),
        ("/swarm/init", with(body, "/Spec/CAConfig/NodeCertExpiry", json!(1_000_000_000)), 400, "one hour"),
        ("/swarm/join", with(join, "/JoinToken", json!("")), 400, "no join token"),
    ] {
        api.refused(Method::POST, path, Some(body), status, text).await;
    }
    api.refused(Method::POST, "/swarm/leave", None, 503, "Use --force").await;
    assert_eq!(api.call(Method::POST, "/swarm/leave?force=1", None).await.0, StatusCode::OK);
}

#[tokio::test]
async fn the_cluster_is_shown_and_updated_and_its_tokens_are_rotated() {
    let api = Fixture::manager();
    let swarm = api.get("/swarm").await;
    assert_eq!(swarm["JoinTokens"], json!({"Worker": "SWMTKN-1-Worker", "Manager": "SWMTKN-1-Manager"}));
    let version = &swarm["Version"]["Index"];
    // `docker swarm join-token --rotate` sends the spec back unchanged.
    api.post(&format!("/swarm/update?version={version}&rotateWorkerToken=true"), swarm["Spec"].clone()).await;
    assert_eq!(api.change(|t| t.state.cluster.clone()).expect("a cluster").worker_secret, "rotated");

    let swarm = api.get("/swarm").await;
    let version = &swarm["Version"]["Index"];
    let changed = with(swarm["Spec"].clone(), "/Orchestration/TaskHistoryRetentionLimit", json!(2));
    api.post(&format!("/swarm/update?version={version}"), changed.clone()).await;
    assert_eq!(api.get("/swarm").await["Spec"]["Orchestration"]["TaskHistoryRetentionLimit"], 2);
    let stale = with(changed.clone(), "/Orchestration/TaskHistoryRetentionLimit", json!(3));
    api.refused(Method::POST, &format!("/swarm/update?version={version}"), Some(stale), 409, "out of sequence").await;
    // The same spec does not begin a rotation; another number does.
    assert_eq!(api.get("/swarm").await["RootRotationInProgress"], false);
    let version = api.get("/swarm").await["Version"]["Index"].clone();
    let path = format!("/swarm/update?version={version}");
    for (field, value, status, text) in [
        ("SigningCACert", json!("cert"), 400, "--ca-key"),
        ("SigningCAKey", json!("key"), 400, "--ca-cert"),
        (
            "ExternalCAs",
            json!([{"Protocol": "cfssl", "URL": "https://ca.test"}]),
            501,
            "external certificate authorities",
        ),
    ] {
        let mut body = changed.clone();
        body["CAConfig"][field] = value;
        api.refused(Method::POST, &path, Some(body), status, text).await;
    }
    let mut forced = changed.clone();
    forced["CAConfig"]["ForceRotate"] = json!(1);
    api.post(&path, forced.clone()).await;
    let swarm = api.get("/swarm").await;
    assert_eq!(
        (&swarm["RootRotationInProgress"], &swarm["Spec"]["CAConfig"]["ForceRotate"]),
        (&json!(true), &json!(1))
    );
    let mut own = forced;
    own["CAConfig"]["SigningCACert"] = json!("own");
    own["CAConfig"]["SigningCAKey"] = json!("key");
    api.post(&format!("/swarm/update?version={}", swarm["Version"]["Index"]), own).await;
    let rotation = api.change(|t| t.state.cluster.clone()).expect("a cluster").root_rotation.expect("a rotation");
    assert_eq!((rotation.ca_cert_pem.as_str(), rotation.ca_key_sealed), ("own", b"key".to_vec()));
    let shown = api.get("/swarm").await.to_string();
    assert!(!shown.contains("SigningCAKey"), "{shown}");
}

#[tokio::test]
async fn the_authority_and_the_settings_of_raft_are_shown() {
    let api = Fixture::manager();
    let ca = crate::pki::Ca::create().expect("an authority");
    api.change(|t| t.state.cluster.as_mut().expect("a cluster").ca_cert_pem = ca.cert_pem().to_owned());
    let swarm = api.get("/swarm").await;
    let info = api.get("/info").await;
    let node = api.get("/nodes/self").await;
    for shown in [&swarm["TLSInfo"], &info["Swarm"]["Cluster"]["TLSInfo"], &node["Description"]["TLSInfo"]] {
        assert_eq!(shown["TrustRoot"], ca.cert_pem());
        let issuer = crate::pki::issuer_of(ca.cert_pem()).expect("an issuer");
        for (field, der) in [("CertIssuerSubject", issuer.subject), ("CertIssuerPublicKey", issuer.public_key)] {
            assert_eq!(shown[field], base64::Engine::encode(&base64::prelude::BASE64_STANDARD, der), "{field}");
        }
    }
    let raft = json!({
        "SnapshotInterval": 2_000, "KeepOldSnapshots": 0, "LogEntriesForSlowFollowers": 1_000, "ElectionTick": 6,
        "HeartbeatTick": 1,
    });
    assert_eq!(swarm["Spec"]["Raft"], raft);
    assert_eq!(swarm["Spec"]["CAConfig"], json!({"NodeCertExpiry": 7_776_000_000_000_000u64, "ForceRotate": 0}));
    assert_eq!(info["Swarm"]["Cluster"]["Spec"], swarm["Spec"]);
    // Clients send the settings back. Others cannot be chosen.
    let path = format!("/swarm/update?version={}", swarm["Version"]["Index"]);
    let other = with(swarm["Spec"].clone(), "/Raft/SnapshotInterval", json!(10_000));
    api.refused(Method::POST, &path, Some(other), 501, "Raft settings").await;
    api.post(&path, swarm["Spec"].clone()).await;
}

#[tokio::test]
async fn the_last_manager_is_not_demoted_and_the_refusals_are_swarms() {
    let api = Fixture::manager();
    let shown = api.get("/nodes/n1").await;
    let path = format!("/nodes/n1/update?version={}", shown["Version"]["Index"]);
    let demoted = with(shown["Spec"].clone(), "/Role", json!("worker"));
    let text = "attempting to demote the last manager of the swarm";
    api.refused(Method::POST, &path, Some(demoted), 400, text).await;
    let text = "is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal";
    api.refused(Method::DELETE, "/nodes/n1?force=1", None, 400, text).await;
    api.change(|t| t.node("n2", &[]));
    api.refused(Method::DELETE, "/nodes/n2", None, 400, "is not down and can't be removed").await;
}

#[tokio::test]
async fn managers_are_locked_and_their_key_is_shown_and_rotated() {
    let api = Fixture::manager();
    assert_eq!(api.get("/swarm/unlockkey").await, json!({"UnlockKey": ""}));
    let path =
        async |flags: &str| format!("/swarm/update?version={}{flags}", api.get("/swarm").await["Version"]["Index"]);
    let rotate = "&rotateManagerUnlockKey=true";
    let spec = api.get("/swarm").await["Spec"].clone();
    api.refused(Method::POST, &path(rotate).await, Some(spec.clone()), 400, "autolock is not turned on").await;
    let locked = with(spec.clone(), "/EncryptionConfig/AutoLockManagers", json!(true));
    api.post(&path("").await, locked.clone()).await;
    assert_eq!(api.get("/swarm").await["Spec"], locked);
    let key = async || api.get("/swarm/unlockkey").await["UnlockKey"].as_str().expect("a key").to_owned();
    let first = key().await;
    assert!(first.starts_with("SWMKEY-1-"), "{first}");
    // An update of other settings, by a client that does not know the field.
    let mut other = with(locked.clone(), "/Orchestration/TaskHistoryRetentionLimit", json!(2));
    other.as_object_mut().expect("an object").remove("EncryptionConfig");
    api.post(&path("").await, other).await;
    assert_eq!(key().await, first);
    let spec = api.get("/swarm").await["Spec"].clone();
    api.post(&path(rotate).await, spec.clone()).await;
    assert_ne!(key().await, first);
    assert_eq!(api.get("/swarm").await["Spec"], spec);
    for shown in ["/swarm", "/info"] {
        assert!(!api.get(shown).await.to_string().contains(&key().await[9..]), "{shown} shows the key");
    }
    let both = with(spec.clone(), "/CAConfig/ForceRotate", json!(7));
    api.refused(Method::POST, &path(rotate).await, Some(both), 400, "send two").await;
    api.refused(Method::POST, "/swarm/unlock", Some(json!({"UnlockKey": first})), 409, "swarm is not locked").await;
    api.post(&path("").await, with(spec, "/EncryptionConfig/AutoLockManagers", json!(false))).await;
    assert_eq!(api.get("/swarm/unlockkey").await, json!({"UnlockKey": ""}));
}

#[tokio::test]
async fn a_locked_manager_says_so_and_is_unlocked() {
    let api = Fixture::new(Membership::Locked, None);
    let info = api.get("/info").await;
    assert_eq!(info["Swarm"]["LocalNodeState"], "locked");
    let text = "Swarm is encrypted and needs to be unlocked before it can be used.";
    assert!(info["Swarm"]["Error"].as_str().is_some_and(|error| error.starts_with(text)), "{info}");
    for path in ["/swarm", "/swarm/unlockkey", "/nodes", "/services", "/tasks", "/networks", "/events"] {
        api.refused(Method::GET, path, None, 503, text).await;
    }
    api.refused(Method::POST, "/services/create", Some(service("web")), 503, text).await;
    let unlock = |key: &UnlockKey| Some(json!({"UnlockKey": key.to_text()}));
    let bad = Some(json!({"UnlockKey": "SWMTKN-1-x"}));
    api.refused(Method::POST, "/swarm/unlock", bad, 400, "invalid key string").await;
    let wrong = unlock(&UnlockKey([8; 32]));
    api.refused(Method::POST, "/swarm/unlock", wrong, 401, "swarm could not be unlocked: invalid key provided").await;
    let (status, answer) = api.call(Method::POST, "/swarm/unlock", unlock(&UnlockKey([7; 32]))).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let outside = Fixture::new(Membership::None, None);
    outside.refused(Method::POST, "/swarm/unlock", unlock(&UnlockKey([7; 32])), 503, "not a swarm manager").await;
    let unknown = Some(json!({"UnlockKey": "", "Force": true}));
    // The Engine API has no field `Force`, so it is ignored.
    api.refused(Method::POST, "/swarm/unlock", unknown, 400, "invalid key string").await;
}

#[tokio::test]
async fn the_rotation_period_of_encryption_keys_is_shown_and_changed() {
    let api = Fixture::manager();
    let swarm = api.get("/swarm").await;
    assert_eq!(swarm["Spec"]["EncryptionConfig"]["KeyRotationPeriod"], 12 * 3_600 * 1_000_000_000_i64);
    let path = format!("/swarm/update?version={}", swarm["Version"]["Index"]);
    for (value, status, text) in [
        (json!("1h"), 400, "number of nanoseconds"),
        (json!(-1), 400, "negative"),
        (json!(5_000_000_000_u64), 400, "10s or longer"),
    ] {
        let bad = with(swarm["Spec"].clone(), "/EncryptionConfig/KeyRotationPeriod", value);
        api.refused(Method::POST, &path, Some(bad), status, text).await;
    }
    let hour = 3_600_000_000_000_u64;
    api.post(&path, with(swarm["Spec"].clone(), "/EncryptionConfig/KeyRotationPeriod", json!(hour))).await;
    let changed = api.get("/swarm").await;
    assert_eq!(changed["Spec"]["EncryptionConfig"], json!({"AutoLockManagers": false, "KeyRotationPeriod": hour}));
    // The docker client does not know the field, and sends the spec without it.
    let without = with(changed["Spec"].clone(), "/EncryptionConfig", json!({"AutoLockManagers": false}));
    api.post(&format!("/swarm/update?version={}", changed["Version"]["Index"]), without).await;
    assert_eq!(api.get("/swarm").await["Spec"]["EncryptionConfig"]["KeyRotationPeriod"], hour);
}

#[tokio::test]
async fn nodes_and_info_show_how_a_node_encrypts() {
    let api = Fixture::manager();
    let key = NodeKey { public_key: PublicKey([7; 32]), port: 51820 };
    api.change(|t| {
        let node = t.first_node();
        t.ok(Command::ReportKeys { node: node.clone(), keys: vec![key], acked: 0 });
        t.ok(Command::SetKeyStage { node, key: key.public_key, stage: KeyStage::Active });
        let n2 = t.node("n2", &[]);
        let encryption = EncryptionSupport::Unavailable("no TUN device".to_owned());
        let machine = NodeDescription { encryption, ..fixture::description(&[]) };
        t.ok(Command::DescribeNode { node: n2, description: Box::new(machine) });
    });
    let shown = &api.get("/nodes/n1").await["Description"]["Encryption"];
    assert_eq!((&shown["Path"], &shown["Keys"][0]["State"]), (&json!("kernel"), &json!("active")));
    assert_eq!(shown["Keys"][0]["PublicKey"], "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=");
    assert_eq!(shown["Keys"][0]["CreatedAt"], "2023-11-14T22:13:20Z");
    let other = &api.get("/nodes/n2").await["Description"]["Encryption"];
    assert_eq!(*other, json!({"Path": "unavailable", "Reason": "no TUN device", "Keys": []}));
    assert_eq!(api.get("/info").await["Swarm"]["Encryption"], json!({"Path": "kernel", "Keys": []}));
}

#[tokio::test]
async fn the_address_pools_are_shown_and_change() {
    let api = Fixture::manager();
    let swarm = api.get("/swarm").await;
    assert_eq!((&swarm["DefaultAddrPool"], &swarm["SubnetSize"]), (&json!(["10.0.0.0/8"]), &json!(24)));
    let path = |swarm: &Value| format!("/swarm/update?version={}", swarm["Version"]["Index"]);
    let pools = json!(["10.20.0.0/16", "10.30.0.0/16"]);
    let spec = with(swarm["Spec"].clone(), "/DefaultAddrPool", pools.clone());
    api.post(&path(&swarm), with(spec, "/SubnetSize", json!(25))).await;
    // A client that does not know the fields leaves them out, and changes nothing.
    let changed = api.get("/swarm").await;
    let mut spec = changed["Spec"].clone();
    for field in ["DefaultAddrPool", "SubnetSize"] {
        spec.as_object_mut().expect("an object").remove(field);
    }
    api.post(&path(&changed), with(spec, "/Orchestration/TaskHistoryRetentionLimit", json!(2))).await;
    let swarm = api.get("/swarm").await;
    assert_eq!((&swarm["DefaultAddrPool"], &swarm["SubnetSize"]), (&pools, &json!(25)));
    for (pools, text) in [
        (json!(["10.20.0.0/16", "10.20.1.0/24"]), "overlap"),
        (json!(["fd00::/48"]), "give an IPv4 subnet"),
        (json!("10.20.0.0/16"), "must be a list"),
    ] {
        let bad = with(swarm["Spec"].clone(), "/DefaultAddrPool", pools);
        api.refused(Method::POST, &path(&swarm), Some(bad), 400, text).await;
    }
}

/// The fixture says that every manager answers.
#[tokio::test]
async fn a_manager_is_reachable_only_once_it_votes() {
    let api = Fixture::manager();
    let id = api.change(|t| {
        let join = t.joining("n2", Role::Manager);
        t.ok(Command::JoinNode(Box::new(join.clone())));
        join.id
    });
    let shown = async || {
        let node = api.get("/nodes/n2").await;
        (node["ManagerStatus"]["Reachability"].clone(), node["Status"]["Message"].clone())
    };
    assert_eq!(shown().await, (json!("unknown"), json!("becoming a manager: it does not vote yet")));
    api.change(|t| t.ok(Command::SetVoter { id: id.clone(), voter: true }));
    assert_eq!(shown().await, (json!("reachable"), Value::Null));
}

#[tokio::test]
async fn nodes_are_listed_found_updated_and_removed() {
    let api = Fixture::manager();
    let worker = api.change(|t| t.node("n2", &[]));
    assert_eq!(api.get("/nodes").await.as_array().map(Vec::len), Some(2));
    for filters in [r#"{"role":["Manager"]}"#, r#"{"role":["WORKER",""]}"#, r#"{"membership":["pending"]}"#, "null"] {
        api.get(&format!("/nodes?filters={}", crate::api::query::encoded(filters))).await;
    }
    let managers = api.get("/nodes?filters=%7B%22role%22%3A%5B%22manager%22%5D%7D").await;
    assert_eq!(managers[0]["Description"]["Hostname"], "n1");
    assert_eq!(
        managers[0]["ManagerStatus"],
        json!({"Leader": true, "Reachability": "reachable", "Addr": "192.0.2.1:2377"})
    );
    for name in ["n2", worker.as_str(), &worker.as_str()[..24]] {
        let (status, node) = api.call(Method::GET, &format!("/nodes/{name}"), None).await;
        // The two ids of the fixture begin with the same letters.
        let ambiguous = name.len() == 24 && status == StatusCode::BAD_REQUEST;
        assert!(ambiguous || node["ID"] == worker.as_str(), "{name}: {node}");
    }
    assert_eq!(api.get("/nodes/self").await["Description"]["Hostname"], "n1");
    let node = api.get("/nodes/n2").await;
    assert_eq!(node["ManagerStatus"], Value::Null);
    let path = format!("/nodes/n2/update?version={}", node["Version"]["Index"]);
    let mut spec = with(node["Spec"].clone(), "/Availability", json!("drain"));
    spec["Labels"] = json!({"zone": "a"});
    api.post(&path, spec.clone()).await;
    assert_eq!(api.get("/nodes/n2").await["Spec"]["Labels"]["zone"], "a");
    api.refused(Method::POST, &path, Some(spec.clone()), 409, "out of sequence").await;
    let bad = with(spec, "/Role", json!("boss"));
    api.refused(Method::POST, "/nodes/n2/update?version=1", Some(bad), 400, "boss").await;
    api.refused(Method::GET, "/nodes/n9", None, 404, "no such node: n9").await;
    api.refused(Method::DELETE, "/nodes/n2", None, 400, "not down").await;
    assert_eq!(api.call(Method::DELETE, "/nodes/n2?force=1", None).await.0, StatusCode::OK);
}

#[tokio::test]
async fn an_answer_from_a_state_that_no_leader_confirms_says_so_in_its_header() {
    let api = Fixture::manager();
    let reads = ["/nodes", "/services", "/networks", "/swarm", "/v1.44/tasks"];
    for path in reads {
        assert_eq!(api.warning(path).await, None, "{path}");
    }
    api.member.cluster.as_ref().expect("a manager").is_stale.store(true, Ordering::Relaxed);
    for path in reads {
        let warning = api.warning(path).await.expect(path);
        // The code and the agent, as in RFC 7234, section 5.5.
        assert!(warning.starts_with("110 weft \"") && warning.contains("may be out of date"), "{path}: {warning}");
    }
    assert_eq!(api.warning("/_ping").await, None, "it reads no state");
}
