//! Computes a task's container from the task's plan, the node and the image: the container's OCI
//! specification, and the files that are mounted into the container.
//!
//! [`super::task_dirs`] calls it when it prepares a task, and writes the result to the task's
//! directory. Pure, except that it reads the host's account files. It validates all values that a
//! user sets, so that an invalid task is refused before any part of it is created.

mod spec;

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use oci_spec::runtime::Spec;
use weft_model::{
    NodeName, TaskId,
    plan::TaskPlan,
    spec::{ContainerSpec, DnsConfig},
};

use self::spec::{HOSTS, RESOLV_CONF, SpecInput};
use super::{image::Image, user};
use crate::runtime::{RuntimeError, identity};

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
    /// If the user, the command, a variable or the stop signal of the task is not valid, or the
    /// user chose the content of a file that cannot be mounted.
    pub(super) fn new(
        task: &TaskPlan,
        image: Image,
        node: &NodeName,
        dir: &Path,
        cgroup: &Path,
        search: &[String],
    ) -> Result<Self, RuntimeError> {
        let container = &task.container;
        check_files(container, image)?;
        let (passwd, group) = image.passwd_and_group();
        let ids = user::resolve(container.user.as_deref().unwrap_or_default(), &passwd, &group)?;
        let hostname = identity::hostname(task);
        let args = command(container, image)?;
        let env = environment(task, node, &hostname, &ids.home)?;
        let spec = SpecInput { task, image, dir, cgroup, ids: &ids, hostname: &hostname, args, env }.build();
        let spec = spec.map_err(|error| RuntimeError::Start { reason: error.to_string() })?;
        Ok(Self {
            spec,
            stop_signal: stop_signal(container)?,
            init: container.init.unwrap_or_else(|| image.wants_init()),
            hosts: hosts(task),
            resolv_conf: resolv_conf(task, search),
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
    for entry in task.env() {
        match entry.split_once('=') {
            Some((key, _)) if !key.is_empty() && !entry.contains('\0') => env.push(entry.to_owned()),
            _ => return Err(RuntimeError::Environment { entry: entry.to_owned() }),
        }
    }
    Ok(env)
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

fn hosts(task: &TaskPlan) -> String {
    let own = identity::hosts(task).into_iter().map(|(name, addr)| format!("{addr}\t{name}\n"));
    let loopback = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
    [loopback.to_owned()].into_iter().chain(own).collect()
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
    fn the_users_names_follow_those_of_the_loopback_addresses() {
        let task = fixture::task(|container| {
            container.hosts = vec!["192.0.2.7 db.test db".parse().expect("an entry")];
        });
        let text = hosts(&task);
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
        for bad in ["", "A", "=x", "A=\0"] {
            assert!(env(bad).is_err(), "{bad:?}");
        }
    }
}
