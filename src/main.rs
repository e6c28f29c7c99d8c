//! The `weft` binary: daemon and command line in one. Parses, dispatches, turns the outcome into an exit code.

mod agent;
mod cli;
mod clock;
mod daemon;
mod preflight;
mod runtime;

use std::{ffi::OsString, process::ExitCode};

fn main() -> ExitCode {
    // Before anything else: a shim must not have threads.
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(code) = runtime::internal(&args) {
        return code;
    }
    cli::main()
}
