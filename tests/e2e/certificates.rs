//! The certificate authority of the cluster is replaced while services answer.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::Value;
use weft_lab::{CLIENT, Lab, Role, api, contract, eventually};

use crate::{
    failure,
    fixtures::{HTTP, Loads, WHOAMI, all_answer, service, task_names},
    harness::{Group, Shape, tests},
    mesh,
};

/// The time in which all nodes that can be reached must have new certificates.
const ROTATION_TIMEOUT: Duration = Duration::from_secs(30);
/// The port of a service that is created afterwards.
const LATER_PORT: u16 = 8096;

pub(crate) fn group() -> Group {
    Group {
        name: "certificates",
        shape: Shape { managers: 2, ..Shape::default() },
        setup: failure::setup,
        tests: tests![
            the_authority_is_replaced_without_the_loss_of_a_request,
            a_node_that_trusts_another_authority_says_so,
        ],
    }
}

fn swarm(via: &str) -> Result<Value> {
    api::get(&contract::socket(via), "/swarm")
}

/// The names of the nodes whose certificate the newest authority has signed, as `node inspect`
/// shows it.
fn rotated(via: &str) -> Result<Vec<String>> {
    let issuer = swarm(via)?["TLSInfo"]["CertIssuerPublicKey"].clone();
    let nodes = api::get(&contract::socket(via), "/nodes")?;
    let nodes = nodes.as_array().context("a list of nodes")?;
    let rotated = nodes.iter().filter(|node| node["Description"]["TLSInfo"]["CertIssuerPublicKey"] == issuer);
    Ok(rotated.map(|node| node["Description"]["Hostname"].as_str().unwrap_or_default().to_owned()).collect())
}

pub(crate) fn the_authority_is_replaced_without_the_loss_of_a_request(lab: &Lab) -> Result<()> {
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    let (old_ca, old_token) = (lab.weft_ok("n1", &["swarm", "ca"])?, lab.join_token("n1", Role::Worker)?);
    ensure!(old_ca.starts_with("-----BEGIN CERTIFICATE-----"), "{old_ca}");
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;

    // n3 is off: its tasks continue, and the rotation waits for it.
    lab.kill_daemon("n3")?;
    lab.weft_ok("n1", &["swarm", "ca", "--rotate", "--detach"])?;
    eventually(ROTATION_TIMEOUT, "n1 and n2 have new certificates", || {
        let nodes = rotated("n1").map_err(|e| format!("{e:#}"))?;
        if nodes.contains(&"n1".to_owned()) && nodes.contains(&"n2".to_owned()) {
            Ok(())
        } else {
            Err(format!("{nodes:?}"))
        }
    });
    ensure!(rotated("n1")?.len() == 2, "n3 cannot have a new certificate");
    let info = lab.weft_ok("n1", &["info"])?;
    ensure!(info.contains("Root Rotation In Progress: true"), "{info}");
    ensure!(lab.weft_ok("n1", &["swarm", "ca"])? == old_ca, "nodes that join must find the old authority");
    let progress = String::from_utf8_lossy(&lab.weft("n1", &["swarm", "ca"])?.stderr).into_owned();
    ensure!(progress.contains("waiting for new certificates of: n3"), "{progress:?}");
    // A daemon that restarts meanwhile connects with its new certificate.
    lab.kill_daemon("n2")?;
    lab.start("n2")?;
    lab.start("n3")?;
    eventually(ROTATION_TIMEOUT, "the rotation is complete", || {
        let swarm = swarm("n1").map_err(|e| format!("{e:#}"))?;
        if swarm["RootRotationInProgress"] == false { Ok(()) } else { Err(format!("{:?}", rotated("n1"))) }
    });
    lab.wait_ready("n1", 3)?;
    lab.wait_managers("n1", 2)?;
    let new_ca = lab.weft_ok("n2", &["swarm", "ca"])?;
    ensure!(new_ca != old_ca, "the authority is the old one");
    ensure!(lab.join_token("n1", Role::Worker)? != old_token, "the join token names the old authority");

    // An authority of the user. The command waits until all nodes have new certificates.
    let dir = tempfile::tempdir().context("a temporary directory")?;
    let (cert, key) = own_authority()?;
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).map(|()| path.display().to_string())
    };
    let (cert_file, key_file) = (write("cert.pem", &cert)?, write("key.pem", &key)?);
    let printed = lab.weft_ok(
        "n2",
        &["swarm", "ca", "--rotate", "--ca-cert", &cert_file, "--ca-key", &key_file, "--cert-expiry", "720h"],
    )?;
    ensure!(printed.trim() == cert.trim(), "{printed}");
    let swarm = swarm("n2")?;
    ensure!(swarm["RootRotationInProgress"] == false, "the rotation is not complete");
    ensure!(swarm["Spec"]["CAConfig"]["NodeCertExpiry"] == 720_i64 * 3_600 * 1_000_000_000, "{swarm}");
    ensure!(!swarm.to_string().contains("PRIVATE KEY"), "the API shows the key of the authority");

    // Plans and reports pass as before.
    let later = service(lab, "after-rotation", 3, &["-p", &format!("{LATER_PORT}:{HTTP}")], &[WHOAMI])?;
    all_answer(CLIENT, &lab.published(LATER_PORT), &later, Duration::from_secs(5));
    lab.weft_ok("n1", &["service", "rm", "after-rotation"])?;
    lab.wait_stopped("n1", "after-rotation")?;
    let after = lab.wait_running("n1", "whoami", 3)?;
    ensure!(task_names(&tasks) == task_names(&after), "{tasks:?} became {after:?}");
    loads.expect_no_errors()
}

pub(crate) fn a_node_that_trusts_another_authority_says_so(lab: &Lab) -> Result<()> {
    lab.kill_daemon("n3")?;
    let path = contract::data_dir("n3").join("swarm/node.json");
    let stored = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut record: Value = serde_json::from_str(&stored)?;
    record["ca_pem"] = own_authority()?.0.into();
    record["ca_plan"] = serde_json::json!([u64::MAX, 0]);
    fs::write(&path, record.to_string())?;
    lab.start("n3")?;
    let says_so = |node: &str, arguments: &[&str], reason: &str| {
        eventually(ROTATION_TIMEOUT, "the reason is shown", || {
            let shown = lab.weft_ok(node, arguments).map_err(|e| format!("{e:#}"))?;
            if shown.contains(reason) { Ok(()) } else { Err(shown) }
        });
    };
    says_so("n3", &["info"], "Error: another certificate authority than this node trusts");
    let reason = "trusts another certificate authority than the swarm has";
    says_so("n1", &["node", "inspect", "n3"], reason);
    let listed = lab.weft_ok("n1", &["node", "ls", "--format", "{{.Hostname}}: {{.Status}}"])?;
    let status = listed.lines().find_map(|line| line.strip_prefix("n3: ")).unwrap_or_default();
    ensure!(status.starts_with("Down, ") && status.contains(reason), "{listed}");
    lab.kill_daemon("n3")?;
    fs::write(&path, stored)?;
    lab.start("n3")?;
    lab.wait_ready("n1", 3)
}

/// The certificate and the key of an authority that weft has not created.
fn own_authority() -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "authority of the lab");
    params.distinguished_name.push(DnType::OrganizationName, "lab");
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}
