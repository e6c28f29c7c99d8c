//! Sets up the daemon's log, which goes to standard error, filtered by an environment variable.
//! [`super::run`] calls it first.

use std::{
    borrow::Cow,
    env,
    ffi::OsStr,
    io::{self, IsTerminal as _},
};

use anyhow::{Result, anyhow};
use tracing_subscriber::EnvFilter;

use weft_model::error_chain;

/// Environment variable with the filter, such as `debug` or `weft_mesh=trace,info`.
const VARIABLE: &str = "WEFT_LOG";
/// The filter if the variable is not set. openraft logs an error each time that it cannot reach
/// another manager, which is normal when that manager is down. openraft also returns the errors
/// that matter, and weft logs those.
const DEFAULT: &str = "info,openraft=off";

/// Starts logging, once for the whole process.
///
/// # Errors
///
/// If `WEFT_LOG` is not a valid filter.
///
/// # Panics
///
/// If it is called twice.
pub(super) fn init() -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(filter(env::var_os(VARIABLE).as_deref())?)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    Ok(())
}

/// The filter that the value of the variable describes.
fn filter(value: Option<&OsStr>) -> Result<EnvFilter> {
    let value = value.filter(|text| !text.is_empty());
    let text = value.map_or(Cow::Borrowed(DEFAULT), OsStr::to_string_lossy);
    EnvFilter::try_new(&text).map_err(|error| {
        let reason = error_chain(&error);
        anyhow!("{VARIABLE}={text} is not a valid log filter ({reason}): give one like debug or weft_mesh=trace,info")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_valid_filters_and_refuses_others() {
        for valid in [None, Some(""), Some("debug"), Some("weft_mesh=trace,info")] {
            assert!(filter(valid.map(OsStr::new)).is_ok(), "{valid:?}");
        }
        let error = format!("{:#}", filter(Some(OsStr::new("weft_mesh=loud"))).expect_err("loud is not a level"));
        assert!(error.contains("WEFT_LOG=weft_mesh=loud") && error.contains("debug"), "{error}");
    }
}
