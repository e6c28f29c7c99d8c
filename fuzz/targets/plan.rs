//! The plan of a node.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_control::fuzzing;

fuzz_target!(|data: &[u8]| fuzzing::plan(data));
