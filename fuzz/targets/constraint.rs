//! A constraint of a service.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_control::api::fuzzing;

fuzz_target!(|text: &str| fuzzing::constraint(text));
