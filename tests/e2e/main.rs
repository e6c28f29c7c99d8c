//! End-to-end tests: the tests run the real binary in real network namespaces and control it only
//! as a user can. Each file has a group of tests about one subject, and the name of each test is a
//! property that weft guarantees.
//!
//! The tests of a group share a running cluster ([`harness`]) and run one after the other. The last
//! test of each group checks that nothing of its lab is left. They need root.

mod harness;
mod fixtures;
mod invariants;
mod maps;
mod cluster;
mod mesh;
mod uplinks;
mod lookups;
mod names;
mod unbound;
mod kernel_names;
mod resolver_address;
mod isolation;
mod networks;
mod node_networks;
mod secrets;
mod encrypted;
mod scaling;
mod update;
mod rollouts;
mod connections;
mod failure;
mod certificates;
mod locking;
mod moving;
mod pauses;
mod partitions;
mod full_disk;
mod disasters;
mod upgrade;
mod errors;
mod docker_view;
mod docker_runtime;
mod docker_load;
mod docker_client;
mod registry;
mod attachable;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Err(error) = weft_lab::resolver::run_if_requested() {
        eprintln!("resolver: {error:#}");
        return ExitCode::FAILURE;
    }
    match weft_lab::speed::measure_if_requested() {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    }
    let mut groups = vec![
        cluster::story(),
        cluster::membership(),
        mesh::group(),
        uplinks::group(),
        names::group(),
        isolation::group(),
        networks::group(),
        node_networks::group(),
        encrypted::group(),
        scaling::group(),
        update::group(),
        rollouts::group(),
        failure::daemons(),
        failure::nodes(),
        certificates::group(),
        locking::group(),
        moving::group(),
        partitions::group(),
        partitions::promotions(),
        full_disk::group(),
        disasters::group(),
        errors::group(),
        docker_runtime::group(),
        docker_runtime::failures(),
        docker_load::group(),
        docker_client::group(),
        registry::group(),
        attachable::group(),
    ];
    groups.extend(upgrade::groups());
    harness::run(groups)
}
