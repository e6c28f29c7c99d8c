//! The filters of a list.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_control::api::fuzzing;

fuzz_target!(|text: &str| fuzzing::filters(text));
