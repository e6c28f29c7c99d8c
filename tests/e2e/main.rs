//! End to end: the real binary on real network namespaces, driven as a user would drive it. One file for each theme; the
//! names of the tests, read aloud, say what weft promises.
//!
//! The tests of a theme share a running cluster ([`harness`]), run one after the other, and end with the proof that
//! nothing of it is left. They need root, and say so.

mod cluster;
mod connections;
mod docker_client;
mod docker_runtime;
mod errors;
mod failure;
mod fixtures;
mod harness;
mod isolation;
mod mesh;
mod names;
mod scaling;
mod update;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Err(error) = weft_lab::resolver::run_if_asked() {
        eprintln!("resolver: {error:#}");
        return ExitCode::FAILURE;
    }
    harness::run(vec![
        cluster::story(),
        cluster::membership(),
        mesh::theme(),
        names::theme(),
        isolation::theme(),
        scaling::theme(),
        update::theme(),
        failure::daemons(),
        failure::nodes(),
        errors::theme(),
        docker_runtime::theme(),
        docker_runtime::failures(),
        docker_client::theme(),
    ])
}
