//! A join token.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_control::fuzzing;

fuzz_target!(|text: &str| fuzzing::token(text));
