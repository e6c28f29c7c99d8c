//! A change of the cluster state.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_control::fuzzing;

/// The cluster that the change is applied to.
const SNAPSHOT: &[u8] = include_bytes!("../../control/golden/snapshot.v2.bin");

fuzz_target!(|data: &[u8]| fuzzing::command(SNAPSHOT, data));
