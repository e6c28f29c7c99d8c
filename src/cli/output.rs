//! Writes to standard output and standard error. All commands print through this module; only the
//! parser prints its help itself.

use std::{
    fmt::Display,
    io::{self, Write},
};

use anyhow::Result;

/// The error if the output is a pipe that its reader has closed.
#[derive(Debug, thiserror::Error)]
#[error("cannot print: the reader of the output closed the pipe")]
pub(super) struct ClosedPipe;

/// Prints the text to standard output.
///
/// # Errors
///
/// [`ClosedPipe`], or the error of the write.
pub(super) fn print(text: impl Display) -> Result<()> {
    write(&mut io::stdout().lock(), text.to_string().as_bytes())
}

/// Prints the text and a newline to standard output.
pub(super) fn print_line(text: impl Display) -> Result<()> {
    print(format_args!("{text}\n"))
}

/// Prints the text and a newline to standard error. It ignores errors, because there is no other
/// output on which to report them.
pub(super) fn print_to_stderr(text: impl Display) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// Writes all bytes and flushes.
///
/// # Errors
///
/// [`ClosedPipe`], or the error of the write.
pub(super) fn write(to: &mut impl Write, bytes: &[u8]) -> Result<()> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ClosedPipe.into()),
        outcome => Ok(outcome?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_has_its_own_error() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        write(&mut writer, b"read").expect("the reader is open");
        drop(reader);
        assert!(write(&mut writer, b"not read").expect_err("the reader is closed").is::<ClosedPipe>());
        let mut full: &mut [u8] = &mut [0; 2];
        assert!(!write(&mut full, b"too long").expect_err("there is no room").is::<ClosedPipe>());
    }
}
