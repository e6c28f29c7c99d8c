//! Tests that a node cannot fill the log, through the real calls.

use std::time::Duration;

use tokio::{sync::mpsc, time::Instant};
use weft_model::{ClusterState, Command, NodeReport, report::NodeDescription, state::Node};

use super::{
    bounds::{manager_and_channel_of_worker, message, session},
    fixture::{is_down, node, stop},
};
use crate::{
    fixture::description,
    rpc::pb::{LeaveRequest, dispatcher_client::DispatcherClient},
    swarm::{Manager, dispatch::report_untrusted},
};

/// All commands in the log of this manager, from this index on.
async fn written(manager: &Manager, index: u64) -> Vec<Command> {
    let single = |command| match command {
        Command::Batch(commands) => commands,
        command => vec![command],
    };
    manager.commands_from(index).await.into_iter().flat_map(single).collect()
}

#[tokio::test]
async fn what_a_node_changes_in_every_message_is_written_rarely_and_its_last_value_gets_through() {
    let (n1, channel, id) = manager_and_channel_of_worker().await;
    let manager = n1.manager();
    let report = |version: u32| {
        let description = NodeDescription { version: version.to_string(), ..description(&[]) };
        NodeReport { description: Some(description), ..NodeReport::default() }
    };
    let problem = |number: u32| if number.is_multiple_of(2) { "" } else { "refused" };
    let (index, began) = (manager.last_index() + 1, Instant::now());
    let outbox = session(&channel, message(&report(0), problem(0))).await;
    let mut pause = tokio::time::interval(Duration::from_millis(5));
    for number in 1..=301 {
        pause.tick().await;
        outbox.send(message(&report(number), problem(number))).await.expect("the session lasts");
    }
    let is_last = |node: &Node| {
        let version = node.description.as_ref().map(|description| description.version.as_str());
        version == Some("301") && node.message == "refused"
    };
    n1.wait_until("the last values are known", |s| node(s, "n2", is_last)).await;
    let commands = written(&manager, index).await;
    let at_most = 2 + began.elapsed().as_millis() / 2_000;
    let described = commands.iter().filter(|c| matches!(c, Command::DescribeNode { node, .. } if *node == id)).count();
    let set = commands.iter().filter(|c| matches!(c, Command::SetNodeStatus { id: node, .. } if *node == id)).count();
    assert!(described as u128 <= at_most, "{described} descriptions, and not {at_most}");
    assert!(set as u128 <= at_most, "{set} messages, and not {at_most}");
    stop([n1]).await;
}

#[tokio::test]
async fn a_node_that_leaves_again_and_again_writes_one_entry() {
    let (n1, channel, id) = manager_and_channel_of_worker().await;
    let manager = n1.manager();
    let index = manager.last_index() + 1;
    let leave = async || DispatcherClient::new(channel.clone()).leave(LeaveRequest {}).await.map(drop);
    for _ in 0..10 {
        leave().await.expect("it has left");
    }
    let left = |s: &ClusterState| node(s, "n2", |n| is_down(n) && n.message == "it left the swarm");
    n1.wait_until("the node is down", left).await;
    // Another machine with its address would alternate between two messages.
    let (untrusted, reported) = mpsc::channel(1);
    untrusted.send(manager.state().borrow().nodes[&id].addr).await.expect("a receiver");
    drop(untrusted);
    report_untrusted(n1.context().await, reported).await;
    manager.propose(Command::RemoveNode { id: id.clone(), force: true }).await.expect("removed");
    for _ in 0..10 {
        leave().await.expect("there is nothing to leave");
    }
    let commands = written(&manager, index).await;
    let set: Vec<_> = commands.iter().filter(|c| matches!(c, Command::SetNodeStatus { .. })).collect();
    assert_eq!(set.len(), 1, "{set:?}");
    stop([n1]).await;
}
