//! The width of comment lines, and words that must not be identifiers.

use std::path::Path;

use anyhow::{Result, anyhow};
use proc_macro2::{TokenStream, TokenTree};

use super::Complaint;

/// Columns that a comment line may have. Code has rustfmt's width.
const WIDTH: usize = 100;

/// Words that are unclear as names. CONTRIBUTING.md asks for the usual technical term instead. An
/// identifier is refused if the whole of it is such a word, in any case and with or without
/// underscores.
const WORDS: &[&str] = &[
    "desk", "book", "heard", "seat", "outlets", "begun", "keeper", "trouble", "tend", "cover", "roll", "ears", "aside",
    "carryout", "way", "go", "enter", "lost",
];

/// # Errors
/// When the text is not Rust.
pub(super) fn check(file: &Path, text: &str) -> Result<Vec<Complaint>> {
    let tokens: TokenStream = text.parse().map_err(|error| anyhow!("{}: {error}", file.display()))?;
    let mut words = Vec::new();
    find_words(tokens, &mut words);
    let complaint = |line, advice| Complaint { file: file.to_owned(), line, advice };
    let wide = wide_comments(text)
        .into_iter()
        .map(|(line, width)| complaint(line, format!("this comment line has {width} columns: wrap it at {WIDTH}")));
    let words = words.into_iter().map(|(line, word)| {
        complaint(
            line,
            format!("`{word}` must not be an identifier: use the usual technical term (CONTRIBUTING.md, section Code)"),
        )
    });
    Ok(wide.chain(words).collect())
}

/// Comment lines that are too wide, with their widths. Tables and lines with a URL cannot be
/// wrapped, and are left out.
fn wide_comments(text: &str) -> Vec<(usize, usize)> {
    let is_wide = |line: &&str| {
        let Some(comment) = line.trim_start().strip_prefix("//") else { return false };
        let content = comment.trim_start_matches(['/', '!']).trim_start();
        line.chars().count() > WIDTH && !content.starts_with('|') && !content.contains("://")
    };
    let numbered = text.lines().enumerate();
    numbered.filter(|(_, line)| is_wide(line)).map(|(index, line)| (index + 1, line.chars().count())).collect()
}

/// Appends the first place of each of [`WORDS`] in a file. A name after `.` or `::` is left out: a
/// name of this project is reported where it is defined, and a name of another crate cannot be
/// changed.
fn find_words(tokens: TokenStream, found: &mut Vec<(usize, String)>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let is_punct = |index: Option<usize>, punct: char| {
        let token = index.and_then(|index| tokens.get(index));
        matches!(token, Some(TokenTree::Punct(found)) if found.as_char() == punct)
    };
    for (index, token) in tokens.iter().enumerate() {
        let (before, two_before) = (index.checked_sub(1), index.checked_sub(2));
        match token {
            TokenTree::Group(group) => find_words(group.stream(), found),
            TokenTree::Ident(ident) => {
                let text = ident.to_string();
                let is_word = WORDS.contains(&text.replace('_', "").to_lowercase().as_str());
                let is_use = is_punct(before, '.') || (is_punct(before, ':') && is_punct(two_before, ':'));
                if is_word && !is_use && found.iter().all(|(_, known)| *known != text) {
                    found.push((ident.span().start().line, text));
                }
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_line(line: &str, is_wide: bool) {
        assert_eq!(!wide_comments(line).is_empty(), is_wide, "{line}");
    }

    #[test]
    fn comments_have_at_most_100_columns() {
        let words = "é".repeat(97);
        check_line(&format!("// {words}"), false);
        check_line(&format!("//! {words}"), true);
        check_line(&format!("    // {words}"), true);
        check_line(&format!("let text = {words}; // code"), false);
        check_line(&format!("/// | {words} |"), false);
        check_line(&format!("/// <https://example.test/{words}>"), false);
        assert_eq!(wide_comments(&format!("\n// {words}.\n")), [(2, 101)]);
    }

    #[track_caller]
    fn check_words(text: &str, expected: &[(usize, &str)]) -> Result<()> {
        let mut found = Vec::new();
        find_words(text.parse().map_err(|error| anyhow!("{error}"))?, &mut found);
        let found: Vec<(usize, &str)> = found.iter().map(|(line, word)| (*line, word.as_str())).collect();
        assert_eq!(found, expected, "{text}");
        Ok(())
    }

    #[test]
    fn words_are_found_as_whole_identifiers() -> Result<()> {
        check_words("struct Desk;\nfn carry_out(go: u8) {}", &[(1, "Desk"), (2, "carry_out"), (2, "go")])?;
        check_words("enum E { OnFailure, CarryOut }", &[(1, "CarryOut")])?;
        check_words("fn f() { x!({ let enter: u8 = 1; }) }", &[(1, "enter")])?;
        check_words("fn cargo_home() { gateway(\"on the way\"); } // go home", &[])
    }

    #[test]
    fn words_are_reported_once_and_where_they_are_defined() -> Result<()> {
        check_words("struct S { lost: u8 }\nfn f(lost: u8) {}", &[(1, "lost")])?;
        check_words("fn f(x: Way) { span.enter(); hyper::upgrade::on(x.home) }", &[(1, "Way")])
    }
}
