//! Decodes the golden files: records as released versions have written them, in
//! `control/golden/<kind>[-<sample>].v<schema version>.bin`. Those of JSON files are checked in
//! [`crate::json::golden`].
//!
//! `cargo xtask golden` adds the files that are missing, those of a new schema version. A file of a
//! released version never changes. Until the release, delete a file to have it written again.

use std::{fmt::Debug, fs, path::PathBuf};

use openraft::Vote;
use serde::{Serialize, de::DeserializeOwned};
use weft_model::{ClusterState, Command, NodePlan};

use super::{samples, *};
use crate::raft::{Replica, sample_snapshot};

fn path(kind: &Kind, sample: &str, version: usize) -> PathBuf {
    let name = kind.name.to_lowercase().replace(' ', "-");
    let sample = if sample.is_empty() { String::new() } else { format!("-{sample}") };
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("golden/{name}{sample}.v{version}.bin"))
}

/// Checks that `value` is written in each schema version as the golden files are, and that every
/// file is read. What the newest version reads must be `value` itself.
fn check<T: Serialize + DeserializeOwned + Debug>(kind: &Kind, sample: &str, value: &T) {
    check_from(kind, sample, 1, value);
}

/// The same for a value that schema versions before `first` could not express.
fn check_from<T: Serialize + DeserializeOwned + Debug>(kind: &Kind, sample: &str, first: usize, value: &T) {
    for (at, &level) in kind.levels.iter().enumerate().skip(first - 1) {
        check_version(kind, sample, at, level, value);
    }
}

/// The same for a value that depends on the feature level.
fn check_at<T: Serialize + DeserializeOwned + Debug>(kind: &Kind, sample: &str, value_at: impl Fn(u32) -> T) {
    for (at, &level) in kind.levels.iter().enumerate() {
        check_version(kind, sample, at, level, &value_at(level));
    }
}

fn check_version<T: Serialize + DeserializeOwned + Debug>(kind: &Kind, sample: &str, at: usize, level: u32, value: &T) {
    let path = path(kind, sample, at + 1);
    let bytes = encode_at(kind, level, value).expect("the value is encoded");
    if std::env::var_os("WEFT_ADD_GOLDEN").is_some() && !path.exists() {
        fs::write(&path, &bytes).expect("the file is written");
    }
    let golden = fs::read(&path)
        .unwrap_or_else(|e| panic!("cannot read {}: {e}: add it with `cargo xtask golden`", path.display()));
    let read: T = decode(kind, &golden).unwrap_or_else(|e| panic!("cannot decode {}: {e}", path.display()));
    assert_eq!(encode_at(kind, level, &read).expect("encoded"), golden, "{} is written again", path.display());
    assert_eq!(bytes, golden, "{}: the types of this record have changed (codec/history.rs)", path.display());
    if at + 1 == kind.levels.len() {
        assert_eq!(format!("{read:?}"), format!("{value:?}"), "{}", path.display());
    }
}

#[test]
fn every_kind_of_every_version_is_read_and_written() {
    for (entry, sample) in samples::entries().iter().zip(["blank", "normal", "membership"]) {
        check(&LOG_ENTRY, sample, entry);
    }
    check(&LOG_POSITION, "vote", &Vote::<u64>::new(4, 2));
    check(&LOG_POSITION, "purged", &samples::log_id(4));
    check(&LOG_POSITION, "committed", &Some(samples::log_id(7)));
    // The stored form of a state is that of its own feature level.
    check_at::<Replica>(&SNAPSHOT, "", |level| {
        let state = ClusterState { feature_level: level, ..samples::state() };
        sample_snapshot(Some(samples::log_id(7)), samples::membership(), state)
    });
    check(&STORED_SNAPSHOT, "", &(samples::snapshot_meta(), vec![1u8, 2, 3]));
    check_at(&PLAN, "", |level| plan::at_level(&samples::plan(), level));
    check(&REPORT, "", &samples::report());
    check(&RAFT_MESSAGE, "append", &samples::append());
    check(&RAFT_MESSAGE, "vote", &samples::vote_request());
    for (reply, sample) in samples::append_replies().iter().zip(["success", "partial", "conflict", "later-vote"]) {
        check(&RAFT_MESSAGE, &format!("append-reply-{sample}"), reply);
    }
    check(&RAFT_MESSAGE, "vote-reply", &samples::vote_reply());
    check(&RAFT_MESSAGE, "snapshot", &samples::snapshot_header());
    check(&RAFT_MESSAGE, "snapshot-reply", &samples::snapshot_reply());
    check(&COMMAND, "", &Command::Batch(samples::commands()));
    check_from(&COMMAND, "later", 2, &Command::Batch(samples::later_commands()));
    for (outcome, sample) in samples::outcomes().iter().zip(["0", "1", "2"]) {
        check(&OUTCOME, sample, outcome);
    }
    check(&BACKUP, "", &samples::backup());
    check(&LOG_OPTIONS, "", &samples::log_options());
}

#[test]
fn every_golden_file_belongs_to_a_kind() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden");
    for file in fs::read_dir(dir).expect("the golden files") {
        let name = file.expect("an entry").file_name().into_string().expect("a name");
        let known = match name.strip_suffix(".json") {
            // `crate::json`
            Some(name) => ["node.v1", "manager.v1", "lock.v1"].contains(&name),
            None => KINDS.iter().any(|kind| name.starts_with(&kind.name.to_lowercase().replace(' ', "-"))),
        };
        assert!(known, "{name}");
    }
}

#[test]
fn newer_fields_are_left_out_for_an_older_reader_and_get_their_default() {
    let mut plan = NodePlan { feature_level: 1, ..samples::plan() };
    // An older reader never gets these.
    plan.tasks.retain(|task| task.node_network.is_none() && task.container.files().next().is_none());
    let old: NodePlan = decode(&PLAN, &encode_at(&PLAN, 0, &plan).expect("encoded")).expect("decoded");
    let (roots_pem, mut tasks) = (String::new(), plan::at_level(&plan, 0).tasks);
    tasks.iter_mut().for_each(|task| task.registry_auth = None);
    let (attached, attached_names) = (vec![], vec![]);
    let expected = NodePlan { epoch: 0, feature_level: 0, raft_id: 0, roots_pem, tasks, ..plan.clone() };
    assert_eq!(old, NodePlan { attached, attached_names, dependencies: vec![], ..expected });
    assert_eq!(decode::<NodePlan>(&PLAN, &encode(&PLAN, &plan).expect("encoded")).expect("decoded"), plan);
}

#[test]
fn a_newer_variant_cannot_be_written_for_an_older_reader() {
    let command = Command::Batch(vec![Command::SetFeatureLevel { level: 1 }]);
    let error = encode_at(&COMMAND, 0, &command).expect_err("level 0 has no such command").to_string();
    assert!(error.contains("damaged"), "{error}");
    let bytes = encode(&COMMAND, &command).expect("encoded");
    assert_eq!(decode::<Command>(&COMMAND, &bytes).expect("decoded"), command);
    // The same bytes with the header of the first release: it has no such variant.
    let body = &bytes[4 + usize::from(bytes[3])..];
    let old = [&[LEVEL_0][..], body].concat();
    assert!(matches!(decode::<Command>(&COMMAND, &old), Err(CodecError::Damaged(_))));
}

#[test]
fn a_newer_schema_version_is_refused_with_the_release_that_reads_it() {
    let mut bytes = encode(&SNAPSHOT, &ClusterState::default()).expect("encoded");
    assert_eq!(bytes[..4], [LATER, SNAPSHOT.code, 2, 5]);
    bytes[2] = 3;
    bytes[4..9].copy_from_slice(b"9.8.7");
    let error = decode::<ClusterState>(&SNAPSHOT, &bytes).expect_err("a newer version").to_string();
    assert!(error.contains("snapshot of schema version 3") && error.contains("run weft 9.8.7 or later"), "{error}");
}

#[test]
fn refuses_other_kinds_other_formats_and_damaged_bytes() {
    let bytes = encode(&PLAN, &samples::plan()).expect("encoded");
    assert!(matches!(decode::<NodePlan>(&REPORT, &bytes), Err(CodecError::Kind { expected: "report", found: 5 })));
    assert!(matches!(decode::<NodePlan>(&PLAN, &[]), Err(CodecError::Empty)));
    assert!(matches!(decode::<NodePlan>(&PLAN, &[9, 1]), Err(CodecError::Format { found: 9 })));
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(decode::<NodePlan>(&PLAN, &longer), Err(CodecError::Trailing(1))));
    for end in 0..bytes.len() {
        assert!(decode::<NodePlan>(&PLAN, &bytes[..end]).is_err(), "{end} of {} bytes", bytes.len());
    }
}
