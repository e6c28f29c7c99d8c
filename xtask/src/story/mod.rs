//! The story that the demo tells: what weft does, shown by doing it. Every sentence is checked; the first that is not true
//! ends the demo with an error. What stands behind a `$` is what was run.

mod change;
mod failure;
mod names;
mod stage;
mod traffic;

use anyhow::Result;
use weft_lab::{Lab, Task};

use crate::ui::Ui;
use stage::{chapter, run, show};

/// Where the service of the story is published, by TCP; and its echo, by UDP.
const PORT: u16 = 8080;
const UDP_PORT: u16 = 9007;
/// New connections to each address, to see them spread.
const CONNECTIONS: usize = 300;

/// Tells it all. Returns the summary.
pub(crate) fn tell(ui: &Ui, lab: &Lab) -> Result<String> {
    chapter("Three machines become a cluster");
    cluster(ui, lab)?;
    chapter("A service: three tasks, one published port");
    let tasks = service(ui, lab)?;
    chapter("Every node answers on that port, over IPv4 and IPv6, and the tasks see the real client");
    let connections = traffic::told(ui, lab, &tasks)?;
    chapter("Inside the network, services find each other by name");
    let friend = names::found(ui, lab, &tasks)?;
    chapter("Another network is another world, even with the same subnet");
    names::apart(ui, lab, &tasks, &friend)?;
    chapter("More tasks, fewer tasks, other tasks: clients notice nothing");
    let changed = change::scaled(ui, lab, &friend)? + change::updated(ui, lab, &friend)?;
    chapter("A daemon is killed, then the leader: traffic goes on");
    let crashed = failure::crashed(ui, lab, &friend)? + failure::led_by_another(ui, lab, &friend)?;
    chapter("A node is lost for good: its tasks run elsewhere");
    let left = failure::lost(ui, lab)?;
    chapter("The service is removed");
    change::removed(ui, lab, &left)?;
    Ok(format!(
        "What you saw, on one machine, with the real thing:\n\
         \x20 - a cluster of {} nodes, formed with two commands and a token, with three managers that agree by Raft\n\
         \x20 - {connections} connections and datagrams through every node, IPv4 and IPv6, spread evenly over the tasks by eBPF\n\
         \x20 - names and virtual addresses inside a network, and nothing of it visible from another, nor by a lie\n\
         \x20 - {changed} requests while the service grew, shrank and was updated: 0 errors\n\
         \x20 - {crashed} requests while a daemon and then the leader were killed and came back: 0 errors\n\
         \x20 - a lost node whose tasks moved, and whose backends the mesh forgot\n",
        lab.nodes().count()
    ))
}

/// What the story ended is there again, for people to play with.
pub(crate) fn again(ui: &Ui, lab: &Lab) -> Result<()> {
    chapter("Once more, for you");
    failure::found_again(ui, lab)?;
    whoami(ui, lab).map(|_| ())
}

fn cluster(ui: &Ui, lab: &Lab) -> Result<()> {
    run(lab, "n1", &Lab::init_arguments())?;
    for (node, role) in [("n2", "manager"), ("n3", "worker")] {
        let token = show(lab, "n1", &["swarm", "join-token", "--quiet", role])?;
        run(lab, node, &Lab::join_arguments(node, token.trim()))?;
    }
    ui.step("the nodes get ready", |_| lab.wait_ready("n1", 3))?;
    show(lab, "n1", &["node", "promote", "n3"])?;
    ui.step("n3 becomes a manager", |_| lab.wait_managers("n1", 3))?;
    show(lab, "n1", &["node", "ls"]).map(|_| ())
}

fn service(ui: &Ui, lab: &Lab) -> Result<Vec<Task>> {
    show(lab, "n1", &["network", "create", "--subnet", "10.20.0.0/24", "app"])?;
    whoami(ui, lab)
}

fn whoami(ui: &Ui, lab: &Lab) -> Result<Vec<Task>> {
    let create = ["service", "create", "--detach", "--name", "whoami", "--network", "app", "--replicas", "3"];
    show(lab, "n1", &[&create[..], &["-p", "8080:80", "-p", "9007:7/udp", "weft/whoami"]].concat())?;
    let tasks = ui.step("the tasks start", |_| lab.wait_running("n1", "whoami", 3))?;
    show(lab, "n1", &["service", "ps", "whoami"])?;
    Ok(tasks)
}
