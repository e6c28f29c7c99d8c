//! Every source file begins with module docs.

use std::path::Path;

use super::Complaint;

pub(super) fn check(file: &Path, text: &str) -> Option<Complaint> {
    let advice = "begin with `//!`: what the module does, who calls it, and what it must not do".to_owned();
    (!begins_with_docs(text)).then(|| Complaint { file: file.to_owned(), line: 0, advice })
}

fn begins_with_docs(text: &str) -> bool {
    // Attributes of the crate, such as `#![no_std]`, may come first.
    let first = text.lines().find(|line| !line.is_empty() && !line.starts_with("#!["));
    first.is_some_and(|line| line.starts_with("//!"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docs_come_before_code() {
        for (text, expected) in [
            ("//! Docs.\nmod a;\n", true),
            ("#![no_std]\n\n//! Docs.\n", true),
            ("// A comment.\n//! Docs.\n", false),
            ("use std::fs;\n", false),
            ("", false),
        ] {
            assert_eq!(begins_with_docs(text), expected, "{text:?}");
        }
    }
}
