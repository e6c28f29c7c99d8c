//! Shows names and virtual addresses inside of a network, and that a task on another network cannot
//! reach them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use weft_lab::{
    CLIENT, Lab, Task, api, contract,
    dns::{RecordType, ResponseCode},
    http, packets,
};

use super::show::{create_probe, outcome, show, show_in_task, vip};
use crate::ui::Ui;

/// A packet that has not arrived after this time counts as dropped.
const DROP_TIMEOUT: Duration = Duration::from_millis(300);
/// The time limit for the arrival of a packet.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(2);
/// The UDP port on which a task listens for forged packets.
const LISTEN_PORT: u16 = 9999;

/// Creates a task on the network, and finds the service from it. Returns the task.
pub(super) fn use_names(ui: &Ui, lab: &Lab, tasks: &[Task]) -> Result<Task> {
    let probe = create_probe(ui, lab, "probe", &["app"])?;
    let vip = vip(lab, &probe, "whoami")?;
    outcome("probe resolves whoami", &format!("{vip}, the VIP in front of all tasks"));
    let addrs: BTreeSet<IpAddr> = lab.lookup(&probe, "tasks.whoami", RecordType::A)?.addrs().into_iter().collect();
    ensure!(addrs == tasks.iter().map(|task| task.v4("app")).collect(), "tasks.whoami resolves to {addrs:?}");
    outcome("probe resolves tasks.whoami", &addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    show_in_task(lab, &probe, &["curl", "-sS", "-m", "5", "http://whoami/"])?;
    let echoed = lab.within_task(&probe, || http::tcp_echo((vip, http::ECHO_PORT).into(), b"hello"))??;
    ensure!(echoed == b"hello", "the VIP echoed {echoed:?}");
    outcome(&format!("probe to {vip} port 7, which is not published"), "answers too");
    let ping = lab.exec_in_task_netns(&probe, &["ping", "-c", "1", "-W", "1", &vip.to_string()])?;
    ensure!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stdout));
    outcome(&format!("probe pings {vip}"), "answers");
    for task in tasks {
        let by_task = lab.within_task(task, || http::answers_by_task((vip, 80).into(), 30))??;
        ensure!(by_task.len() == tasks.len(), "{} reached only {by_task:?} of its own service", task.name());
    }
    outcome("each task of whoami connects to whoami", "reaches all tasks, itself included");
    let external = lab.lookup(&probe, contract::EXTERNAL_NAME, RecordType::A)?;
    ensure!(external.addrs() == [IpAddr::V4(contract::EXTERNAL_V4)], "{external:?}");
    outcome(
        &format!("probe resolves {}", contract::EXTERNAL_NAME),
        &format!("{}, from the upstream resolver", contract::EXTERNAL_V4),
    );
    Ok(probe)
}

/// A task on another network with the same subnet finds nothing of the first network. A task on two
/// networks finds the services of both.
pub(super) fn check_isolation(ui: &Ui, lab: &Lab, tasks: &[Task], probe: &Task) -> Result<()> {
    show(lab, "n1", &["network", "create", "--subnet", "10.20.0.0/24", "other"])?;
    let other = create_probe(ui, lab, "other-probe", &["other"])?;
    let answer = lab.lookup(&other, "whoami", RecordType::A)?;
    ensure!(answer.code == ResponseCode::NXDomain, "whoami resolves in other-probe: {answer:?}");
    outcome("other-probe resolves whoami", "no such name");
    let vip = vip(lab, probe, "whoami")?;
    for addr in tasks.iter().map(|task| task.v4("app")).chain([vip]) {
        let reached = lab.within_task(&other, || http::connect((addr, 80).into(), DROP_TIMEOUT))?;
        ensure!(reached.is_err(), "other-probe reached {addr}");
    }
    outcome("other-probe connects to the tasks and to the VIP", "no answer");
    check_forged_packets(lab, tasks, probe, &other)?;

    show(lab, "n1", &["network", "create", "--subnet", "10.30.0.0/24", "third"])?;
    show(lab, "n1", &["service", "create", "--detach", "--name", "db", "--network", "third", "weft/whoami"])?;
    ui.step_without_result("wait until the task of db is running", |_| lab.wait_running("n1", "db", 1))?;
    let both = create_probe(ui, lab, "both-probe", &["app", "third"])?;
    for service in ["whoami", "db"] {
        let body = lab.task_exec_ok(&both, &["curl", "-sS", "-m", "5", &format!("http://{service}/")])?;
        ensure!(body.contains(&format!("name: {service}.")), "{service} answered {body}");
    }
    outcome("both-probe, on app and third", "reaches http://whoami/ and http://db/");
    Ok(())
}

/// A datagram with a source address that is not its sender's, and a VXLAN frame from a host that is
/// not a node: neither arrives, although the same packets from a permitted sender do.
fn check_forged_packets(lab: &Lab, tasks: &[Task], probe: &Task, other: &Task) -> Result<()> {
    let target = tasks.first().context("whoami has tasks")?;
    let addr = SocketAddrV4::new(v4(target.v4("app"))?, LISTEN_PORT);
    let forged = v4(probe.v4("app"))?;
    let arrived =
        lab.datagram_arrives(target, LISTEN_PORT, ARRIVAL_TIMEOUT, || lab.send_datagram(probe, None, addr.into()))?;
    ensure!(arrived, "a datagram of the probe does not arrive");
    let arrived = lab
        .datagram_arrives(target, LISTEN_PORT, DROP_TIMEOUT, || lab.send_datagram(other, Some(forged), addr.into()))?;
    ensure!(!arrived, "a datagram of other-probe from {forged} arrived");
    outcome(&format!("other-probe sends from {forged}, probe's address"), "dropped");

    let network = api::get(&contract::socket("n1"), "/networks/app")?;
    let vni = network["Options"]["com.docker.network.driver.overlay.vxlanid_list"].as_str();
    let vni = vni.context("the network app has a VNI")?;
    let from = SocketAddrV4::new(forged, LISTEN_PORT);
    let frame = packets::vxlan_udp(vni.parse()?, lab.mac_of(target)?, from, addr, b"forged");
    let tunnel = SocketAddr::from((contract::v4(&target.node), packets::VXLAN_PORT));
    let send = |host: &str| -> Result<()> {
        lab.within(host, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(&frame, tunnel))??;
        Ok(())
    };
    let peer = lab.nodes().find(|node| *node != target.node).context("the lab has another node")?;
    let arrived = lab.datagram_arrives(target, LISTEN_PORT, ARRIVAL_TIMEOUT, || send(&peer))?;
    ensure!(arrived, "a VXLAN frame of node {peer} does not arrive");
    let arrived = lab.datagram_arrives(target, LISTEN_PORT, DROP_TIMEOUT, || send(CLIENT))?;
    ensure!(!arrived, "a VXLAN frame of the client with VNI {vni} arrived");
    outcome(&format!("the client sends a VXLAN frame with app's VNI {vni}"), "dropped");
    Ok(())
}

fn v4(addr: IpAddr) -> Result<Ipv4Addr> {
    match addr {
        IpAddr::V4(addr) => Ok(addr),
        IpAddr::V6(_) => bail!("{addr} is not an IPv4 address"),
    }
}
