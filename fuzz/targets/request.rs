//! A certificate request.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_control::fuzzing;

fuzz_target!(|text: &str| fuzzing::certificate_request(text));
