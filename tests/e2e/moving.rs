//! Machines that get another address, as from a DHCP server: the other nodes and managers reach
//! them at it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_lab::{CLIENT, Lab, api, contract, eventually};

use crate::{
    failure::follower,
    fixtures::{WHOAMI, all_answer, network, service},
    harness::{Group, Shape, tests},
};

/// The time in which all managers must know a new address. A node looks every 2 s.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(20);
/// The time in which packets must reach the tasks of all nodes again.
const TRAFFIC_TIMEOUT: Duration = Duration::from_secs(15);
/// The published ports of the two services, whose networks are clear and encrypted.
const CLEAR_PORT: u16 = 8095;
const ENCRYPTED_PORT: u16 = 8096;

pub(crate) fn group() -> Group {
    Group {
        name: "moving",
        shape: Shape { managers: 3, ..Shape::default() },
        setup,
        tests: tests![a_manager_whose_machine_moves_and_returns_stays_in_the_quorum_and_gets_traffic],
    }
}

/// Services with one task on each node. A node that is unreachable for some seconds counts as down;
/// its task is replaced there and nowhere else.
fn setup(lab: &Lab) -> Result<()> {
    network(lab, "clear", &[])?;
    network(lab, "secret", &["--opt", "encrypted"])?;
    for (name, network, port) in [("open", "clear", CLEAR_PORT), ("guarded", "secret", ENCRYPTED_PORT)] {
        let port = format!("{port}:80");
        service(lab, name, 3, &["--network", network, "-p", &port, "--replicas-max-per-node", "1"], &[WHOAMI])?;
    }
    Ok(())
}

/// Replaces the IPv4 address of a node's machine.
fn replace_addr(lab: &Lab, node: &str, from: Ipv4Addr, to: Ipv4Addr) -> Result<()> {
    for (verb, addr) in [("delete", from), ("add", to)] {
        lab.exec_ok(node, &["ip", "address", verb, &format!("{addr}/24"), "dev", "eth0"])?;
    }
    Ok(())
}

/// The addresses of a node and of its manager, as the manager `via` has them.
fn addrs_of(via: &str, node: &str) -> Result<[Value; 2]> {
    let shown = api::get(&contract::socket(via), &format!("/nodes/{node}"))?;
    Ok([shown["Status"]["Addr"].clone(), shown["ManagerStatus"]["Addr"].clone()])
}

pub(crate) fn a_manager_whose_machine_moves_and_returns_stays_in_the_quorum_and_gets_traffic(lab: &Lab) -> Result<()> {
    let moving = follower(lab)?;
    let home = contract::v4(&moving);
    let [a, b, c, d] = home.octets();
    let away = Ipv4Addr::new(a, b, c, d + 50);
    for (from, to, name) in [(home, away, "away"), (away, home, "home")] {
        replace_addr(lab, &moving, from, to)?;
        for via in lab.nodes() {
            eventually(KNOWN_TIMEOUT, &format!("{via} has {to} as the address of {moving}"), || {
                let expected = [Value::from(to.to_string()), Value::from(format!("{to}:2377"))];
                let found = addrs_of(&via, &moving).map_err(|error| format!("{error:#}"))?;
                if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
            });
        }
        lab.wait_ready("n1", 3)?;
        lab.wait_managers("n1", 3)?;
        for (port, service) in [(CLEAR_PORT, "open"), (ENCRYPTED_PORT, "guarded")] {
            let tasks = lab.wait_running("n1", service, 3)?;
            ensure!(tasks.iter().any(|task| task.node == moving), "no task of {service} runs on {moving}");
            let addrs = lab.nodes().map(|node| IpAddr::V4(if node == moving { to } else { contract::v4(&node) }));
            let addrs: Vec<_> = addrs.map(|addr| SocketAddr::new(addr, port)).collect();
            all_answer(CLIENT, &addrs, &tasks, TRAFFIC_TIMEOUT);
        }
        changes_need_no_third_manager(lab, &moving, name)?;
    }
    Ok(())
}

/// Restarts `moving` if it is the leader, so that another manager is elected. The test needs a
/// leader that must reach `moving` at its new address. A manager that the others cannot reach asks
/// for votes, and may be elected when they reach it again.
fn let_another_lead(lab: &Lab, moving: &str) -> Result<()> {
    let other = lab.nodes().find(|node| node != moving).context("the lab has another node")?;
    if lab.leader(&other)? != moving {
        return Ok(());
    }
    lab.kill_daemon(moving)?;
    eventually(KNOWN_TIMEOUT, &format!("another manager than {moving} leads"), || match lab.leader(&other) {
        Ok(leader) if leader != moving => Ok(()),
        found => Err(format!("{found:?}")),
    });
    lab.start(moving)?;
    lab.wait_ready(&other, 3)?;
    lab.wait_managers(&other, 3)
}

/// Makes a change while the leader and `moving` are the only managers: none without the other.
fn changes_need_no_third_manager(lab: &Lab, moving: &str, name: &str) -> Result<()> {
    let_another_lead(lab, moving)?;
    let leader = lab.leader("n1")?;
    let third = lab.nodes().find(|node| *node != leader && node != moving).context("the lab has three nodes")?;
    ensure!(leader != moving, "the leader has changed to {moving}, and no manager needs its new address");
    lab.kill_daemon(&third)?;
    lab.weft_ok(&leader, &["network", "create", "--driver", "overlay", name])?;
    eventually(KNOWN_TIMEOUT, &format!("{moving} has the network {name}"), || {
        let found = api::get(&contract::socket(moving), &format!("/networks/{name}"));
        found.map(drop).map_err(|error| format!("{error:#}"))
    });
    lab.weft_ok(&leader, &["network", "rm", name])?;
    lab.start(&third)?;
    lab.wait_ready("n1", 3)?;
    lab.wait_managers("n1", 3)
}
