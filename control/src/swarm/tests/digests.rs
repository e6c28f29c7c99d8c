//! Test of a manager whose state differs from that of the others.

use futures_util::{StreamExt as _, stream};
use tokio::time::timeout;
use weft_model::spec::Role::{Manager, Worker};

use super::fixture::{DEADLINE, cluster, config, has_label, leader_among, set_label, stop};
use crate::swarm::{Membership, Swarm};

/// Every manager reports the digest of its state at this entry.
const DIGEST_AT: u64 = 1_000;
/// Proposals that wait at the same time, so that several of them share one append.
const AT_ONCE: usize = 100;

#[tokio::test]
async fn a_manager_whose_state_differs_from_that_of_a_majority_stops_and_does_not_start_again() {
    let [n1, n2, n3] = cluster([Manager; 3]).await;
    leader_among(&[&n1, &n2, &n3]).await;
    n3.manager().damage_state();
    let manager = n1.manager();
    let missing = DIGEST_AT.saturating_sub(manager.state().borrow().index);
    let changes = stream::iter(0..missing).map(|_| manager.rotate_token(Worker)).buffer_unordered(AT_ONCE);
    let made = changes.filter(|made| std::future::ready(made.is_ok())).count().await;
    assert_eq!(made as u64, missing, "two of three managers are a quorum");

    let has_stopped = |m: &Membership| matches!(m, Membership::Error(text) if text.contains("differs"));
    let mut membership = n3.swarm.membership();
    let stopped = timeout(DEADLINE, membership.wait_for(has_stopped)).await.expect("n3 stops in time");
    let Membership::Error(text) = stopped.expect("the daemon runs").clone() else { unreachable!("an error") };
    let expected = format!("at entry {DIGEST_AT}: stop the daemon, remove its data directory, remove this node");
    assert!(text.contains(&expected), "{text}");
    n3.becomes_worker().await;

    set_label(&n1, "without-n3").await.expect("two of three managers are a quorum");
    n2.wait_until("the other managers go on", |s| has_label(s, "without-n3")).await;
    let digests = manager.state().borrow().digests.clone();
    assert_eq!(digests[&n2.id()], digests[&n1.id()]);
    // It may have stopped before its own digest was written.
    assert!(digests.get(&n3.id()).is_none_or(|digest| *digest != digests[&n1.id()]), "{digests:?}");

    let host = n3.stop().await;
    let refused = Swarm::open(config(host.dir(), "n3", host.addr())).await.expect_err("it does not start again");
    assert!(refused.to_string().contains(&expected), "{refused}");
    assert!(n1.manager().log_is_running() && n2.manager().log_is_running());
    stop([n1, n2]).await;
}
