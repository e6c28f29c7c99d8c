//! Bad input gets an error that says what to do, and changes nothing.

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
    harness::{Shape, Theme, tests},
};

pub(crate) fn theme() -> Theme {
    Theme {
        name: "errors",
        // n1 and n2 are managers; n3 is a worker.
        shape: Shape { managers: 2, ..Shape::default() },
        setup,
        tests: tests![
            a_published_port_is_refused_with_its_owner,
            a_malformed_subnet_is_refused,
            a_subnet_that_a_node_routes_is_refused,
            overlapping_networks_on_one_service_are_refused,
            bad_names_are_refused,
            missing_things_are_named,
            a_network_in_use_is_not_removed,
            what_is_not_there_yet_is_refused_by_name,
            an_unknown_flag_is_refused,
            an_image_that_cannot_start_shows_in_service_ps,
            a_command_that_cannot_start_shows_in_service_ps,
            a_worker_says_that_it_is_no_manager,
            a_daemon_without_privileges_says_so,
            a_socket_in_use_is_refused,
            a_read_only_data_directory_is_refused,
            a_full_data_directory_is_refused,
            without_quorum_nothing_is_written,
        ],
    }
}

fn setup(lab: &Lab) -> Result<()> {
    network(lab, "left", &["--subnet", "10.90.0.0/24"])?;
    network(lab, "right", &["--subnet", "10.90.0.0/25"])?;
    service(lab, "owner", 1, &["--network", "left", "-p", "8080:80"], &[WHOAMI]).map(|_| ())
}

/// Refused, with all of these words in what is said, and no service or network more than before. The words are weft's, such
/// as what to do, not only those that it was given: any parser repeats them.
fn check(lab: &Lab, node: &str, arguments: &[&str], words: &[&str]) -> Result<()> {
    let before = table(lab)?;
    let said = lab.weft_refused(node, arguments)?;
    for word in words {
        ensure!(said.contains(word), "weft {}: no {word:?} in: {said}", arguments.join(" "));
    }
    ensure!(!said.contains("panicked"), "{said}");
    ensure!(table(lab)? == before, "weft {} changed something", arguments.join(" "));
    Ok(())
}

fn table(lab: &Lab) -> Result<String> {
    Ok(lab.weft_ok("n1", &["service", "ls", "--quiet"])? + &lab.weft_ok("n1", &["network", "ls", "--quiet"])?)
}

const CREATE: [&str; 3] = ["service", "create", "--detach"];

fn create<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    [&CREATE[..], rest].concat()
}

fn a_published_port_is_refused_with_its_owner(lab: &Lab) -> Result<()> {
    check(
        lab,
        "n1",
        &create(&["--name", "thief", "-p", "8080:80", WHOAMI]),
        &["already published by service owner", "choose another port"],
    )?;
    for reserved in ["2377:80", "4789:80/udp"] {
        let port = reserved.split(':').next().context("a port")?;
        check(
            lab,
            "n1",
            &create(&["--name", "thief", "-p", reserved, WHOAMI]),
            &[port, "reserved for the cluster itself: choose another port"],
        )?;
    }
    check(
        lab,
        "n1",
        &create(&["--name", "thief", "-p", "70000:80", WHOAMI]),
        &["70000", "give a number from 1 to 65535"],
    )
}

fn a_malformed_subnet_is_refused(lab: &Lab) -> Result<()> {
    for (subnet, hint) in [
        ("10.1.2.0", "want something like 10.1.2.0/24"),
        ("10.1.2.0/33", "such as 10.1.2.0/24"),
        ("ten/8", "such as 10.1.2.0/24"),
        ("10.1.2.3/24", "did you mean 10.1.2.0/24?"),
    ] {
        check(lab, "n1", &["network", "create", "--driver", "overlay", "--subnet", subnet, "bad"], &[subnet, hint])?;
    }
    let outside =
        ["network", "create", "--driver", "overlay", "--subnet", "10.1.2.0/24", "--gateway", "10.9.9.9", "bad"];
    check(lab, "n1", &outside, &["10.9.9.9 is not inside the subnet 10.1.2.0/24"])
}

fn a_subnet_that_a_node_routes_is_refused(lab: &Lab) -> Result<()> {
    check(
        lab,
        "n1",
        &["network", "create", "--driver", "overlay", "--subnet", "192.0.2.0/25", "bad"],
        &["overlaps with route 192.0.2.0/24", "choose another subnet"],
    )
}

fn overlapping_networks_on_one_service_are_refused(lab: &Lab) -> Result<()> {
    check(
        lab,
        "n1",
        &create(&["--name", "both", "--network", "left", "--network", "right", WHOAMI]),
        &["left", "right", "one service cannot be on both"],
    )
}

fn bad_names_are_refused(lab: &Lab) -> Result<()> {
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

fn missing_things_are_named(lab: &Lab) -> Result<()> {
    for (arguments, words) in [
        (&["service", "inspect", "nobody"][..], "no such service: nobody"),
        (&["service", "rm", "nobody"], "no such service: nobody"),
        (&["service", "scale", "--detach", "nobody=3"], "no such service: nobody"),
        (&["network", "rm", "nowhere"], "no such network: nowhere"),
        (&["node", "promote", "nobody"], "no such node: nobody"),
        (&["service", "create", "--detach", "--network", "nowhere", WHOAMI], "no such network: nowhere"),
    ] {
        check(lab, "n1", arguments, &[words])?;
    }
    Ok(())
}

fn a_network_in_use_is_not_removed(lab: &Lab) -> Result<()> {
    check(lab, "n1", &["network", "rm", "left"], &["in use by service owner: remove that first"])
}

fn what_is_not_there_yet_is_refused_by_name(lab: &Lab) -> Result<()> {
    let host_mode = "mode=host,published=8085,target=80";
    check(lab, "n1", &create(&["--name", "x", "-p", host_mode, WHOAMI]), &["publish through the mesh"])?;
    check(lab, "n1", &create(&["--name", "x", "--mode", "replicated-job", WHOAMI]), &["replicated-job", "global"])?;
    check(
        lab,
        "n1",
        &["network", "create", "--driver", "overlay", "--opt", "encrypted", "x"],
        &["leave --opt encrypted out"],
    )?;
    check(lab, "n1", &["network", "create", "--driver", "macvlan", "x"], &["use overlay"])
}

fn an_unknown_flag_is_refused(lab: &Lab) -> Result<()> {
    check(lab, "n1", &create(&["--no-such-flag", WHOAMI]), &["unexpected argument '--no-such-flag'", "--help"])?;
    check(lab, "n1", &["no-such-command"], &["unrecognized subcommand 'no-such-command'", "--help"])
}

/// Creates a service that cannot run, and waits until `service ps` says why.
fn cannot_start(lab: &Lab, image: &[&str], words: &[&str]) -> Result<()> {
    lab.weft_ok("n1", &[&create(&["--name", "broken", "--restart-delay", "100ms"])[..], image].concat())?;
    eventually(Duration::from_secs(20), "service ps says why", || {
        let table =
            lab.weft_ok("n1", &["service", "ps", "--no-trunc", "broken"]).map_err(|error| format!("{error:#}"))?;
        if words.iter().all(|word| table.contains(word)) { Ok(()) } else { Err(table) }
    });
    lab.weft_ok("n1", &["service", "rm", "broken"])?;
    Ok(())
}

fn an_image_that_cannot_start_shows_in_service_ps(lab: &Lab) -> Result<()> {
    cannot_start(lab, &["example/missing"], &["Rejected", "the process runtime has weft/whoami and host"])
}

fn a_command_that_cannot_start_shows_in_service_ps(lab: &Lab) -> Result<()> {
    cannot_start(lab, &["host", "/no/such/program"], &["/no/such/program: no such file"])
}

fn a_worker_says_that_it_is_no_manager(lab: &Lab) -> Result<()> {
    for arguments in [&["service", "ls"][..], &["node", "ls"], &["network", "create", "--driver", "overlay", "x"]] {
        check(lab, "n3", arguments, &["not a swarm manager", "run this command on a manager node"])?;
    }
    Ok(())
}

/// Runs a second daemon in n3's namespace, which must end by itself.
fn daemon(lab: &Lab, before: &[&str], data: &Path, socket: &Path) -> Result<Output> {
    let mut command = Command::new("timeout");
    command.arg("20").args(before).arg(&lab.options().weft).args(["daemon", "--hostname", "n3"]);
    command.arg("--data-dir").arg(data).arg("--socket").arg(socket);
    command.arg("--run-dir").arg(contract::run_dir("n3").join("second")).stdin(Stdio::null());
    lab.within("n3", || command.output())?.context("cannot run weft")
}

fn ended_with(output: &Output, words: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.code().is_some_and(|code| code != 0 && code != 124),
        "it ended with {}: {said}",
        output.status
    );
    for word in words {
        ensure!(said.contains(word), "no {word:?} in: {said}");
    }
    ensure!(!said.contains("panicked"), "{said}");
    Ok(())
}

fn a_daemon_without_privileges_says_so(lab: &Lab) -> Result<()> {
    let folder = Path::new(contract::LAB_DATA).join("second");
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    // The build's folder may be closed to others: a copy is not.
    let copy = Path::new(contract::LAB_RUN).join("weft");
    fs::copy(&lab.options().weft, &copy)?;
    let mut command = Command::new("timeout");
    command.arg("20").args(nobody).arg(&copy).args(["daemon", "--hostname", "n3"]).arg("--data-dir").arg(&folder);
    let output = lab.within("n3", || command.output())??;
    fs::remove_file(&copy)?;
    ended_with(&output, &["root"])
}

fn a_socket_in_use_is_refused(lab: &Lab) -> Result<()> {
    let socket = contract::socket("n3");
    let output = daemon(lab, &[], &Path::new(contract::LAB_DATA).join("second"), &socket)?;
    ended_with(&output, &[&socket.display().to_string(), "in use by another daemon", "--socket"])?;
    // Who had it still has it.
    weft_lab::api::get(&socket, "/_ping").map(|_| ())
}

fn mounted<T>(options: &str, action: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
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
    mounted("ro", |folder| {
        let output = daemon(lab, &[], &folder.join("n3"), &contract::run_dir("n3").join("second.sock"))?;
        ended_with(&output, &[&folder.display().to_string(), "--data-dir"])
    })
}

fn a_full_data_directory_is_refused(lab: &Lab) -> Result<()> {
    mounted("size=16k", |folder| {
        fs::write(folder.join("filler"), vec![0; 16 << 10])?;
        let socket = contract::socket("n9");
        let mut daemon = Command::new(&lab.options().weft);
        daemon.args(["daemon", "--hostname", "n9", "--data-dir"]).arg(folder.join("n9")).arg("--socket").arg(&socket);
        daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // Beside the client, where it meets no other daemon.
        let mut child = lab.within(CLIENT, || daemon.spawn())??;
        // It says so at its start, or when it is to form a cluster and has something to write.
        let refused = eventually(Duration::from_secs(20), "the daemon answers or ends", || {
            if child.try_wait().map_err(|error| error.to_string())?.is_some() {
                return Ok(None);
            }
            weft_lab::api::get(&socket, "/_ping").map_err(|error| format!("{error:#}"))?;
            Ok(Some(lab.weft_refused("n9", &["swarm", "init", "--advertise-addr", "192.0.2.100"])))
        });
        weft_lab::process::kill(child.id())?;
        let said = match refused {
            Some(said) => said?,
            None => std::io::read_to_string(child.stderr.take().context("its standard error")?)?,
        };
        ensure!(said.contains("space") || said.contains("full"), "{said}");
        ensure!(said.contains(&folder.display().to_string()), "the folder is not named: {said}");
        Ok(())
    })
}

fn without_quorum_nothing_is_written(lab: &Lab) -> Result<()> {
    lab.kill_daemon("n2")?;
    eventually(Duration::from_secs(15), "n1 notices that it is alone", || {
        let table = lab.weft_ok("n1", &["node", "ls"]).map_err(|error| format!("{error:#}"))?;
        if table.contains("Unreachable") { Ok(()) } else { Err(table) }
    });
    let said = lab.weft_refused("n1", &["network", "create", "--driver", "overlay", "lonely"])?;
    ensure!(said.contains("1 of 2 managers are reachable and 2 are needed"), "{said}");
    lab.start("n2")?;
    eventually(Duration::from_secs(20), "writes are possible again", || {
        let create = ["network", "create", "--driver", "overlay", "together"];
        lab.weft_ok("n1", &create).map_err(|error| format!("{error:#}"))
    });
    let table = lab.weft_ok("n1", &["network", "ls"])?;
    ensure!(!table.contains("lonely"), "what was refused was done: {table}");
    lab.weft_ok("n1", &["network", "rm", "together"])?;
    Ok(())
}
