//! Inside a network: names, virtual addresses, and what other networks see of them, which is nothing.

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

use super::stage::{outcome, probe, show, show_in_task, vip};
use crate::ui::Ui;

/// How long nothing must come to count as unreachable.
const SILENCE: Duration = Duration::from_millis(300);
/// For packets under way to arrive, where they should.
const ARRIVAL: Duration = Duration::from_secs(2);
/// Where a task listens for what must not come.
const LISTEN: u16 = 9999;

/// A task on the network finds the service. Returns that task.
pub(super) fn found(ui: &Ui, lab: &Lab, tasks: &[Task]) -> Result<Task> {
    let friend = probe(ui, lab, "friend", &["app"])?;
    let vip = vip(lab, &friend, "whoami")?;
    outcome("friend asks for whoami", &format!("{vip}, balanced over all tasks"));
    let addrs: BTreeSet<IpAddr> = lab.ask(&friend, "tasks.whoami", RecordType::A)?.addrs().into_iter().collect();
    ensure!(addrs == tasks.iter().map(|task| task.v4("app")).collect(), "tasks.whoami gave {addrs:?}");
    outcome("friend asks for tasks.whoami", &addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    show_in_task(lab, &friend, &["curl", "-sS", "-m", "5", "http://whoami/"])?;
    let echoed = lab.within_task(&friend, || http::tcp_echo((vip, http::ECHO_PORT).into(), b"hello"))??;
    ensure!(echoed == b"hello", "the VIP echoed {echoed:?}");
    outcome(&format!("friend to {vip} port 7, which nobody published"), "answers too");
    let ping = lab.exec_beside(&friend, &["ping", "-c", "1", "-W", "1", &vip.to_string()])?;
    ensure!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stdout));
    outcome(&format!("friend pings {vip}"), "answers");
    for task in tasks {
        let by_task = lab.within_task(task, || http::spread((vip, 80).into(), 30))??;
        ensure!(by_task.len() == tasks.len(), "{} reached only {by_task:?} of its own service", task.name());
    }
    outcome("each task of whoami dials whoami", "reaches all of them, itself too");
    let outside = lab.ask(&friend, contract::OUTSIDE_NAME, RecordType::A)?;
    ensure!(outside.addrs() == [IpAddr::V4(contract::OUTSIDE_V4)], "{outside:?}");
    outcome(
        &format!("friend asks for {}", contract::OUTSIDE_NAME),
        &format!("{}, asked of the outside world", contract::OUTSIDE_V4),
    );
    Ok(friend)
}

/// A task on another network with the same subnet finds nothing; one on both finds both.
pub(super) fn apart(ui: &Ui, lab: &Lab, tasks: &[Task], friend: &Task) -> Result<()> {
    show(lab, "n1", &["network", "create", "--subnet", "10.20.0.0/24", "other"])?;
    let stranger = probe(ui, lab, "stranger", &["other"])?;
    let answer = lab.ask(&stranger, "whoami", RecordType::A)?;
    ensure!(answer.code == ResponseCode::NXDomain, "the stranger resolved whoami: {answer:?}");
    outcome("stranger asks for whoami", "no such name");
    let vip = vip(lab, friend, "whoami")?;
    for addr in tasks.iter().map(|task| task.v4("app")).chain([vip]) {
        let reached = lab.within_task(&stranger, || http::connect((addr, 80).into(), SILENCE))?;
        ensure!(reached.is_err(), "the stranger reached {addr}");
    }
    outcome("stranger dials the tasks' addresses and the VIP", "nobody answers");
    forged(lab, tasks, friend, &stranger)?;

    show(lab, "n1", &["network", "create", "--subnet", "10.30.0.0/24", "third"])?;
    show(lab, "n1", &["service", "create", "--detach", "--name", "db", "--network", "third", "weft/whoami"])?;
    ui.quiet("the task starts", |_| lab.wait_running("n1", "db", 1))?;
    let bridge = probe(ui, lab, "bridge", &["app", "third"])?;
    for service in ["whoami", "db"] {
        let body = lab.task_exec_ok(&bridge, &["curl", "-sS", "-m", "5", &format!("http://{service}/")])?;
        ensure!(body.contains(&format!("name: {service}.")), "{service} answered {body}");
    }
    outcome("bridge, on app and on third", "reaches http://whoami/ and http://db/");
    Ok(())
}

/// A source that is not the sender's own, and a VXLAN frame from a host that is no node: neither arrives, though the same
/// without the lie does.
fn forged(lab: &Lab, tasks: &[Task], friend: &Task, stranger: &Task) -> Result<()> {
    let target = tasks.first().context("a task")?;
    let addr = SocketAddrV4::new(v4(target.v4("app"))?, LISTEN);
    let lie = v4(friend.v4("app"))?;
    ensure!(
        lab.arrives(target, LISTEN, ARRIVAL, || lab.send_from(friend, None, addr.into()))?,
        "the friend is not heard"
    );
    let arrived = lab.arrives(target, LISTEN, SILENCE, || lab.send_from(stranger, Some(lie), addr.into()))?;
    ensure!(!arrived, "the stranger was heard as {lie}");
    outcome(&format!("stranger sends as {lie}, the friend's address"), "dropped");

    let network = api::get(&contract::socket("n1"), "/networks/app")?;
    let vni = network["Options"]["com.docker.network.driver.overlay.vxlanid_list"].as_str().context("a VNI")?;
    let from = SocketAddrV4::new(lie, LISTEN);
    let frame = packets::vxlan_udp(vni.parse()?, lab.mac_of(target)?, from, addr, b"forged");
    let tunnel = SocketAddr::from((contract::v4(&target.node), packets::VXLAN_PORT));
    let send = |host: &str| -> Result<()> {
        lab.within(host, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(&frame, tunnel))??;
        Ok(())
    };
    let peer = lab.nodes().find(|node| *node != target.node).context("a second node")?;
    ensure!(lab.arrives(target, LISTEN, ARRIVAL, || send(&peer))?, "a frame of {peer} should arrive");
    ensure!(!lab.arrives(target, LISTEN, SILENCE, || send(CLIENT))?, "the client's frame with VNI {vni} arrived");
    outcome(&format!("the client sends a VXLAN frame with app's VNI, {vni}"), "dropped");
    Ok(())
}

fn v4(addr: IpAddr) -> Result<Ipv4Addr> {
    match addr {
        IpAddr::V4(addr) => Ok(addr),
        IpAddr::V6(_) => bail!("{addr} is no IPv4 address"),
    }
}
