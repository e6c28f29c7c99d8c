//! Every refusal and what each command does, told from outside: by commands and the table that they leave.

mod cluster;
mod networks;
mod properties;
mod services;
mod tasks;

use weft_model::{Command, Rejection};

use crate::fixture::TestCluster;

/// The command is refused with this text, which users read.
fn check_refused(cluster: &mut TestCluster, command: Command, text: &str) {
    match cluster.apply(command) {
        Err(refused) => assert_eq!(refused.to_string(), text),
        Ok(applied) => panic!("expected {text:?}, got {applied:?}"),
    }
}

fn text<T: std::fmt::Debug>(result: Result<T, Rejection>) -> String {
    result.unwrap_err().to_string()
}
