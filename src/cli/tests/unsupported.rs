//! Tests of command lines of the docker client that weft refuses, for each group of commands. They
//! check the text of the error.

use clap::{Arg, error::ErrorKind};

use super::{
    super::unsupported::{COMMANDS, FLAGS},
    built_parser, for_each_command, parse_line,
};

#[track_caller]
fn check(lines: &[(&str, &str)]) {
    for (line, message) in lines {
        let Err(error) = parse_line(line) else { panic!("weft {line} is accepted") };
        assert!(error.to_string().contains(message), "weft {line} does not say {message:?}: {error}");
        assert!(error.use_stderr(), "weft {line}");
    }
}

#[test]
fn refuses_unsupported_commands_and_flags_of_swarm() {
    check(&[
        ("swarm ca --rotate --external-ca protocol=cfssl,url=https://ca.test", "--external-ca"),
        ("swarm ca --ca-cert cert.pem --ca-key key.pem", "--rotate"),
        ("swarm ca --rotate --ca-cert cert.pem", "--ca-key"),
        ("swarm rm", "'rm'"),
    ]);
}

#[test]
fn refuses_unsupported_flags_of_service() {
    check(&[
        ("service create --mode replicated-job x", "'replicated-job'"),
        ("service create --mode replicated-job x", "does not support jobs"),
        ("service create --mount type=volume,target=/data x", "\"--mount\": tasks cannot use mounts yet"),
        ("service create --mount=type=volume,target=/data x", "\"--mount\": tasks cannot use mounts yet"),
        ("service create --health-cmd true x", "--health-cmd"),
        ("service create -t x", "\"-t\": tasks cannot have a terminal"),
        ("service create --host db x", "\"db\" is not a host name with an address: give NAME:ADDRESS"),
        ("service create --dns dns.test x", "--dns <ADDRESS>"),
        ("service ls --host tcp://192.0.2.1:2375", "\"--host\": this flag goes before the command"),
        ("service update --mount-add type=volume,target=/data x", "--mount-add"),
        ("service update --rollback --image y x", "--image"),
        ("service inspect --format {{.ID}} x", "\"--format\": the command prints all fields"),
        ("service create --no-such-flag x", "'--no-such-flag'"),
    ]);
}

#[test]
fn refuses_unsupported_commands_and_flags_of_node_and_network() {
    check(&[
        ("node ls -H tcp://192.0.2.1:2375", "\"-H\": this flag goes before the command"),
        ("network connect app c", "\"network connect\": use the docker client"),
        ("-H unix:///run/x.sock network connect app c", "\"network connect\""),
    ]);
}

#[test]
fn refuses_commands_about_containers_and_stacks() {
    check(&[
        ("run -d -P -e constraint:storage==ssd x", "\"run\": weft runs containers as services"),
        ("ps -a", "\"ps\""),
        ("exec c sh", "\"exec\""),
        ("logs c", "\"logs\""),
        ("inspect c", "\"inspect\""),
        ("stop c", "\"stop\""),
        ("rm c", "\"rm\""),
        ("stack deploy -c f s", "\"stack\""),
        ("secret create --driver vault s", "\"--driver\": weft has no secret drivers yet"),
        ("no-such-command", "'no-such-command'"),
        ("version -f x", "'-f'"),
    ]);
}

#[test]
fn refuses_a_host_for_the_daemon() {
    check(&[("daemon -H tcp://192.0.2.1:2375", "--socket"), ("-H tcp://192.0.2.1:2375 daemon", "--socket")]);
}

#[test]
fn nothing_is_both_unsupported_and_accepted() {
    // If this fails, a command or flag with a reason is accepted. The reason has no effect: remove
    // it.
    let mut accepted = Vec::new();
    // The flags of weft itself are accepted only before the command. Their reason is for the
    // commands without a flag of the same name.
    let mut before_the_command = Vec::new();
    for_each_command(&built_parser(), "", &mut |command, path| {
        let path = path.trim_start_matches("weft").trim_start();
        if path.is_empty() {
            before_the_command
                .extend(command.get_arguments().filter_map(Arg::get_long).map(|flag| format!("--{flag}")));
            return;
        }
        accepted.push(path.to_owned());
        for flag in command.get_arguments().filter_map(Arg::get_long) {
            accepted.extend([format!("--{flag}"), format!("{path} --{flag}")]);
        }
    });
    for (names, _) in COMMANDS.iter().chain(FLAGS) {
        for name in *names {
            let is_for_weft = before_the_command.iter().any(|flag| flag == name);
            let is_accepted = accepted.iter().any(|accepted| accepted == name);
            assert!(is_for_weft || !is_accepted, "{name} is refused, and accepted");
        }
    }
    assert_eq!(parse_line("service create").expect_err("there is no image").kind(), ErrorKind::MissingRequiredArgument);
}

#[test]
fn the_readme_lists_what_the_command_line_refuses() {
    let readme = include_str!("../../../README.md");
    let section = readme.split_once("### Command line\n").expect("the section of the command line").1;
    let section = section.split_once("\n## ").expect("a section after it").0;
    let rows: Vec<(Vec<&str>, &str)> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |")?.split_once("` | "))
        .map(|(names, answer)| (names.split("`, `").collect(), answer))
        .collect();
    let expected: Vec<(Vec<&str>, &str)> =
        COMMANDS.iter().chain(FLAGS).map(|(names, answer)| (names.to_vec(), *answer)).collect();
    assert_eq!(rows, expected, "README.md differs from src/cli/unsupported.rs");
}
