//! Computes a task's container from the task's plan, the node and the image: the container's OCI
//! specification, and the files that are mounted into the container.
//!
//! [`super::task_dirs`] calls it when it prepares a task, and writes the result to the task's
//! directory. Pure, except that it reads the host's account files, and for a task in the node's
//! network namespace the host's files of names. It validates all values that a
//! user sets, so that an invalid task is refused before any part of it is created.

mod spec;

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;
use oci_spec::runtime::Spec;
use weft_model::{
    NodeName, TaskId,
    plan::TaskPlan,
    spec::{ContainerSpec, DnsConfig, NodeNetwork},
};

use self::spec::{HOSTS, RESOLV_CONF, SpecInput};
use super::{image::Image, user};
use crate::runtime::{RuntimeError, files::FileMount, identity};

/// The default search path of programs.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The computed content of a task's directory.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) spec: Spec,
    pub(super) ids: user::Ids,
    pub(super) stop_signal: Signal,
    /// Whether weft's init starts the program as its child.
    pub(super) init: bool,
    pub(super) hostname: String,
    pub(super) hosts: String,
    pub(super) resolv_conf: String,
}

impl Bundle {
    /// # Errors
    /// If the user, the command, a variable or the stop signal of the task is not valid, or a file
    /// that the user chose cannot be mounted.
    pub(super) fn new(
        task: &TaskPlan,
        image: Image,
        node: &NodeName,
        dir: &Path,
        cgroup: &Path,
        search: &[String],
        files: &[FileMount],
    ) -> Result<Self, RuntimeError> {
        let container = &task.container;
        check_files(container, image)?;
        check_mounts(files, image)?;
        let on_node = is_on_node(task)?;
        let (passwd, group) = image.passwd_and_group();
        let ids = user::resolve(container.user.as_deref().unwrap_or_default(), &passwd, &group)?;
        let hostname = hostname(task, node, on_node);
        let machine_hosts = on_node.then(|| machine_file(HOSTS));
        let args = command(container, image)?;
        let env = environment(task, node, &hostname, &ids.home)?;
        let spec = SpecInput { task, image, dir, cgroup, ids: &ids, hostname: &hostname, args, env, files }.build();
        let spec = spec.map_err(|error| RuntimeError::Start { reason: error.to_string() })?;
        Ok(Self {
            spec,
            stop_signal: stop_signal(container)?,
            init: container.init.unwrap_or_else(|| image.wants_init()),
            hosts: hosts(task, machine_hosts.as_deref().unwrap_or(LOOPBACK)),
            resolv_conf: if on_node {
                machine_resolv_conf(task, &machine_file(RESOLV_CONF))
            } else {
                resolv_conf(task, search)
            },
            ids,
            hostname,
        })
    }
}

/// The user's command replaces the image's entry point, and the user's arguments replace the
/// image's arguments.
fn command(container: &ContainerSpec, image: Image) -> Result<Vec<String>, RuntimeError> {
    let mut command = if container.command.is_empty() { image.entrypoint() } else { container.command.clone() };
    command.extend(container.args.iter().cloned());
    if command.is_empty() { Err(RuntimeError::NoCommand { image: container.image.clone() }) } else { Ok(command) }
}

/// The variables of the program. The user's variables come last, because a later entry replaces an
/// earlier one.
fn environment(task: &TaskPlan, node: &NodeName, hostname: &str, home: &str) -> Result<Vec<String>, RuntimeError> {
    let mut env = vec![PATH.to_owned(), format!("HOSTNAME={hostname}"), format!("HOME={home}")];
    env.extend(identity::environment(task, node));
    let is_invalid = |entry: &&str| entry.is_empty() || entry.starts_with('=') || entry.contains('\0');
    match task.env().find(is_invalid) {
        Some(entry) => Err(RuntimeError::Environment { entry: entry.to_owned() }),
        None => Ok(identity::with_user_variables(env, task, false)),
    }
}

/// The signal that ends the task, by a name such as `SIGTERM` or `TERM` or by a number.
fn stop_signal(container: &ContainerSpec) -> Result<Signal, RuntimeError> {
    let Some(text) = container.stop_signal.as_deref().filter(|text| !text.is_empty()) else {
        return Ok(Signal::SIGTERM);
    };
    let upper = text.to_ascii_uppercase();
    let signal = match upper.parse::<i32>() {
        Ok(number) => Signal::try_from(number).ok(),
        Err(_) => format!("SIG{}", upper.trim_start_matches("SIG")).parse().ok(),
    };
    signal.ok_or_else(|| RuntimeError::Signal { signal: text.to_owned() })
}

fn resolv_conf(task: &TaskPlan, machine_search: &[String]) -> String {
    let search = identity::search_domains(task, machine_search);
    let search = if search.is_empty() { String::new() } else { format!("search {}\n", search.join(" ")) };
    let options = identity::resolver_options(task).join(" ");
    format!("nameserver {}\n{search}options {options}\n", identity::RESOLVER)
}

/// The first lines of a hosts file, unless it begins with the machine's.
const LOOPBACK: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// `first` are the lines before those of the task.
fn hosts(task: &TaskPlan, first: &str) -> String {
    let own = identity::hosts(task).into_iter().map(|(name, addr)| format!("{addr}\t{name}\n"));
    let newline = if first.is_empty() || first.ends_with('\n') { "" } else { "\n" };
    [first.to_owned(), newline.to_owned()].into_iter().chain(own).collect()
}

/// Whether the task runs in the network namespace of the node.
///
/// # Errors
/// If the node does not have the task's network. The scheduler chooses another node, if it knows.
fn is_on_node(task: &TaskPlan) -> Result<bool, RuntimeError> {
    match task.node_network {
        None => Ok(false),
        Some(NodeNetwork::Host) => Ok(true),
        Some(NodeNetwork::Bridge) => Err(RuntimeError::Start {
            reason: "network bridge belongs to a container engine, and this node has none: start its daemon with \
                     --runtime docker, or use network host"
                .to_owned(),
        }),
    }
}

/// By default a task in the node's network namespace has the name of the node, as in Docker.
fn hostname(task: &TaskPlan, node: &NodeName, on_node: bool) -> String {
    let is_chosen = task.hostname().is_some_and(|name| !name.is_empty());
    if on_node && !is_chosen { node.to_string() } else { identity::hostname(task) }
}

/// A file of the machine; empty if it has none.
fn machine_file(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The resolv.conf of a task in the node's network namespace, where weft has no resolver: that of
/// the machine, with what the user chose instead of the machine's (resolv.conf(5)).
fn machine_resolv_conf(task: &TaskPlan, machine: &str) -> String {
    let chosen = &task.container.dns;
    let replaced = [
        (&["nameserver"][..], chosen.name_servers.iter().map(|addr| format!("nameserver {addr}\n")).collect()),
        (&["search", "domain"], line("search", &identity::search_domains(task, &[]))),
        (&["options"], line("options", &chosen.options.iter().map(ToString::to_string).collect::<Vec<_>>())),
    ];
    let is_chosen = [!chosen.name_servers.is_empty(), !chosen.search.is_empty(), !chosen.options.is_empty()];
    let replaced: Vec<(&[&str], String)> =
        replaced.into_iter().zip(is_chosen).filter(|(_, is_chosen)| *is_chosen).map(|(lines, _)| lines).collect();
    let stays = |text: &&str| {
        let keyword = text.split_whitespace().next().unwrap_or_default();
        !replaced.iter().any(|(keywords, _)| keywords.contains(&keyword))
    };
    let kept = machine.lines().filter(stays).map(|text| format!("{text}\n"));
    kept.chain(replaced.iter().map(|(_, lines)| lines.clone())).collect()
}

/// A line of resolv.conf; empty without values.
fn line(keyword: &str, values: &[String]) -> String {
    if values.is_empty() { String::new() } else { format!("{keyword} {}\n", values.join(" ")) }
}

/// Fails if the user chose the content of a file that cannot be mounted into the container.
fn check_files(container: &ContainerSpec, image: Image) -> Result<(), RuntimeError> {
    let chosen = [(HOSTS, !container.hosts.is_empty()), (RESOLV_CONF, container.dns != DnsConfig::default())];
    match chosen.into_iter().find(|(path, is_chosen)| *is_chosen && !image.can_mount_file(path)) {
        Some((path, _)) => Err(RuntimeError::Start {
            reason: format!("this machine has no {path}, on which that of the task is mounted: create an empty file"),
        }),
        None => Ok(()),
    }
}

/// Fails if a secret or a config cannot be mounted into the container.
fn check_mounts(files: &[FileMount], image: Image) -> Result<(), RuntimeError> {
    match files.iter().find(|file| !image.can_mount_file(&file.target)) {
        Some(file) => Err(RuntimeError::Start {
            reason: format!(
                "{} cannot be mounted, because the root of image host is that of this machine, which is read-only: give the secret or config a target below /run or /tmp, or create an empty file on this machine",
                file.target
            ),
        }),
        None => Ok(()),
    }
}

/// The control groups of a task and of the node's shims, relative to the root of each hierarchy.
pub(super) fn cgroups(node: &NodeName, task: &TaskId) -> (PathBuf, PathBuf) {
    let node = Path::new("weft").join(node.as_str());
    (node.join(task.as_str()), node.join("shims"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fixture;

    fn bundle(image: Image, change: impl FnOnce(&mut ContainerSpec)) -> Result<Bundle, RuntimeError> {
        let dir = Path::new("/run/weft/n1/tasks/x");
        Bundle::new(
            &fixture::task(change),
            image,
            &"n1".parse().expect("a valid node name"),
            dir,
            Path::new("weft/n1/x"),
            &[],
            &[],
        )
    }

    #[test]
    fn search_domains_and_options_follow_the_resolver() {
        let plain = fixture::task(|_| ());
        assert_eq!(resolv_conf(&plain, &[]), "nameserver 127.0.0.11\noptions ndots:0\n");
        let search = ["corp.test".to_owned(), "example.test".to_owned()];
        let text = "nameserver 127.0.0.11\nsearch corp.test example.test\noptions ndots:0\n";
        assert_eq!(resolv_conf(&plain, &search), text);
        let chosen = fixture::task(|container| {
            container.dns.search = vec!["a.test".parse().expect("a search domain")];
            container.dns.options = vec!["rotate".parse().expect("an option")];
        });
        assert_eq!(resolv_conf(&chosen, &search), "nameserver 127.0.0.11\nsearch a.test\noptions ndots:0 rotate\n");
    }

    #[test]
    fn a_task_in_the_nodes_namespace_has_the_machines_names_except_those_that_the_user_chose() {
        let machine = "# mine\nnameserver 192.0.2.1\ndomain corp.test\nsearch corp.test\noptions edns0\n";
        assert_eq!(machine_resolv_conf(&fixture::task(|_| ()), machine), machine);
        let chosen = fixture::task(|container| {
            container.dns.name_servers = vec![[192, 0, 2, 53].into(), [192, 0, 2, 54].into()];
            container.dns.search = vec![".".parse().expect("the root")];
        });
        let want = "# mine\noptions edns0\nnameserver 192.0.2.53\nnameserver 192.0.2.54\n";
        assert_eq!(machine_resolv_conf(&chosen, machine), want);
        let options = fixture::task(|container| container.dns.options = vec!["rotate".parse().expect("an option")]);
        assert!(machine_resolv_conf(&options, machine).ends_with("search corp.test\noptions rotate\n"));
        let task = fixture::task(|container| {
            container.hosts = vec!["192.0.2.7 db".parse().expect("an entry")];
        });
        assert_eq!(hosts(&task, "192.0.2.1\tn1"), "192.0.2.1\tn1\n192.0.2.7\tdb\n");
    }

    #[test]
    fn a_task_in_the_nodes_namespace_gets_no_other_and_has_the_nodes_name() {
        let node: NodeName = "n1".parse().expect("a valid node name");
        let new = |network: Option<NodeNetwork>, hostname: Option<&str>| {
            let mut task = fixture::task(|container| container.hostname = hostname.map(str::to_owned));
            task.node_network = network;
            Bundle::new(&task, Image::Whoami, &node, Path::new("/run/x"), Path::new("weft/n1/x"), &[], &[])
        };
        let has_network = |bundle: &Bundle| {
            let namespaces = bundle.spec.linux().as_ref().and_then(|linux| linux.namespaces().clone());
            let kind = oci_spec::runtime::LinuxNamespaceType::Network;
            namespaces.expect("the task has namespaces").iter().any(|namespace| namespace.typ() == kind)
        };
        let plain = new(None, None).expect("a valid task");
        assert!(has_network(&plain) && plain.hostname != "n1");
        let on_node = new(Some(NodeNetwork::Host), None).expect("a valid task");
        assert!(!has_network(&on_node));
        assert_eq!(on_node.hostname, "n1");
        assert_eq!(new(Some(NodeNetwork::Host), Some("web")).expect("a valid task").hostname, "web");
        let error = new(Some(NodeNetwork::Bridge), None).expect_err("there is no engine").to_string();
        assert!(error.contains("network bridge belongs to a container engine"), "{error}");
    }

    #[test]
    fn the_users_names_follow_those_of_the_loopback_addresses() {
        let task = fixture::task(|container| {
            container.hosts = vec!["192.0.2.7 db.test db".parse().expect("an entry")];
        });
        let text = hosts(&task, LOOPBACK);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"), "{text}");
        assert!(text.ends_with("192.0.2.7\tdb.test\n192.0.2.7\tdb\n"), "{text}");
    }

    #[test]
    fn the_users_command_and_arguments_replace_the_images() {
        let words = |text: &str| text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        let check = |user_command: &str, user_args: &str, want: &str| {
            let plan = fixture::task(|c| (c.command, c.args) = (words(user_command), words(user_args)));
            assert_eq!(command(&plan.container, Image::Whoami).expect("the image has a command"), words(want));
        };
        check("", "", "/weft __whoami");
        check("", "-x", "/weft __whoami -x");
        check("/bin/a", "", "/bin/a");
        check("/bin/a b", "c", "/bin/a b c");
        let error = bundle(Image::Host, |_| ()).expect_err("the image has no command").to_string();
        assert_eq!(error, "image weft/whoami has no command of its own: give one after the image");
    }

    #[test]
    fn secrets_are_mounted_read_only_or_refused() {
        let file = |target: &str| FileMount { source: "/run/weft/n1/files/x/0".into(), target: target.to_owned() };
        let new = |image, target: &str| {
            let (task, node) = (fixture::task(|c| c.command = vec!["sh".to_owned()]), "n1".parse().expect("a name"));
            let (dir, cgroup) = (Path::new("/run/weft/n1/tasks/x"), Path::new("weft/n1/x"));
            Bundle::new(&task, image, &node, dir, cgroup, &[], &[file(target)])
        };
        for (image, target) in [(Image::Host, "/run/secrets/key"), (Image::Whoami, "/conf")] {
            let spec = new(image, target).expect("a valid task").spec;
            let mounts = spec.mounts().clone().expect("mounts");
            let mount = mounts.last().expect("the last mount");
            assert_eq!(mount.destination(), Path::new(target));
            assert_eq!(mount.source().as_deref(), Some(Path::new("/run/weft/n1/files/x/0")));
            assert!(mount.options().iter().flatten().any(|option| option == "ro"), "{mount:?}");
        }
        let error = new(Image::Host, "/no-such-file").expect_err("the root is read-only").to_string();
        assert!(error.starts_with("/no-such-file cannot be mounted, because the root of image host is"), "{error}");
    }

    #[test]
    fn a_stop_signal_is_a_name_or_a_number() {
        let check = |text: &str, want: Option<Signal>| {
            let got = stop_signal(&fixture::task(|c| c.stop_signal = Some(text.to_owned())).container);
            assert_eq!(got.ok(), want, "{text}");
        };
        check("", Some(Signal::SIGTERM));
        check("SIGINT", Some(Signal::SIGINT));
        check("quit", Some(Signal::SIGQUIT));
        check("9", Some(Signal::SIGKILL));
        check("SIGFOO", None);
        check("999", None);
    }

    #[test]
    fn the_users_variables_come_last_and_must_be_valid() {
        let env = |entry: &str| bundle(Image::Whoami, |c| c.env = vec![entry.to_owned()]);
        let spec = env("WEFT_NODE=mine").expect("a valid variable").spec;
        let entries =
            spec.process().as_ref().and_then(|process| process.env().clone()).expect("the process has variables");
        assert_eq!(entries.last().map(String::as_str), Some("WEFT_NODE=mine"));
        assert!(entries.contains(&"WEFT_TASK_NAME=web.1.x".to_owned()));
        let spec = env("WEFT_NODE").expect("a name").spec;
        let entries =
            spec.process().as_ref().and_then(|process| process.env().clone()).expect("the process has variables");
        assert!(!entries.iter().any(|entry| entry.starts_with("WEFT_NODE")), "{entries:?}");
        for bad in ["", "=x", "A=\0", "A\0"] {
            assert!(env(bad).is_err(), "{bad:?}");
        }
    }
}
