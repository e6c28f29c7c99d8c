//! The `weft` binary: the daemon, the command line and the processes that the runtime starts, all
//! in one program.

mod runtime;
mod clock;
mod agent;
mod preflight;
mod daemon;
mod cli;

use std::{ffi::OsString, process::ExitCode};

fn main() -> ExitCode {
    // The processes of the runtime come first: they must not have any thread besides this one.
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(code) = runtime::internal(&args) {
        return code;
    }
    cli::main()
}
