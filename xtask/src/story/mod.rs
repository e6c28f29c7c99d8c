//! The story of the demo: shows what weft does by doing it. The demo checks every statement that it
//! prints, and the first false one ends it with an error. Text after a `$` is a command that was
//! run.
//!
//! Only the demo's second process calls it. It creates the cluster in a lab that is up, changes it,
//! and breaks it; it never removes the lab.

mod show;
mod traffic;
mod networks;
mod changes;
mod failure;

use anyhow::Result;
use weft_lab::{Lab, Task};

use crate::ui::Ui;
use show::{chapter, show};

/// The published TCP port of the service's HTTP server.
const PORT: u16 = 8080;
/// The published UDP port of the service's echo server.
const UDP_PORT: u16 = 9007;
/// How many new connections or datagrams are sent to each address.
const CONNECTIONS: usize = 300;

/// Runs all chapters. Returns the summary.
pub(crate) fn run(ui: &Ui, lab: &Lab) -> Result<String> {
    chapter("Three machines form a cluster");
    form_cluster(ui, lab)?;
    chapter("A service: three tasks, one published port");
    let tasks = create_service(ui, lab)?;
    chapter("Every node answers on that port, over IPv4 and IPv6, and tasks see the client's own address");
    let connections = traffic::use_published_ports(ui, lab, &tasks)?;
    chapter("Inside of a network, tasks find services by name");
    let probe = networks::use_names(ui, lab, &tasks)?;
    chapter("Tasks of another network cannot reach the service, even if both networks have the same subnet");
    networks::check_isolation(ui, lab, &tasks, &probe)?;
    chapter("The service is scaled and updated: no request fails");
    let changed = changes::scale(ui, lab, &probe)? + changes::update(ui, lab, &probe)?;
    chapter("A daemon is killed, then the leader: traffic continues");
    let killed = failure::kill_daemon(ui, lab, &probe)? + failure::kill_leader(ui, lab, &probe)?;
    chapter("A node fails: its tasks are replaced on other nodes");
    let published = failure::lose_node(ui, lab)?;
    chapter("The service is removed");
    changes::remove(ui, lab, &published)?;
    Ok(format!(
        "You saw on this machine, with the real daemons:\n\
         \x20 - a cluster of {} nodes, formed with two commands and a token; three of them are managers and agree by Raft\n\
         \x20 - {connections} connections and datagrams to every node over IPv4 and IPv6, spread evenly over the tasks by eBPF\n\
         \x20 - names and virtual addresses inside of a network, which other networks cannot reach, not even with forged packets\n\
         \x20 - {changed} requests while the service was scaled and updated: 0 errors\n\
         \x20 - {killed} requests while a daemon and then the leader were killed and restarted: 0 errors\n\
         \x20 - a lost node: its tasks were replaced on other nodes, and got no more traffic\n",
        lab.nodes().count()
    ))
}

/// Repairs the lost node and creates the service again, for a user who continues with the cluster.
pub(crate) fn prepare_for_user(ui: &Ui, lab: &Lab) -> Result<()> {
    chapter("The cluster is repaired, and the service created again");
    failure::repair_nodes(ui, lab)?;
    create_whoami(ui, lab).map(|_| ())
}

fn form_cluster(ui: &Ui, lab: &Lab) -> Result<()> {
    let show_owned =
        |node: &str, arguments: &[String]| show(lab, node, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    show_owned("n1", &Lab::init_arguments())?;
    for (node, role) in [("n2", "manager"), ("n3", "worker")] {
        let token = show(lab, "n1", &["swarm", "join-token", "--quiet", role])?;
        show_owned(node, &Lab::join_arguments(node, token.trim()))?;
    }
    ui.step("wait until all nodes are ready", |_| lab.wait_ready("n1", 3))?;
    show(lab, "n1", &["node", "promote", "n3"])?;
    ui.step("wait until n3 is a manager", |_| lab.wait_managers("n1", 3))?;
    show(lab, "n1", &["node", "ls"]).map(|_| ())
}

fn create_service(ui: &Ui, lab: &Lab) -> Result<Vec<Task>> {
    show(lab, "n1", &["network", "create", "--subnet", "10.20.0.0/24", "app"])?;
    create_whoami(ui, lab)
}

fn create_whoami(ui: &Ui, lab: &Lab) -> Result<Vec<Task>> {
    let create = ["service", "create", "--detach", "--name", "whoami", "--network", "app", "--replicas", "3"];
    show(lab, "n1", &[&create[..], &["-p", "8080:80", "-p", "9007:7/udp", "weft/whoami"]].concat())?;
    let tasks = ui.step("wait until three tasks are running", |_| lab.wait_running("n1", "whoami", 3))?;
    show(lab, "n1", &["service", "ps", "whoami"])?;
    Ok(tasks)
}
