//! The credentials of a registry in the header of a request.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_control::api::fuzzing;

fuzz_target!(|data: &[u8]| fuzzing::credentials(data));
