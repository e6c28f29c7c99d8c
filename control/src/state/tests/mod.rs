//! Tests of `apply`: the effect of each command on the cluster state, and each refusal with its
//! text.

mod cluster;
mod attached;
mod dependencies;
mod keys;
mod networks;
mod properties;
mod services;
mod tasks;

use weft_model::{Command, Rejection};

use crate::fixture::TestCluster;

/// Checks that the command is refused with this text. These texts are shown to users.
fn check_refused(cluster: &mut TestCluster, command: Command, text: &str) {
    match cluster.apply(command) {
        Err(refused) => assert_eq!(refused.to_string(), text),
        Ok(applied) => panic!("expected {text:?}, got {applied:?}"),
    }
}

/// The text of the refusal.
fn refusal<T: std::fmt::Debug>(result: Result<T, Rejection>) -> String {
    result.expect_err("the command must be refused").to_string()
}
