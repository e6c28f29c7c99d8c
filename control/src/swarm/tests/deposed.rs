//! Test of a leader that has lost its quorum, and does not know yet whether another one leads.

use std::time::Duration;

use tokio::time::{sleep_until, timeout};
use tonic::Code;
use weft_model::{
    Command, NodeReport,
    spec::Role::{Manager, Worker},
    state::{FEATURE_LEVEL, NodeStatus},
};

use super::{
    callers::{connect, first_answer},
    fixture::{DEADLINE, Daemon, cluster, is_ready, leader_among, node, stop},
};
use crate::{
    codec,
    rpc::{
        faults::{Link, hold},
        pb::{NodeMessage, leader_message::Message},
    },
    swarm::manager::lease::LEASE_MS,
};

#[tokio::test]
async fn a_leader_without_a_quorum_sends_no_plan_and_neither_removes_a_node_nor_sets_one_to_down() {
    let daemons = cluster([Manager; 3]).await;
    let leader = leader_among(&daemons.each_ref()).await;
    let (member, removed) = (Daemon::joined("n4", leader, Worker).await, Daemon::joined("n5", leader, Worker).await);
    leader.wait_until("n4 is ready", |s| node(s, "n4", is_ready)).await;
    let channels = (connect(&member, leader).await, connect(&removed, leader).await);
    let id = removed.id();
    removed.stop().await;
    leader.manager().propose(Command::RemoveNode { id, force: true }).await.expect("removed");

    let manager = leader.manager();
    let link = |from: &Daemon, to: &Daemon| -> Link { (from.id(), to.host.addr().into()) };
    let others = daemons.iter().filter(|other| other.id() != leader.id());
    let links: Vec<Link> = others.flat_map(|other| [link(leader, other), link(other, leader)]).collect();
    hold(&links, true);
    let (isolated, index) = (tokio::time::Instant::now(), manager.last_index() + 1);
    // What a quorum has confirmed before counts for this time. The leader does not notice within
    // this time that it is alone.
    sleep_until(isolated + Duration::from_millis(LEASE_MS)).await;
    let report = codec::encode(&codec::REPORT, &NodeReport::default()).expect("encoded");
    let first = NodeMessage { report: report.into(), feature_level: FEATURE_LEVEL, ..NodeMessage::default() };
    let (to_member, to_removed) =
        tokio::join!(first_answer(&channels.0, first.clone()), first_answer(&channels.1, first));
    if let Ok(Some(message)) = to_member {
        assert!(matches!(message.message, Some(Message::Redirect(_))), "{message:?}");
    }
    // A node that hears that it was removed stops its tasks.
    assert!(to_removed.as_ref().err().is_none_or(|status| status.code() != Code::PermissionDenied), "{to_removed:?}");

    let mut term = manager.tracker().term();
    let ended = timeout(DEADLINE, term.wait_for(Option::is_none)).await.expect("the term ends in time");
    drop(ended.expect("the tracker exists"));
    let is_down = |command: &Command| matches!(command, Command::SetNodeStatus { status: NodeStatus::Down, .. });
    let sets_down = |command: &Command| match command {
        Command::Batch(commands) => commands.iter().any(is_down),
        command => is_down(command),
    };
    // The managers that it does not hear from are silent for 2 s before it ends its term.
    let written = manager.commands_from(index).await;
    assert!(!written.iter().any(sets_down), "{written:?}");
    hold(&links, false);
    member.stop().await;
    stop(daemons).await;
}
