//! The command line as a whole: what users of the docker client type is understood, or refused by name.

use std::{any::TypeId, ffi::OsString};

use clap::{Arg, ArgAction, Command, error::ErrorKind};

use super::{
    Cli, command, each,
    output::Unread,
    parse,
    refused::{COMMANDS, FLAGS},
};

fn try_line(line: &str) -> Result<Cli, clap::Error> {
    parse(&["weft"].into_iter().chain(line.split_whitespace()).map(OsString::from).collect::<Vec<_>>())
}

/// Calls `check` for every command, with the words that lead to it.
fn walk(command: &Command, path: &str, check: &mut impl FnMut(&Command, &str)) {
    let path = format!("{path} {}", command.get_name());
    check(command, path.trim_start());
    command.get_subcommands().for_each(|inner| walk(inner, &path, check));
}

fn built() -> Command {
    let mut command = command();
    command.build();
    command
}

#[test]
fn the_command_line_is_consistent() {
    command().debug_assert();
}

#[test]
fn every_command_and_flag_says_what_it_is_for() {
    walk(&built(), "", &mut |command, path| {
        let says = |what: &str, help: Option<String>| {
            let help = help.unwrap_or_default();
            assert!(!help.trim().is_empty(), "{path}: {what} has no help");
            assert!(!help.ends_with('.'), "{path}: the help of {what} ends with a full stop");
        };
        says("the command", command.get_about().map(ToString::to_string));
        for arg in command.get_arguments() {
            says(arg.get_id().as_str(), arg.get_help().map(ToString::to_string));
        }
    });
}

#[test]
fn every_boolean_is_read_as_the_docker_client_reads_it() {
    let mut seen = 0;
    walk(&built(), "", &mut |command, path| {
        let is_own = |arg: &&Arg| !["help", "version"].contains(&arg.get_id().as_str());
        for arg in command.get_arguments().filter(is_own) {
            assert!(!matches!(arg.get_action(), ArgAction::SetTrue), "{path}: {} takes no =false", arg.get_id());
            if arg.get_value_parser().type_id() == TypeId::of::<bool>() {
                assert!(arg.is_require_equals_set(), "{path}: {} takes the next word", arg.get_id());
                seen += 1;
            }
        }
    });
    assert!(seen > 10, "only {seen} booleans");
    for line in [
        "service ls -q=true",
        "service logs -ft web",
        "service rollback -dq web",
        "swarm leave --force --force",
        "node rm --force=0 n1",
    ] {
        assert!(try_line(line).is_ok(), "{line}");
    }
    assert!(try_line("swarm leave --force=perhaps").is_err());
}

#[test]
fn what_the_scenarios_type_is_understood() {
    for line in [
        // Form a cluster.
        "swarm init --advertise-addr 192.0.2.1",
        "swarm init --advertise-addr 192.0.2.1 --listen-addr 192.0.2.1:2377",
        "swarm join-token worker",
        "swarm join-token manager --quiet",
        "swarm join-token --rotate worker",
        "swarm join --token T 192.0.2.1:2377",
        "node ls",
        "node inspect self",
        "node inspect --pretty n1 n2",
        "node ps",
        "node ps n1 --no-trunc",
        "node update --availability drain n1",
        "node update --availability=active --label-add storage=ssd --label-rm zone --role manager n1",
        "node promote n1 n2",
        "node demote n1",
        "node rm --force n1",
        "swarm leave",
        "swarm leave --force",
        "swarm update --cert-expiry 720h --task-history-limit 3 --dispatcher-heartbeat 5s",
        // Run services.
        "service create --name vote -p 8080:80 weft/whoami",
        "service create --replicas 3 weft/whoami command --flag of the command",
        "service create --mode global weft/whoami",
        "service create --env A=1 -e B --env-file vars --label a=b --container-label c=d weft/whoami",
        "service create --constraint node.labels.storage==ssd --placement-pref spread=node.labels.zone weft/whoami",
        "service create --limit-cpu 0.5 --limit-memory 64m --limit-pids 10 --reserve-cpu 1 --reserve-memory 1g weft/whoami",
        "service create --restart-condition on-failure --restart-delay 5s --restart-max-attempts 3 --restart-window 2m x",
        "service create --update-parallelism 2 --update-delay 5s --update-monitor 5s --update-order start-first x",
        "service create --update-max-failure-ratio 0.1 --update-failure-action rollback x",
        "service create --rollback-parallelism 2 --rollback-delay 5s --rollback-monitor 5s --rollback-order stop-first x",
        "service create --rollback-max-failure-ratio 0.1 --rollback-failure-action continue x",
        "service create --stop-grace-period 10s --stop-signal SIGINT --user 1:1 --workdir / --read-only --init x",
        "service create --network a --network name=b,alias=c --endpoint-mode dnsrr --hostname h --entrypoint sh x",
        "service ls",
        "service ls --filter name=vote --format {{.Name}} --quiet",
        "service ps vote --no-trunc --no-resolve -f desired-state=running",
        "service inspect vote",
        "service inspect --pretty vote",
        "service logs -f vote",
        "service logs --tail 10 --since 2026-01-01T00:00:00Z --timestamps --raw vote",
        "service scale vote=8 redis=3",
        "service update --image x:2 --update-parallelism 2 --update-delay 5s vote",
        "service update --force vote",
        "service update --rollback --detach vote",
        "service update --args -v --network-add a --network-rm b --publish-add 8081:80 --publish-rm 80 vote",
        "service rollback vote",
        "service rm vote redis",
        // The routing mesh; the daemon says that it has no host mode yet.
        "service create --publish published=8080,target=80,protocol=udp,mode=host x",
        "service create -p 80 x",
        "service create -p 53:53/sctp x",
        // Networks; the daemon says that it does not encrypt yet.
        "network create --driver overlay --subnet 10.1.0.0/24 --gateway 10.1.0.1 --ip-range 10.1.0.128/25 app",
        "network create --driver overlay --opt encrypted --internal --ipv6 --label a=b app",
        "network create --subnet 10.1.0.0/24,2001:db8::/64 --ipv6 app",
        "network ls",
        "network inspect app",
        "network inspect --verbose app",
        "network rm app",
        "network rm --force app",
        "-H tcp://192.0.2.1:3375 info",
        "info --format json",
        "version",
        "daemon --socket /run/weft/other.sock",
    ] {
        if let Err(error) = try_line(line) {
            panic!("weft {line}: {error}");
        }
    }
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    for (line, names) in [
        ("swarm update --autolock", "\"--autolock\": managers cannot be locked"),
        ("swarm init --autolock=true", "--autolock"),
        ("swarm init --force-new-cluster", "--force-new-cluster"),
        ("swarm ca --rotate", "\"swarm ca\": the certificate authority"),
        ("swarm unlock", "\"swarm unlock\""),
        ("swarm unlock-key", "\"swarm unlock-key\""),
        ("service create --mode replicated-job x", "'replicated-job'"),
        ("service create --mode replicated-job x", "does not support jobs"),
        ("service create --mount type=volume,target=/data x", "\"--mount\": mounts are not there yet"),
        ("service create --mount=type=volume,target=/data x", "\"--mount\": mounts are not there yet"),
        ("service create --health-cmd true x", "--health-cmd"),
        ("service create --secret s x", "--secret"),
        ("service create --config c x", "--config"),
        ("service create -t x", "\"-t\": terminals"),
        ("service create --host db:192.0.2.7 x", "\"--host\": extra host names"),
        ("service ls --host tcp://192.0.2.1:2375", "\"--host\": the daemon to talk to is named before"),
        ("node ls -H tcp://192.0.2.1:2375", "\"-H\": the daemon to talk to is named before"),
        ("service update --mount-add type=volume,target=/data x", "--mount-add"),
        ("service update --rollback --image y x", "--image"),
        ("service inspect --format {{.ID}} x", "\"--format\": it prints everything"),
        ("network create --attachable app", "\"--attachable\": only services"),
        ("network connect app c", "\"network connect\": only services"),
        ("-H unix:///run/x.sock network connect app c", "\"network connect\""),
        ("run -d -P -e constraint:storage==ssd x", "\"run\": weft runs containers as services"),
        ("ps -a", "\"ps\""),
        ("exec c sh", "\"exec\""),
        ("logs c", "\"logs\""),
        ("inspect c", "\"inspect\""),
        ("stop c", "\"stop\""),
        ("rm c", "\"rm\""),
        ("stack deploy -c f s", "\"stack\""),
        ("secret ls", "\"secret\""),
        ("daemon -H tcp://192.0.2.1:2375", "--socket"),
        ("-H tcp://192.0.2.1:2375 daemon", "--socket"),
        ("service create --no-such-flag x", "'--no-such-flag'"),
        ("version -f x", "'-f'"),
        ("no-such-command", "'no-such-command'"),
        ("swarm rm", "'rm'"),
    ] {
        let Err(error) = try_line(line) else { panic!("weft {line} is understood") };
        assert!(error.to_string().contains(names), "weft {line} does not say {names:?}: {error}");
        assert!(error.use_stderr(), "weft {line}");
    }
}

#[test]
fn what_is_refused_is_not_understood_either() {
    // A flag or command that weft learns leaves the tables: they would never be consulted for it.
    let mut known = Vec::new();
    walk(&built(), "", &mut |command, path| {
        let path = path.trim_start_matches("weft").trim_start();
        if path.is_empty() {
            // Its flags are understood before the first noun only.
            return;
        }
        known.push(path.to_owned());
        for flag in command.get_arguments().filter_map(Arg::get_long) {
            known.extend([format!("--{flag}"), format!("{path} --{flag}")]);
        }
    });
    for (names, _) in COMMANDS.iter().chain(FLAGS) {
        for name in *names {
            assert!(!known.iter().any(|known| known == name), "{name} is refused, and understood");
        }
    }
    assert_eq!(try_line("service create").unwrap_err().kind(), ErrorKind::MissingRequiredArgument);
}

#[tokio::test]
async fn an_error_does_not_keep_the_next_name_from_its_turn_but_a_closed_pipe_does() {
    let names = ["a", "bad", "closed", "z"].map(str::to_owned);
    let check = async |names: &[String], turns: usize, says: &str, unread: bool| {
        let taken = std::cell::Cell::new(0);
        let outcome = each(names, async |name| {
            taken.set(taken.get() + 1);
            match name {
                "bad" => anyhow::bail!("no such thing: {name}"),
                "closed" => Err(Unread.into()),
                _ => Ok(()),
            }
        })
        .await;
        let error = outcome.unwrap_err();
        assert_eq!((taken.get(), error.is::<Unread>()), (turns, unread), "{names:?}");
        assert!(error.to_string().contains(says), "{error}");
    };
    check(&names[..2], 2, "no such thing: bad", false).await;
    check(&[&names[1..2], &names[3..], &names[1..2]].concat(), 3, "bad\nno such thing: bad", false).await;
    check(&names, 3, "nobody reads", true).await;
}
