//! Tests of managers that are locked: they need the unlock key after a restart.

use std::time::Duration;

use tokio::time::timeout;
use weft_model::{
    Command, UnlockKey,
    spec::Role::{Manager, Worker},
    state::ManagerLock,
};

use super::fixture::{DEADLINE, Daemon, Host, cluster, has_label, is_ready, node, set_label, stop, voters};
use crate::{
    pki::random_unlock_key,
    swarm::{Membership, SwarmError},
};

const KEY: UnlockKey = UnlockKey([1; 32]);
const WRONG: UnlockKey = UnlockKey([9; 32]);

/// A daemon that has formed a cluster whose managers are locked, and the unlock key.
async fn first_locked() -> (Daemon, UnlockKey) {
    let n1 = Daemon::new("n1").await;
    let options = crate::swarm::InitOptions { auto_lock: true, ..n1.init_options() };
    n1.swarm.init(options).await.expect("the node forms a cluster");
    let key = lock_of(&n1).key.expect("a key");
    (n1, key)
}

fn lock_of(daemon: &Daemon) -> ManagerLock {
    daemon.manager().state().borrow().cluster.clone().expect("a cluster").lock
}

/// Locks the managers with this key, or no longer locks them. Returns the version of the change.
async fn set_key(daemon: &Daemon, key: Option<UnlockKey>) -> u64 {
    let cluster = daemon.manager().state().borrow().cluster.clone().expect("a cluster");
    let command = Command::SetUnlockKey { version: cluster.meta.version, spec: cluster.spec, key };
    daemon.manager().propose(command).await.expect("a quorum");
    lock_of(daemon).version
}

/// Whether one of the node's files contains `text` in the clear.
fn shows(host: &Host, text: &str) -> bool {
    host.files().iter().any(|(_, content)| content.windows(text.len()).any(|window| window == text.as_bytes()))
}

/// Waits until the node has followed the lock of this version, and has replaced the secrets that
/// were on the disk before.
async fn follows(daemon: &Daemon, version: u64) {
    let path = daemon.host.dir().join("swarm/lock.json");
    let mut interval = tokio::time::interval(Duration::from_millis(20));
    let followed = async {
        loop {
            interval.tick().await;
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let lock: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            if lock["version"] == version && lock["stale_identity"] == false && lock["stale_log_key"] == false {
                return;
            }
        }
    };
    timeout(DEADLINE, followed).await.expect("the node follows in time");
}

fn is_locked(daemon: &Daemon) -> bool {
    *daemon.swarm.membership().borrow() == Membership::Locked
}

#[tokio::test]
async fn a_locked_manager_starts_with_its_key_only() {
    let (n1, key) = first_locked().await;
    let n2 = Daemon::joined("n2", &n1, Worker).await;
    set_label(&n1, "before").await.expect("a quorum");
    assert!(!shows(&n1.host, "PRIVATE KEY") && shows(&n2.host, "PRIVATE KEY"), "workers are not locked");
    assert!(!shows(&n1.host, "raft_id"), "the keys of the manager are encrypted");
    let refused = n1.swarm.unlock(key.clone()).await.expect_err("it runs");
    assert!(matches!(refused, SwarmError::NotLocked), "{refused}");
    let refused = n2.swarm.unlock(key.clone()).await.expect_err("a worker");
    assert!(matches!(refused, SwarmError::NotManager), "{refused}");
    let plan = n1.swarm.plans().borrow().clone().expect("a plan");

    let host = n1.stop().await;
    let files = host.files();
    let n1 = host.start().await;
    assert!(is_locked(&n1));
    assert!(n1.swarm.manager().is_none());
    let stored = n1.swarm.plans().borrow().clone().expect("the data plane goes on with the stored plan");
    assert_eq!((&stored.node, stored.networks.len()), (&plan.node, plan.networks.len()));
    let refusals = [
        n1.swarm.leave(false).await.expect_err("locked"),
        n1.swarm.reform(None).await.expect_err("locked"),
        n1.swarm.back_up("correct horse".to_owned()).await.expect_err("locked"),
        n1.swarm.init(n1.init_options()).await.expect_err("a member"),
        n1.swarm.unlock(WRONG).await.expect_err("another key"),
    ];
    assert!(
        matches!(
            &refusals,
            [
                SwarmError::LeaveLocked,
                SwarmError::Locked,
                SwarmError::Locked,
                SwarmError::AlreadyMember,
                SwarmError::WrongUnlockKey
            ]
        ),
        "{refusals:?}"
    );
    assert!(is_locked(&n1));
    assert_eq!(n1.host.files(), files, "a locked manager changes no file");

    n1.swarm.unlock(key.clone()).await.expect("the right key");
    n1.becomes_manager().await;
    assert!(!is_locked(&n1));
    n1.wait_until("the worker is back", |state| has_label(state, "before") && node(state, "n2", is_ready)).await;
    set_label(&n1, "after").await.expect("a quorum");
    let n2 = n2.stop().await.start().await;
    assert!(!is_locked(&n2));
    n1.wait_until("the worker is back", |state| node(state, "n2", is_ready)).await;
    stop([n1, n2]).await;
}

#[tokio::test]
async fn all_managers_follow_the_lock_and_replace_what_was_on_their_disks() {
    let [n1, n2, n3] = cluster([Manager, Manager, Manager]).await;
    let secrets = |daemon: &Daemon| {
        let read = |name: &str| std::fs::read(daemon.host.dir().join("swarm").join(name)).expect("a file");
        [read("identity.pem"), read("log.key")]
    };
    let before = [secrets(&n1), secrets(&n2), secrets(&n3)];
    let certificates = [n1.certificate().await, n2.certificate().await, n3.certificate().await];
    let version = set_key(&n2, Some(KEY)).await;
    for (daemon, (before, certificate)) in [&n1, &n2, &n3].into_iter().zip(before.iter().zip(&certificates)) {
        follows(daemon, version).await;
        assert!(!shows(&daemon.host, "PRIVATE KEY") && !shows(&daemon.host, "raft_id"));
        assert_ne!(daemon.certificate().await, *certificate, "its key was on the disk in the clear");
        let key = &before[1];
        assert!(!daemon.host.files().iter().any(|(_, content)| content == key), "the key of the log is another one");
    }
    set_label(&n1, "locked").await.expect("a quorum");

    // A manager that is down while the key is replaced needs the former one, once.
    let host = n3.stop().await;
    let replaced = random_unlock_key().expect("a key");
    let version = set_key(&n1, Some(replaced.clone())).await;
    let n3 = host.start().await;
    let refused = n3.swarm.unlock(replaced.clone()).await.expect_err("its files have the former key");
    assert!(matches!(refused, SwarmError::WrongUnlockKey), "{refused}");
    n3.swarm.unlock(KEY).await.expect("the former key");
    n3.becomes_manager().await;
    follows(&n3, version).await;
    let n3 = n3.stop().await.start().await;
    let refused = n3.swarm.unlock(KEY).await.expect_err("the former key");
    assert!(matches!(refused, SwarmError::WrongUnlockKey), "{refused}");
    n3.swarm.unlock(replaced.clone()).await.expect("the new key");
    n3.becomes_manager().await;
    n3.wait_until("it has all changes", |state| has_label(state, "locked")).await;

    // All of them at once: none has a leader to ask.
    follows(&n1, version).await;
    follows(&n2, version).await;
    let hosts = [n3.stop().await, n2.stop().await, n1.stop().await];
    let mut daemons = Vec::new();
    for host in hosts {
        let daemon = host.start().await;
        daemon.swarm.unlock(replaced.clone()).await.expect("the new key");
        daemons.push(daemon);
    }
    let daemons: [Daemon; 3] = daemons.try_into().unwrap_or_else(|_| unreachable!("three daemons"));
    daemons[0].becomes_manager().await;
    set_label(&daemons[0], "again").await.expect("a quorum");

    daemons[1].wait_until("it has the change", |state| has_label(state, "again")).await;
    let version = set_key(&daemons[1], None).await;
    for daemon in &daemons {
        follows(daemon, version).await;
        assert!(shows(&daemon.host, "PRIVATE KEY"));
    }
    let [n3, n2, n1] = daemons;
    let n3 = n3.stop().await.start().await;
    assert!(!is_locked(&n3), "managers are not locked any more");
    n3.becomes_manager().await;
    stop([n1, n2, n3]).await;
}

#[tokio::test]
async fn a_new_manager_is_locked_from_its_first_certificate_on_and_a_former_one_is_not() {
    let (n1, key) = first_locked().await;
    let n2 = Daemon::joined("n2", &n1, Worker).await;
    let n3 = Daemon::joined("n3", &n1, Manager).await;
    assert!(!shows(&n3.host, "PRIVATE KEY"), "a manager that joins is locked");
    n1.set_role(&n2.id(), Manager).await.expect("promoted");
    n2.becomes_manager().await;
    assert!(!shows(&n2.host, "PRIVATE KEY") && !shows(&n2.host, "raft_id"), "a promoted worker is locked");
    n1.wait_until("all managers vote", |state| voters(state) == 3).await;
    for daemon in [&n2, &n3] {
        follows(daemon, lock_of(&n1).version).await;
    }

    let n2 = n2.stop().await.start().await;
    assert!(is_locked(&n2));
    n2.swarm.unlock(key).await.expect("the key");
    n2.becomes_manager().await;
    n1.set_role(&n2.id(), Worker).await.expect("demoted");
    n2.becomes_worker().await;
    n1.wait_until("the node is a worker", |state| node(state, "n2", |n| !n.in_raft_config)).await;
    let lock = n2.host.dir().join("swarm/lock.json");
    let mut interval = tokio::time::interval(Duration::from_millis(20));
    let released = async {
        while lock.exists() {
            interval.tick().await;
        }
    };
    timeout(DEADLINE, released).await.expect("released in time");
    assert!(shows(&n2.host, "PRIVATE KEY"));
    let n2 = n2.stop().await.start().await;
    assert!(!is_locked(&n2));
    n1.wait_until("the worker is back", |state| node(state, "n2", is_ready)).await;
    stop([n1, n2, n3]).await;
}

#[tokio::test]
async fn a_demotion_that_a_crash_has_interrupted_needs_no_key() {
    let (n1, _) = first_locked().await;
    let n2 = Daemon::joined("n2", &n1, Worker).await;
    let host = n2.stop().await;
    // The worker's certificate is written first, then the manager's files are removed.
    let dir = host.dir().join("swarm");
    for file in ["lock.json", "manager.json", "log.key"] {
        std::fs::copy(n1.host.dir().join("swarm").join(file), dir.join(file)).expect("copied");
    }
    let n2 = host.start().await;
    assert!(!is_locked(&n2));
    assert!(!dir.join("lock.json").exists() && !dir.join("log.key").exists());
    n1.wait_until("the worker is back", |state| node(state, "n2", is_ready)).await;
    stop([n1, n2]).await;
}

#[tokio::test]
async fn a_locked_manager_can_leave_by_force_and_begin_again() {
    let (n1, _) = first_locked().await;
    let n1 = n1.stop().await.start().await;
    n1.swarm.leave(true).await.expect("left");
    assert_eq!(*n1.swarm.membership().borrow(), Membership::None);
    assert!(n1.swarm.plans().borrow().is_none());
    let left: Vec<_> = n1.host.files().into_iter().map(|(path, _)| path).collect();
    assert!(left.is_empty(), "{left:?}");
    let refused = n1.swarm.unlock(KEY).await.expect_err("no member");
    assert!(matches!(refused, SwarmError::NotMember), "{refused}");
    n1.swarm.init(n1.init_options()).await.expect("a new cluster");
    assert!(shows(&n1.host, "PRIVATE KEY"), "it is not locked");
    stop([n1]).await;
}

/// It has no certificate, so it asks without one. Its vote still counts afterwards.
#[tokio::test]
async fn a_locked_manager_leaves_only_while_the_others_are_a_quorum_without_it() {
    let [n1, n2, n3] = cluster([Manager; 3]).await;
    let version = set_key(&n1, Some(KEY)).await;
    for daemon in [&n1, &n2, &n3] {
        follows(daemon, version).await;
    }
    let (id3, addr2) = (n3.id(), n2.rpc_addr().to_string());
    let n3 = n3.stop().await.start().await;
    assert!(is_locked(&n3));

    let host2 = n2.stop().await;
    let refused = n3.swarm.leave(true).await.expect_err("n1 alone is no quorum");
    let text = refused.to_string();
    assert!(matches!(refused, SwarmError::LeaveRefused { .. }) && text.contains(&addr2), "{text}");
    assert!(text.contains("unlock this one"), "{text}");
    assert!(is_locked(&n3) && n3.host.dir().join("swarm/raft.redb").exists());

    let n2 = host2.start().await;
    n2.swarm.unlock(KEY).await.expect("the key");
    n2.becomes_manager().await;
    set_label(&n1, "both").await.expect("n1 and n2 are a quorum");
    n3.swarm.leave(true).await.expect("n1 and n2 are a quorum without it");
    assert_eq!(*n3.swarm.membership().borrow(), Membership::None);
    n1.set_role(&id3, Worker).await.expect("demoted");
    n1.wait_until("n3 has no vote", |s| voters(s) == 2).await;
    stop([n1, n2, n3]).await;
}

#[tokio::test]
async fn a_cluster_that_is_formed_again_or_restored_is_locked_with_the_same_key() {
    let (n1, key) = first_locked().await;
    n1.swarm.reform(None).await.expect("formed again");
    let file = n1.swarm.back_up("correct horse".to_owned()).await.expect("a backup");
    let listen_addr = n1.rpc_addr();
    assert!(!shows(&n1.host, "PRIVATE KEY") && !shows(&n1.host, "raft_id"));
    let n1 = n1.stop().await.start().await;
    assert!(is_locked(&n1));
    n1.swarm.unlock(key.clone()).await.expect("the key");
    n1.becomes_manager().await;
    drop(n1.stop().await);

    let restored = Daemon::restored("n9", file, "correct horse", listen_addr).await;
    assert!(!shows(&restored.host, "PRIVATE KEY") && !shows(&restored.host, "raft_id"));
    let restored = restored.stop().await.start().await;
    assert!(is_locked(&restored));
    restored.swarm.unlock(key).await.expect("the key of the backup");
    restored.becomes_manager().await;
    set_label(&restored, "after").await.expect("a quorum");
    stop([restored]).await;
}
