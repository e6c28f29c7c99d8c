//! Secrets that the user enters.

use std::io::{self, BufRead as _, IsTerminal as _};

use anyhow::{Context as _, Result};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::output::print_to_stderr;

/// Reads a line from standard input. A terminal does not show it. `prompt` and `what` name the
/// secret, the one before it is read, the other in errors.
pub(super) fn ask(prompt: &str, what: &str) -> Result<String> {
    let stdin = io::stdin();
    let shown = if stdin.is_terminal() {
        print_to_stderr(prompt);
        let shown = tcgetattr(&stdin).context("cannot read the settings of the terminal")?;
        let mut hidden = shown.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Now, &hidden).with_context(|| format!("cannot hide the {what}"))?;
        Some(shown)
    } else {
        None
    };
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    if let Some(shown) = shown {
        tcsetattr(&stdin, OptionalActions::Now, &shown).context("cannot restore the settings of the terminal")?;
    }
    read.with_context(|| format!("cannot read the {what} from standard input"))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
