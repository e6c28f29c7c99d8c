//! Wrong input is refused with an error that says what to do, and changes nothing.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weft_lab::{CLIENT, Lab, contract, eventually};

use crate::{
    fixtures::{WHOAMI, network, service},
    harness::{Group, Shape, tests},
};

pub(crate) fn group() -> Group {
    Group {
        name: "errors",
        // n1 and n2 are managers; n3 is a worker.
        shape: Shape { managers: 2, ..Shape::default() },
        setup,
        tests: tests![
            a_port_that_another_service_publishes_is_refused,
            a_malformed_subnet_is_refused,
            a_subnet_that_a_node_routes_is_refused,
            a_service_on_two_overlapping_networks_is_refused,
            invalid_names_are_refused,
            errors_name_what_does_not_exist,
            a_network_in_use_is_not_removed,
            unsupported_options_are_refused_by_name,
            an_unknown_flag_is_refused,
            service_ps_shows_why_an_image_cannot_start,
            service_ps_shows_why_a_command_cannot_start,
            a_worker_refuses_the_commands_of_a_manager,
            a_daemon_without_root_is_refused,
            a_socket_in_use_is_refused,
            a_read_only_data_directory_is_refused,
            a_full_data_directory_is_refused,
            changes_without_a_quorum_are_refused,
        ],
    }
}

fn setup(lab: &Lab) -> Result<()> {
    network(lab, "left", &["--subnet", "10.90.0.0/24"])?;
    network(lab, "right", &["--subnet", "10.90.0.0/25"])?;
    service(lab, "owner", 1, &["--network", "left", "-p", "8080:80"], &[WHOAMI]).map(|_| ())
}

/// Checks that weft refuses a command, with all of these words in the error, and that no service or
/// network was created. Some of the words must come from weft, such as what to do: every parser
/// repeats its input.
fn check(lab: &Lab, node: &str, arguments: &[&str], words: &[&str]) -> Result<()> {
    let before = list_all(lab)?;
    let message = lab.weft_refused(node, arguments)?;
    for word in words {
        ensure!(message.contains(word), "weft {}: no {word:?} in: {message}", arguments.join(" "));
    }
    ensure!(!message.contains("panicked"), "{message}");
    ensure!(list_all(lab)? == before, "weft {} changed something", arguments.join(" "));
    Ok(())
}

fn list_all(lab: &Lab) -> Result<String> {
    Ok(lab.weft_ok("n1", &["service", "ls", "--quiet"])? + &lab.weft_ok("n1", &["network", "ls", "--quiet"])?)
}

const CREATE: [&str; 3] = ["service", "create", "--detach"];

fn create<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&CREATE[..], arguments].concat()
}

fn a_port_that_another_service_publishes_is_refused(lab: &Lab) -> Result<()> {
    check(
        lab,
        "n1",
        &create(&["--name", "second", "-p", "8080:80", WHOAMI]),
        &["already published by service owner", "choose another port"],
    )?;
    for reserved in ["2377:80", "4789:80/udp"] {
        let port = reserved.split(':').next().context("a port is before the colon")?;
        check(
            lab,
            "n1",
            &create(&["--name", "second", "-p", reserved, WHOAMI]),
            &[port, "reserved for the cluster itself: choose another port"],
        )?;
    }
    check(
        lab,
        "n1",
        &create(&["--name", "second", "-p", "70000:80", WHOAMI]),
        &["70000", "give a number from 1 to 65535"],
    )
}

fn a_malformed_subnet_is_refused(lab: &Lab) -> Result<()> {
    for (subnet, hint) in [
        ("10.1.2.0", "such as 10.1.2.0/24"),
        ("10.1.2.0/33", "such as 10.1.2.0/24"),
        ("ten/8", "such as 10.1.2.0/24"),
        ("10.1.2.3/24", "did you mean 10.1.2.0/24?"),
    ] {
        check(lab, "n1", &["network", "create", "--driver", "overlay", "--subnet", subnet, "bad"], &[subnet, hint])?;
    }
    let outside =
        ["network", "create", "--driver", "overlay", "--subnet", "10.1.2.0/24", "--gateway", "10.9.9.9", "bad"];
    check(lab, "n1", &outside, &["10.9.9.9 is in none of the subnets"])
}

fn a_subnet_that_a_node_routes_is_refused(lab: &Lab) -> Result<()> {
    check(
        lab,
        "n1",
        &["network", "create", "--driver", "overlay", "--subnet", "192.0.2.0/25", "bad"],
        &["overlaps with route 192.0.2.0/24", "choose another subnet"],
    )
}

fn a_service_on_two_overlapping_networks_is_refused(lab: &Lab) -> Result<()> {
    check(
        lab,
        "n1",
        &create(&["--name", "both", "--network", "left", "--network", "right", WHOAMI]),
        &["left", "right", "one service cannot be on both"],
    )
}

fn invalid_names_are_refused(lab: &Lab) -> Result<()> {
    let long = "a".repeat(64);
    let rule = "use 1 to 63 letters, digits";
    for name in ["-a", "a b", "ä", &long] {
        check(lab, "n1", &create(&[&format!("--name={name}"), WHOAMI]), &["not a valid service name", rule])?;
        check(
            lab,
            "n1",
            &["network", "create", "--driver", "overlay", "--", name],
            &["not a valid network name", rule],
        )?;
    }
    check(lab, "n1", &create(&["--name", "owner", WHOAMI]), &["owner is in use", "choose another"])?;
    check(lab, "n1", &["network", "create", "--driver", "overlay", "left"], &["left is in use", "choose another"])
}

fn errors_name_what_does_not_exist(lab: &Lab) -> Result<()> {
    for (arguments, words) in [
        (&["service", "inspect", "missing"][..], "no such service: missing"),
        (&["service", "rm", "missing"], "no such service: missing"),
        (&["service", "scale", "--detach", "missing=3"], "no such service: missing"),
        (&["network", "rm", "missing"], "no such network: missing"),
        (&["node", "promote", "missing"], "no such node: missing"),
        (&["service", "create", "--detach", "--network", "missing", WHOAMI], "no such network: missing"),
    ] {
        check(lab, "n1", arguments, &[words])?;
    }
    Ok(())
}

fn a_network_in_use_is_not_removed(lab: &Lab) -> Result<()> {
    check(lab, "n1", &["network", "rm", "left"], &["in use by service owner: remove that first"])
}

fn unsupported_options_are_refused_by_name(lab: &Lab) -> Result<()> {
    let host_mode = "mode=host,published=8085,target=80";
    check(lab, "n1", &create(&["--name", "x", "-p", host_mode, WHOAMI]), &["publish through the mesh"])?;
    check(lab, "n1", &create(&["--name", "x", "--mode", "replicated-job", WHOAMI]), &["replicated-job", "global"])?;
    check(
        lab,
        "n1",
        &["network", "create", "--driver", "overlay", "--opt", "secure=true", "x"],
        &["the network option secure"],
    )?;
    check(lab, "n1", &["network", "create", "--driver", "macvlan", "x"], &["use --driver overlay"])
}

fn an_unknown_flag_is_refused(lab: &Lab) -> Result<()> {
    check(lab, "n1", &create(&["--no-such-flag", WHOAMI]), &["unexpected argument '--no-such-flag'", "--help"])?;
    check(lab, "n1", &["no-such-command"], &["unrecognized subcommand 'no-such-command'", "--help"])
}

/// Creates a service whose tasks cannot start, and waits until `service ps` shows these words.
fn check_cannot_start(lab: &Lab, image: &[&str], words: &[&str]) -> Result<()> {
    lab.weft_ok("n1", &[&create(&["--name", "broken", "--restart-delay", "100ms"])[..], image].concat())?;
    eventually(Duration::from_secs(20), "service ps shows why", || {
        let table =
            lab.weft_ok("n1", &["service", "ps", "--no-trunc", "broken"]).map_err(|error| format!("{error:#}"))?;
        if words.iter().all(|word| table.contains(word)) { Ok(()) } else { Err(table) }
    });
    lab.weft_ok("n1", &["service", "rm", "broken"])?;
    Ok(())
}

fn service_ps_shows_why_an_image_cannot_start(lab: &Lab) -> Result<()> {
    check_cannot_start(lab, &["example/missing"], &["Rejected", "the process runtime has weft/whoami and host"])
}

fn service_ps_shows_why_a_command_cannot_start(lab: &Lab) -> Result<()> {
    check_cannot_start(lab, &["host", "/no/such/program"], &["/no/such/program: no such file"])
}

fn a_worker_refuses_the_commands_of_a_manager(lab: &Lab) -> Result<()> {
    for arguments in [&["service", "ls"][..], &["node", "ls"], &["network", "create", "--driver", "overlay", "x"]] {
        check(lab, "n3", arguments, &["not a swarm manager", "run this command on a manager node"])?;
    }
    Ok(())
}

/// Runs a second daemon in n3's namespace. It must refuse to run, and exit.
fn run_second_daemon(lab: &Lab, data: &Path, socket: &Path) -> Result<Output> {
    let mut command = Command::new("timeout");
    command.arg("20").arg(&lab.options().weft).args(["daemon", "--hostname", "n3"]);
    command.arg("--data-dir").arg(data).arg("--socket").arg(socket);
    command.arg("--run-dir").arg(contract::run_dir("n3").join("second")).stdin(Stdio::null());
    lab.within("n3", || command.output())?.context("cannot run weft")
}

fn check_exit(output: &Output, words: &[&str]) -> Result<()> {
    let message = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.code().is_some_and(|code| code != 0 && code != 124),
        "the daemon exited with {}: {message}",
        output.status
    );
    for word in words {
        ensure!(message.contains(word), "no {word:?} in: {message}");
    }
    ensure!(!message.contains("panicked"), "{message}");
    Ok(())
}

fn a_daemon_without_root_is_refused(lab: &Lab) -> Result<()> {
    let folder = Path::new(contract::LAB_DATA).join("second");
    let as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    // Other users may not be allowed to read the folder of the build.
    let copy = Path::new(contract::LAB_RUN).join("weft");
    fs::copy(&lab.options().weft, &copy)?;
    let mut command = Command::new("timeout");
    command.arg("20").args(as_nobody).arg(&copy).args(["daemon", "--hostname", "n3"]).arg("--data-dir").arg(&folder);
    let output = lab.within("n3", || command.output())??;
    fs::remove_file(&copy)?;
    check_exit(&output, &["root"])
}

fn a_socket_in_use_is_refused(lab: &Lab) -> Result<()> {
    let socket = contract::socket("n3");
    let output = run_second_daemon(lab, &Path::new(contract::LAB_DATA).join("second"), &socket)?;
    check_exit(&output, &[&socket.display().to_string(), "in use by another daemon", "--socket"])?;
    // The first daemon still serves the socket.
    weft_lab::api::get(&socket, "/_ping").map(|_| ())
}

fn with_tmpfs<T>(options: &str, action: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let folder = Path::new(contract::LAB_DATA).join("small");
    fs::create_dir_all(&folder)?;
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&folder).output()?;
    ensure!(mount.status.success(), "{}", String::from_utf8_lossy(&mount.stderr));
    let result = action(&folder);
    let unmount = Command::new("umount").arg(&folder).output()?;
    ensure!(unmount.status.success(), "{}", String::from_utf8_lossy(&unmount.stderr));
    result
}

fn a_read_only_data_directory_is_refused(lab: &Lab) -> Result<()> {
    with_tmpfs("ro", |folder| {
        let output = run_second_daemon(lab, &folder.join("n3"), &contract::run_dir("n3").join("second.sock"))?;
        check_exit(&output, &[&folder.display().to_string(), "--data-dir"])
    })
}

fn a_full_data_directory_is_refused(lab: &Lab) -> Result<()> {
    with_tmpfs("size=16k", |folder| {
        fs::write(folder.join("filler"), vec![0; 16 << 10])?;
        let socket = contract::socket("n9");
        let mut daemon = Command::new(&lab.options().weft);
        daemon.args(["daemon", "--hostname", "n9", "--data-dir"]).arg(folder.join("n9")).arg("--socket").arg(&socket);
        daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // In the client's namespace no other daemon is running.
        let mut child = lab.within(CLIENT, || daemon.spawn())??;
        // The daemon may refuse at its start, or when it must write to form a cluster.
        let refused = eventually(Duration::from_secs(20), "the daemon answers or exits", || {
            if child.try_wait().map_err(|error| error.to_string())?.is_some() {
                return Ok(None);
            }
            weft_lab::api::get(&socket, "/_ping").map_err(|error| format!("{error:#}"))?;
            Ok(Some(lab.weft_refused("n9", &["swarm", "init", "--advertise-addr", "192.0.2.100"])))
        });
        weft_lab::process::kill(child.id())?;
        let message = match refused {
            Some(message) => message?,
            None => std::io::read_to_string(child.stderr.take().context("the standard error of the daemon is piped")?)?,
        };
        ensure!(message.contains("space") || message.contains("full"), "{message}");
        ensure!(message.contains(&folder.display().to_string()), "the error does not name the folder: {message}");
        Ok(())
    })
}

fn changes_without_a_quorum_are_refused(lab: &Lab) -> Result<()> {
    lab.kill_daemon("n2")?;
    eventually(Duration::from_secs(15), "n1 reports n2 as unreachable", || {
        let table = lab.weft_ok("n1", &["node", "ls"]).map_err(|error| format!("{error:#}"))?;
        if table.contains("Unreachable") { Ok(()) } else { Err(table) }
    });
    let message = lab.weft_refused("n1", &["network", "create", "--driver", "overlay", "without-quorum"])?;
    ensure!(message.contains("1 of 2 managers are reachable and 2 are needed"), "{message}");
    lab.start("n2")?;
    eventually(Duration::from_secs(20), "changes are possible again", || {
        let create = ["network", "create", "--driver", "overlay", "with-quorum"];
        lab.weft_ok("n1", &create).map_err(|error| format!("{error:#}"))
    });
    let table = lab.weft_ok("n1", &["network", "ls"])?;
    ensure!(!table.contains("without-quorum"), "the refused network was created: {table}");
    lab.weft_ok("n1", &["network", "rm", "with-quorum"])?;
    Ok(())
}
