//! An entry of the Raft log, or a position in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_control::fuzzing;

fuzz_target!(|data: &[u8]| fuzzing::log(data));
