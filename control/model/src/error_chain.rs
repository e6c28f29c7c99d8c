//! The text of an error together with all its causes, as logs, task statuses and the daemon's
//! start-up show it. All crates of weft that print an error call this one function.

use std::error::Error;

/// Joins an error and its causes with `: `.
///
/// A cause is left out if the text already contains it, because some libraries repeat their cause
/// in their own message.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    const CAUSE: &str = "the one cause";

    #[derive(Debug, thiserror::Error)]
    #[error("outer: {source}")]
    struct RepeatsItsCause {
        source: io::Error,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct HasACause {
        source: io::Error,
    }

    #[test]
    fn appends_a_cause_that_the_error_does_not_repeat_itself() {
        for error in [
            &RepeatsItsCause { source: io::Error::other(CAUSE) } as &dyn Error,
            &HasACause { source: io::Error::other(CAUSE) },
        ] {
            assert_eq!(error_chain(error), format!("outer: {CAUSE}"));
        }
    }
}
