//! Tests of the store (openraft's suite, full disks, and in [`power`] power cuts) and of the state
//! machine (retries, snapshots).

mod power;

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use openraft::{
    CommittedLeaderId, EntryPayload, LogId, RaftLogReader, RaftSnapshotBuilder, StorageError, Vote,
    storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine},
    testing::{StoreBuilder, Suite},
};
use redb::{Database, StorageBackend, backends::InMemoryBackend};
use tempfile::TempDir;
use weft_model::{
    Applied, ClusterState, Command, NetworkId, ServiceId, TaskId,
    state::{Restarts, Slot, TaskState},
};

use super::{
    Machine, Proposal, ProposalId, Reply, Store, StoreError, TypeConfig,
    store::{LOG, META},
};
use crate::{
    codec::{self, LOG_ENTRY, LOG_POSITION},
    fixture::{START_MS, TestCluster, network_spec, service_spec},
    vault::Vault,
};

/// Opens a log, with its key in the same directory.
fn open(path: &Path) -> Result<Store, StoreError> {
    Store::open(path, &vault_of(path))
}

fn vault_of(path: &Path) -> Vault {
    Vault::open(path.parent().expect("a directory")).expect("a vault")
}

struct OnDisk;

impl StoreBuilder<TypeConfig, Store, Machine, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, Store, Machine), StorageError<u64>> {
        let dir = tempfile::tempdir().expect("a directory");
        let store = open(&dir.path().join("raft.redb")).expect("a new log");
        let machine = Machine::open(store.clone())?;
        Ok((dir, store, machine))
    }
}

#[test]
fn the_store_passes_openrafts_suite() {
    Suite::test_all(OnDisk).expect("openraft's suite");
}

fn entry(index: u64, proposal: Proposal) -> openraft::Entry<TypeConfig> {
    let log_id = LogId::new(CommittedLeaderId::new(1, 1), index);
    openraft::Entry { log_id, payload: EntryPayload::Normal(proposal) }
}

fn init() -> Command {
    Command::InitCluster(Box::new(TestCluster::empty().init()))
}

fn create_network(id: u128) -> Command {
    Command::CreateNetwork { id: NetworkId::from_random(id), spec: Box::new(network_spec("app")) }
}

#[tokio::test]
async fn a_change_that_is_sent_twice_is_applied_once() {
    let mut machine = Machine::open(Store::with_backend(InMemoryBackend::new()).expect("a log")).expect("a machine");
    let create = Proposal::new(ProposalId(2), START_MS, create_network(7));
    let entries = [
        entry(1, Proposal::new(ProposalId(1), START_MS, init())),
        entry(2, create.clone()),
        entry(3, create.clone()),
        entry(4, Proposal { id: ProposalId(3), ..create }),
    ];
    let replies = machine.apply(entries).await.expect("applied");
    let made = Reply(Some(Ok(Applied::Network(NetworkId::from_random(7)))));
    assert_eq!(replies[1], made);
    assert_eq!(replies[2], made, "the repeated change gets the same answer");
    assert!(matches!(replies[3], Reply(Some(Err(_)))), "another change of the same name is refused");
    let state = machine.state().borrow().clone();
    assert_eq!(state.index, 4);
    assert_eq!(state.networks.len(), 2, "the ingress network and this one");
}

#[tokio::test]
async fn a_snapshot_holds_the_state_and_the_outcomes() {
    let store = Store::with_backend(InMemoryBackend::new()).expect("a log");
    let mut machine = Machine::open(store.clone()).expect("a machine");
    let create = Proposal::new(ProposalId(2), START_MS, create_network(7));
    let entries = [entry(1, Proposal::new(ProposalId(1), START_MS, init())), entry(2, create.clone())];
    machine.apply(entries).await.expect("applied");
    let snapshot = machine.get_snapshot_builder().await.build_snapshot().await.expect("a snapshot");
    let state = machine.state().borrow().clone();

    let mut resumed = Machine::open(store).expect("a machine from the snapshot");
    assert_eq!(*resumed.state().borrow(), state);
    assert_eq!(resumed.apply([entry(3, create.clone())]).await.expect("applied").len(), 1);
    assert_eq!(resumed.state().borrow().networks.len(), 2, "the repeated change is not applied again");

    let mut other = Machine::open(Store::with_backend(InMemoryBackend::new()).expect("a log")).expect("a machine");
    let mut states = other.state();
    other.install_snapshot(&snapshot.meta, snapshot.snapshot).await.expect("installed");
    assert!(states.has_changed().expect("the machine exists"));
    assert_eq!(*states.borrow_and_update(), state);
}

#[tokio::test]
async fn an_older_snapshot_does_not_replace_a_newer_one() {
    let store = Store::with_backend(InMemoryBackend::new()).expect("a log");
    let mut machine = Machine::open(store.clone()).expect("a machine");
    machine.apply([entry(1, Proposal::new(ProposalId(1), START_MS, init()))]).await.expect("applied");
    let mut slow = machine.get_snapshot_builder().await;
    machine.apply([entry(2, Proposal::new(ProposalId(2), START_MS, create_network(7)))]).await.expect("applied");
    let newer = machine.get_snapshot_builder().await.build_snapshot().await.expect("a snapshot");
    slow.build_snapshot().await.expect("an older one");
    let kept = store.snapshot().expect("readable").expect("one is kept").0;
    assert_eq!(kept.last_log_id, newer.meta.last_log_id);
}

/// An in-memory disk that reports that it is full while `full` is set.
#[derive(Debug)]
struct Fillable {
    disk: InMemoryBackend,
    full: Arc<AtomicBool>,
}

impl Fillable {
    fn check(&self) -> io::Result<()> {
        if self.full.load(Ordering::Relaxed) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for Fillable {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.disk.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        self.disk.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.disk.write(offset, data)
    }
}

#[tokio::test]
async fn a_full_disk_is_reported_with_advice_and_loses_no_entry() {
    let full = Arc::new(AtomicBool::new(false));
    let disk = Fillable { disk: InMemoryBackend::new(), full: full.clone() };
    let mut store = Store::with_backend(disk).expect("a log");
    let proposal = |id| Proposal::new(ProposalId(id), START_MS, init());
    store.blocking_append([entry(1, proposal(1))]).await.expect("there is room");
    assert_eq!(store.failure(), None);
    full.store(true, Ordering::Relaxed);
    assert!(store.blocking_append([entry(2, proposal(2))]).await.is_err());
    let failure = store.failure().expect("it failed");
    assert!(failure.contains("free some space"), "{failure}");
    assert_eq!(store.try_get_log_entries(..).await.expect("readable").len(), 1, "confirmed entries are readable");
}

/// Otherwise openraft would lead at once with a log that cannot be written.
#[tokio::test]
async fn a_manager_that_resigns_keeps_its_vote_and_does_not_lead_again_without_an_election() {
    let mut store = Store::with_backend(InMemoryBackend::new()).expect("a log");
    let elected = Vote::new_committed(3, 1);
    store.save_vote(&elected).await.expect("saved");
    assert_eq!(store.read_vote().await.expect("readable"), Some(elected));
    store.resign();
    assert_eq!(store.read_vote().await.expect("readable"), Some(Vote::new(3, 1)));
}

#[tokio::test]
async fn appended_entries_survive_closing_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("raft.redb");
    let mut store = open(&path).expect("a new log");
    let proposal = Proposal::new(ProposalId(1), START_MS, init());
    store.blocking_append([entry(1, proposal.clone())]).await.expect("appended");
    let second = open(&path).expect_err("it is in use").to_string();
    assert!(second.contains("another weft daemon"), "{second}");
    store.close().await;
    assert!(store.try_get_log_entries(..).await.is_err(), "closed for all clones");
    let mut again = open(&path).expect("the same log");
    let entries = again.try_get_log_entries(..).await.expect("readable");
    assert!(matches!(&entries[0].payload, EntryPayload::Normal(read) if *read == proposal));
    assert_eq!(again.get_log_state().await.expect("a state").last_log_id.map(|id| id.index), Some(1));
}

/// Whether the file contains `text` as it is.
fn shows(path: &Path, text: &str) -> bool {
    fs::read(path).expect("a readable file").windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn nothing_on_the_disk_is_in_clear() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("raft.redb");
    let mut store = open(&path).expect("a new log");
    let mut machine = Machine::open(store.clone()).expect("a machine");
    let name = "name-that-must-not-be-readable";
    let create = Command::CreateNetwork { id: NetworkId::from_random(7), spec: Box::new(network_spec(name)) };
    let entries = [
        entry(1, Proposal::new(ProposalId(1), START_MS, init())),
        entry(2, Proposal::new(ProposalId(2), START_MS, create)),
    ];
    store.blocking_append(entries.clone()).await.expect("appended");
    machine.apply(entries).await.expect("applied");
    machine.get_snapshot_builder().await.build_snapshot().await.expect("a snapshot");
    store.close().await;
    assert!(!shows(&path, name), "an entry or the snapshot is in clear");
    let mode = fs::metadata(dir.path().join("log.key")).expect("a key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "only root reads the key");

    let mut again = open(&path).expect("the same log");
    assert_eq!(again.try_get_log_entries(..).await.expect("readable").len(), 2);
    let snapshot = again.snapshot().expect("readable").expect("one is kept");
    assert!(snapshot.1.windows(name.len()).any(|window| window == name.as_bytes()), "the snapshot has the name");
}

#[tokio::test]
async fn a_log_with_another_key_or_without_one_is_refused_and_stays() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, key_path) = (dir.path().join("raft.redb"), dir.path().join("log.key"));
    let mut store = open(&path).expect("a new log");
    store.blocking_append([entry(1, Proposal::new(ProposalId(1), START_MS, init()))]).await.expect("appended");
    store.close().await;
    let key = fs::read(&key_path).expect("a key");
    fs::remove_file(&key_path).expect("removed");
    let missing = open(&path).expect_err("no key").to_string();
    assert!(missing.contains("log.key is missing or belongs to another log"), "{missing}");
    assert!(!key_path.exists(), "no other key takes the place of the missing one");
    fs::write(&key_path, [7; 32]).expect("written");
    open(&path).expect_err("another key");
    fs::write(&key_path, key).expect("written");
    let mut again = open(&path).expect("the right key");
    assert_eq!(again.try_get_log_entries(..).await.expect("readable").len(), 1);
}

#[tokio::test]
async fn the_key_of_a_log_is_replaced_while_entries_are_appended() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, key_path) = (dir.path().join("raft.redb"), dir.path().join("log.key"));
    let numbered = |index: u64| entry(index, Proposal::new(ProposalId(index.into()), START_MS, init()));
    let count = async |store: &mut Store| store.try_get_log_entries(..).await.expect("readable").len();
    let mut store = open(&path).expect("a new log");
    let mut machine = Machine::open(store.clone()).expect("a machine");
    store.blocking_append([numbered(1), numbered(2)]).await.expect("appended");
    machine.apply([numbered(1)]).await.expect("applied");
    machine.get_snapshot_builder().await.build_snapshot().await.expect("a snapshot");
    store.save_vote(&Vote::new(3, 1)).await.expect("saved");
    store.close().await;
    let (former_log, former_key) = (fs::read(&path).expect("a log"), fs::read(&key_path).expect("a key"));

    store = open(&path).expect("the log");
    let vault = vault_of(&path);
    let mut appender = store.clone();
    let append = async {
        for index in 3..=20 {
            appender.blocking_append([numbered(index)]).await.expect("appended");
        }
    };
    let (replaced, ()) = tokio::join!(store.replace_key(&vault), append);
    replaced.expect("replaced");
    assert_eq!(count(&mut store).await, 20);
    store.close().await;
    let key = fs::read(&key_path).expect("a key");
    assert!(key.len() == former_key.len() && key != former_key, "one other key");
    fs::write(&key_path, &former_key).expect("written");
    open(&path).expect_err("the former key opens nothing");
    // A crash after the records were encrypted with the new key.
    fs::write(&key_path, [key.as_slice(), &former_key].concat()).expect("written");
    store = open(&path).expect("the log");
    assert_eq!(count(&mut store).await, 20);
    assert_eq!(store.read_vote().await.expect("readable"), Some(Vote::new(3, 1)));
    assert!(store.snapshot().expect("readable").is_some());
    assert_eq!(fs::read(&key_path).expect("a key"), key, "the former key is forgotten");
    store.close().await;
    // A crash before that.
    fs::write(&path, former_log).expect("written");
    fs::write(&key_path, [key.as_slice(), &former_key].concat()).expect("written");
    store = open(&path).expect("the former log");
    assert_eq!(count(&mut store).await, 2);
    assert_eq!(fs::read(&key_path).expect("a key"), former_key, "the new key was not used");
}

#[tokio::test]
async fn a_log_of_weft_0_1_0_is_encrypted_when_it_is_opened() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("raft.redb");
    let name = "name-that-was-in-clear";
    let create = Command::CreateNetwork { id: NetworkId::from_random(7), spec: Box::new(network_spec(name)) };
    let proposal = Proposal::new(ProposalId(2), START_MS, create);
    let vote = Vote::new(3, 1);
    let former = Database::create(&path).expect("a file");
    let write = former.begin_write().expect("a transaction");
    let bytes = codec::encode(&LOG_ENTRY, &entry(1, proposal.clone())).expect("encoded");
    write.open_table(LOG).expect("a table").insert(1, bytes.as_slice()).expect("inserted");
    let bytes = codec::encode(&LOG_POSITION, &vote).expect("encoded");
    write.open_table(META).expect("a table").insert("vote", bytes.as_slice()).expect("inserted");
    write.commit().expect("committed");
    drop(former);
    assert!(shows(&path, name), "the test's file is in clear");
    // Left by a daemon that was killed while it encrypted the log.
    fs::write(dir.path().join("raft.redb.new"), b"half").expect("written");

    let mut store = open(&path).expect("encrypted");
    store.close().await;
    assert!(!shows(&path, name), "the file is encrypted as a whole");
    assert_eq!(fs::read_dir(dir.path()).expect("entries").count(), 2, "the log and its key are left");
    store = open(&path).expect("the encrypted log");
    assert_eq!(store.read_vote().await.expect("readable"), Some(vote), "the vote is kept");
    let entries = store.try_get_log_entries(..).await.expect("readable");
    assert!(matches!(&entries[0].payload, EntryPayload::Normal(read) if *read == proposal));
}

#[tokio::test]
async fn a_log_whose_creation_was_cut_off_is_created_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("raft.redb");
    // As the end of the power leaves it: the first page is not on the disk.
    fs::write(dir.path().join("raft.redb.new"), [0; 4096]).expect("written");
    let mut store = open(&path).expect("a new log");
    store.blocking_append([entry(1, Proposal::new(ProposalId(1), START_MS, init()))]).await.expect("appended");
    store.close().await;
    assert_eq!(fs::read_dir(dir.path()).expect("entries").count(), 2, "the log and its key are left");
}

#[test]
fn a_log_in_a_missing_directory_is_refused_with_advice() {
    let dir = tempfile::tempdir().expect("a directory");
    let error = open(&dir.path().join("missing/raft.redb")).expect_err("no such directory").to_string();
    assert!(error.contains("check the disk"), "{error}");
}

#[tokio::test]
async fn the_same_entries_give_the_same_digest_and_others_another() {
    let digest = async |second: Command| {
        let mut machine =
            Machine::open(Store::with_backend(InMemoryBackend::new()).expect("a log")).expect("a machine");
        let mut digests = machine.digests();
        let entries = [
            entry(999, Proposal::new(ProposalId(1), START_MS, init())),
            entry(1_000, Proposal::new(ProposalId(2), START_MS, second)),
            entry(1_001, Proposal::new(ProposalId(3), START_MS, create_network(9))),
        ];
        machine.apply(entries).await.expect("applied");
        let digest = *digests.wait_for(Option::is_some).await.expect("the machine exists");
        digest.expect("a digest")
    };
    let first = digest(create_network(7)).await;
    assert_eq!(first.index, 1_000);
    assert_eq!(digest(create_network(7)).await, first);
    assert_ne!(digest(create_network(8)).await, first);
}

#[tokio::test]
async fn a_log_that_is_marked_unusable_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("raft.redb");
    let store = open(&path).expect("a new log");
    store.mark_unusable("the state differs".to_owned()).await.expect("marked");
    assert_eq!(store.failure().as_deref(), Some("the state differs"));
    store.close().await;
    let refused = open(&path).expect_err("unusable").to_string();
    assert!(refused.contains("the state differs"), "{refused}");
}

/// With a copy of its spec, each task would take 1 MB, and all of them 60 GB.
#[tokio::test]
async fn a_large_spec_of_many_tasks_is_in_memory_and_in_a_snapshot_once() {
    const TASKS: u64 = 60_000;
    const SPEC_BYTES: usize = 1 << 20;
    let service = ServiceId::from_random(1);
    let mut spec = service_spec("web", TASKS, &[]);
    spec.task.container.env = vec![format!("LARGE={}", "x".repeat(SPEC_BYTES))];
    let create = Command::CreateService { id: service.clone(), spec: Box::new(spec) };
    let task = |slot: u64| Command::CreateTask {
        id: TaskId::from_random(u128::from(slot)),
        service: service.clone(),
        slot: Slot::Replica(slot),
        desired: TaskState::Running,
        not_before_ms: 0,
        restarts: Restarts::default(),
    };
    let proposal = |index: u64, command| entry(index, Proposal::new(ProposalId(index.into()), START_MS, command));
    let all_share = |state: &ClusterState| {
        let spec = &state.services[&service].spec.task;
        state.tasks.values().all(|task| task.spec.is_same(spec))
    };
    let open = || Machine::open(Store::with_backend(InMemoryBackend::new()).expect("a log")).expect("a machine");
    let mut machine = open();
    machine.apply([proposal(1, init()), proposal(2, create), proposal(3, task(1))]).await.expect("applied");
    assert!(all_share(&machine.state().borrow()), "else the rest uses up the memory of the machine");
    machine.apply((2..=TASKS).map(|slot| proposal(slot + 2, task(slot)))).await.expect("applied");
    assert!(all_share(&machine.state().borrow()));

    let snapshot = machine.get_snapshot_builder().await.build_snapshot().await.expect("a snapshot");
    let bytes = snapshot.snapshot.len();
    // The spec of the service, and that of its tasks.
    let of_tasks = bytes.checked_sub(2 * SPEC_BYTES).expect("both specs") as u64;
    println!(
        "{TASKS} tasks with a spec of {SPEC_BYTES} bytes: a snapshot of {bytes} bytes, {} for each",
        of_tasks / TASKS
    );
    assert!(of_tasks < 400 * TASKS, "{} bytes for each task", of_tasks / TASKS);
    let mut other = open();
    other.install_snapshot(&snapshot.meta, snapshot.snapshot).await.expect("installed");
    let next = || proposal(TASKS + 3, task(TASKS + 1));
    for machine in [&mut machine, &mut other] {
        machine.apply([next()]).await.expect("applied");
        assert!(all_share(&machine.state().borrow()), "also the tasks that come later");
    }
    let [replica, installed] = [machine, other].map(Machine::into_replica);
    assert_eq!(replica.state.tasks.keys().count() as u64, TASKS + 1);
    assert_eq!(replica.digest(1).expect("a digest"), installed.digest(1).expect("a digest"));
}
