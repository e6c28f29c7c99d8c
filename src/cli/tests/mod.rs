//! Tests of the whole command line: which command lines it accepts, and which errors it prints for
//! the others.

mod accepted;
mod unsupported;

use std::{any::TypeId, cell::Cell, ffi::OsString};

use clap::{Arg, ArgAction, Command};

use super::{Cli, for_each_name, output::ClosedPipe, parse, parser};

/// Parses a line such as `node ls`, without the name of the program. The words must not contain
/// quotes or spaces.
fn parse_line(line: &str) -> Result<Cli, clap::Error> {
    parse(&["weft"].into_iter().chain(line.split_whitespace()).map(OsString::from).collect::<Vec<_>>())
}

/// Calls `check` for each command, with the whole path of its words, such as `service create`.
fn for_each_command(command: &Command, path: &str, check: &mut impl FnMut(&Command, &str)) {
    let path = format!("{path} {}", command.get_name());
    check(command, path.trim_start());
    command.get_subcommands().for_each(|inner| for_each_command(inner, &path, check));
}

fn built_parser() -> Command {
    let mut parser = parser();
    parser.build();
    parser
}

#[test]
fn the_parser_is_consistent() {
    parser().debug_assert();
}

#[test]
fn every_command_and_flag_has_help() {
    for_each_command(&built_parser(), "", &mut |command, path| {
        let check = |what: &str, help: Option<String>| {
            let help = help.unwrap_or_default();
            assert!(!help.trim().is_empty(), "{path}: {what} has no help");
            assert!(!help.ends_with('.'), "{path}: the help of {what} ends with a full stop");
        };
        check("the command", command.get_about().map(ToString::to_string));
        for arg in command.get_arguments() {
            check(arg.get_id().as_str(), arg.get_help().map(ToString::to_string));
        }
    });
}

#[test]
fn every_boolean_flag_has_the_form_of_the_docker_client() {
    let mut booleans = 0;
    for_each_command(&built_parser(), "", &mut |command, path| {
        let is_ours = |arg: &&Arg| !["help", "version"].contains(&arg.get_id().as_str());
        for arg in command.get_arguments().filter(is_ours) {
            assert!(!matches!(arg.get_action(), ArgAction::SetTrue), "{path}: {} takes no =false", arg.get_id());
            if arg.get_value_parser().type_id() == TypeId::of::<bool>() {
                assert!(arg.is_require_equals_set(), "{path}: {} takes the next word", arg.get_id());
                booleans += 1;
            }
        }
    });
    assert!(booleans > 10, "only {booleans} booleans");
    for line in [
        "service ls -q=true",
        "service logs -ft web",
        "service rollback -dq web",
        "swarm leave --force --force",
        "node rm --force=0 n1",
    ] {
        assert!(parse_line(line).is_ok(), "{line}");
    }
    assert!(parse_line("swarm leave --force=perhaps").is_err());
}

#[tokio::test]
async fn continues_with_the_next_name_after_an_error_but_not_after_a_closed_pipe() {
    let names = ["a", "bad", "closed", "z"].map(str::to_owned);
    let check = async |names: &[String], expected_calls: usize, message: &str, is_closed_pipe: bool| {
        let calls = Cell::new(0);
        let outcome = for_each_name(names, async |name| {
            calls.set(calls.get() + 1);
            match name {
                "bad" => anyhow::bail!("no such thing: {name}"),
                "closed" => Err(ClosedPipe.into()),
                _ => Ok(()),
            }
        })
        .await;
        let error = outcome.expect_err("one name fails");
        assert_eq!((calls.get(), error.is::<ClosedPipe>()), (expected_calls, is_closed_pipe), "{names:?}");
        assert!(error.to_string().contains(message), "{error}");
    };
    check(&names[..2], 2, "no such thing: bad", false).await;
    check(&[&names[1..2], &names[3..], &names[1..2]].concat(), 3, "bad\nno such thing: bad", false).await;
    check(&names, 3, "closed the pipe", true).await;
}
