//! A snapshot of the cluster state.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_control::fuzzing;

fuzz_target!(|data: &[u8]| fuzzing::snapshot(data));
