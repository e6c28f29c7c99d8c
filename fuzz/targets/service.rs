//! The body of a request that creates a service.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_control::api::fuzzing;

fuzz_target!(|data: &[u8]| fuzzing::service(data));
