//! What a task is started with, as the OCI runtime specification says it: a function of its plan, the node and the image.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use oci_spec::{
    OciSpecError,
    runtime::{
        Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxDeviceCgroupBuilder,
        LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResources,
        LinuxResourcesBuilder, Mount, MountBuilder, ProcessBuilder, RootBuilder, Spec, SpecBuilder, User, UserBuilder,
    },
};
use weft_model::{
    NodeName,
    plan::TaskPlan,
    spec::{ContainerSpec, Resources},
};

use super::{image::Image, user};
use crate::runtime::{RuntimeError, identity};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Period over which the processor limit holds, the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// What every container engine grants by default, less the right to make device nodes.
const CAPABILITIES: [Capability; 13] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// All that is to be written down of a task before it starts.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) spec: Spec,
    pub(super) ids: user::Ids,
    pub(super) stop_signal: Signal,
    pub(super) init: bool,
    pub(super) hostname: String,
    pub(super) hosts: String,
    pub(super) resolv_conf: String,
}

impl Bundle {
    pub(super) fn new(
        task: &TaskPlan,
        image: Image,
        node: &NodeName,
        dir: &Path,
        cgroup: &Path,
    ) -> Result<Self, RuntimeError> {
        let container = &task.container;
        let (passwd, group) = image.accounts();
        let ids = user::resolve(container.user.as_deref().unwrap_or_default(), &passwd, &group)?;
        let hostname = identity::hostname(task);
        let args = command(container, image)?;
        let env = environment(task, node, &hostname, &ids.home)?;
        let spec = spec(task, image, dir, cgroup, &ids, &hostname, args, env)
            .map_err(|error| RuntimeError::Start { reason: error.to_string() })?;
        Ok(Self {
            spec,
            stop_signal: stop_signal(container)?,
            init: container.init.unwrap_or_else(|| image.wants_init()),
            hosts: hosts(task, &hostname),
            resolv_conf: format!("nameserver {}\noptions ndots:0\n", identity::RESOLVER),
            ids,
            hostname,
        })
    }
}

/// The user's command in place of the image's entry point, the user's arguments in place of its command.
fn command(container: &ContainerSpec, image: Image) -> Result<Vec<String>, RuntimeError> {
    let mut command = if container.command.is_empty() { image.entrypoint() } else { container.command.clone() };
    command.extend(container.args.iter().cloned());
    if command.is_empty() { Err(RuntimeError::NoCommand { image: container.image.clone() }) } else { Ok(command) }
}

/// The user's entries come last: they win.
fn environment(task: &TaskPlan, node: &NodeName, hostname: &str, home: &str) -> Result<Vec<String>, RuntimeError> {
    let mut env = vec![PATH.to_owned(), format!("HOSTNAME={hostname}"), format!("HOME={home}")];
    env.extend(identity::environment(task, node));
    for entry in &task.container.env {
        match entry.split_once('=') {
            Some((key, _)) if !key.is_empty() && !entry.contains('\0') => env.push(entry.clone()),
            _ => return Err(RuntimeError::Environment { entry: entry.clone() }),
        }
    }
    Ok(env)
}

/// `SIGTERM`, `TERM` or `15`.
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

fn hosts(task: &TaskPlan, hostname: &str) -> String {
    let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    if let Some(first) = task.attachments.first() {
        hosts.push_str(&format!("{}\t{hostname}\n{}\t{hostname}\n", first.addr.v4, first.addr.v6));
    }
    hosts
}

#[expect(clippy::too_many_arguments, reason = "everything that a spec is a function of, once")]
fn spec(
    task: &TaskPlan,
    image: Image,
    dir: &Path,
    cgroup: &Path,
    ids: &user::Ids,
    hostname: &str,
    args: Vec<String>,
    env: Vec<String>,
) -> Result<Spec, OciSpecError> {
    let namespace = |typ| LinuxNamespaceBuilder::default().typ(typ).build();
    let namespaces = vec![
        LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network).path(dir.join("netns")).build()?,
        namespace(LinuxNamespaceType::Mount)?,
        namespace(LinuxNamespaceType::Pid)?,
        namespace(LinuxNamespaceType::Uts)?,
        namespace(LinuxNamespaceType::Ipc)?,
    ];
    let linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .cgroups_path(cgroup)
        .resources(resources(&task.resources)?)
        .masked_paths(masked_paths())
        .readonly_paths(readonly_paths())
        .build()?;
    let capabilities = CAPABILITIES.into_iter().collect::<std::collections::HashSet<_>>();
    let none = std::collections::HashSet::new();
    // A program that is not root's gains none by being started, as in every container engine.
    let held = if ids.uid == 0 { capabilities.clone() } else { none.clone() };
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(process_user(ids)?)
        .args(args)
        .env(env)
        // The task's own is entered right before its program: then what is wrong with it can be said.
        .cwd("/")
        .capabilities(
            LinuxCapabilitiesBuilder::default()
                .bounding(capabilities)
                .effective(held.clone())
                .permitted(held)
                .inheritable(none.clone())
                .ambient(none)
                .build()?,
        )
        // The library's default is 1024 descriptors; the shim's own limits are meant to hold.
        .rlimits(vec![])
        .no_new_privileges(false)
        .build()?;
    SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path(dir.join("rootfs")).readonly(task.container.read_only).build()?)
        .mounts(mounts(image, dir)?)
        .process(process)
        .hostname(hostname)
        .linux(linux)
        .build()
}

fn process_user(ids: &user::Ids) -> Result<User, OciSpecError> {
    UserBuilder::default().uid(ids.uid).gid(ids.gid).additional_gids(ids.groups.clone()).build()
}

fn resources(limits: &Resources) -> Result<LinuxResources, OciSpecError> {
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    // Everything but what the container library itself allows: null, zero, random, terminals.
    let no_device = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?;
    let mut resources = LinuxResourcesBuilder::default().devices(vec![no_device]);
    if limits.limit_nano_cpus > 0 {
        let quota_us = u128::from(limits.limit_nano_cpus) * u128::from(CPU_PERIOD_US) / 1_000_000_000;
        // Below a millisecond the kernel refuses the quota.
        let quota_us = i64::try_from(quota_us.max(1000)).unwrap_or(i64::MAX);
        resources = resources.cpu(LinuxCpuBuilder::default().period(CPU_PERIOD_US).quota(quota_us).build()?);
    }
    if limits.limit_memory_bytes > 0 {
        resources = resources.memory(LinuxMemoryBuilder::default().limit(signed(limits.limit_memory_bytes)).build()?);
    }
    if limits.limit_pids > 0 {
        resources = resources.pids(LinuxPidsBuilder::default().limit(signed(limits.limit_pids)).build()?);
    }
    resources.build()
}

fn mounts(image: Image, dir: &Path) -> Result<Vec<Mount>, OciSpecError> {
    let mount = |at: &str, kind: &str, options: &[&str]| {
        MountBuilder::default()
            .destination(at)
            .typ(kind)
            .source(kind)
            .options(options.iter().map(|&o| o.to_owned()).collect::<Vec<_>>())
            .build()
    };
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"])?,
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])?,
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"])?,
    ];
    if image == Image::Host {
        mounts.push(mount("/tmp", "tmpfs", &["nosuid", "nodev", "mode=1777", "size=64m"])?);
        // The machine's own holds the sockets of its daemons.
        mounts.push(mount("/run", "tmpfs", &["nosuid", "nodev", "mode=755", "size=64m"])?);
    }
    for (at, file) in [("/etc/resolv.conf", "resolv.conf"), ("/etc/hosts", "hosts"), ("/etc/hostname", "hostname")] {
        if image.takes_file(at) {
            mounts.push(
                MountBuilder::default()
                    .destination(at)
                    .typ("bind")
                    .source(dir.join(file))
                    .options(["bind", "ro", "nosuid", "nodev"].map(str::to_owned).to_vec())
                    .build()?,
            );
        }
    }
    Ok(mounts)
}

/// Parts of /proc and /sys that tell of the machine, or change it, beyond any namespace.
fn masked_paths() -> Vec<String> {
    [
        "/proc/acpi",
        "/proc/asound",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn readonly_paths() -> Vec<String> {
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"].map(str::to_owned).to_vec()
}

/// The group of a task, relative to the root of each hierarchy, and that of the node's shims.
pub(super) fn cgroups(node: &NodeName, task: &weft_model::TaskId) -> (PathBuf, PathBuf) {
    let node = Path::new("weft").join(node.as_str());
    (node.join(task.as_str()), node.join("shims"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fixture;

    fn bundle(image: Image, change: impl FnOnce(&mut ContainerSpec)) -> Result<Bundle, RuntimeError> {
        let dir = Path::new("/run/weft/n1/tasks/x");
        Bundle::new(&fixture::task(change), image, &"n1".parse().unwrap(), dir, Path::new("weft/n1/x"))
    }

    #[test]
    fn the_users_words_replace_the_images() {
        let words = |text: &str| text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        let check = |user_command: &str, user_args: &str, want: &str| {
            let plan = fixture::task(|c| (c.command, c.args) = (words(user_command), words(user_args)));
            assert_eq!(command(&plan.container, Image::Whoami).unwrap(), words(want));
        };
        check("", "", "/weft __whoami");
        check("", "-x", "/weft __whoami -x");
        check("/bin/a", "", "/bin/a");
        check("/bin/a b", "c", "/bin/a b c");
        let error = bundle(Image::Host, |_| ()).unwrap_err().to_string();
        assert_eq!(error, "image weft/whoami names no command of its own: give one after the image");
    }

    #[test]
    fn signals_are_named_or_numbered() {
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
    fn the_users_variables_come_last_and_must_be_variables() {
        let env = |entry: &str| bundle(Image::Whoami, |c| c.env = vec![entry.to_owned()]);
        let spec = env("WEFT_NODE=mine").unwrap().spec;
        let entries = spec.process().as_ref().unwrap().env().clone().unwrap();
        assert_eq!(entries.last().unwrap(), "WEFT_NODE=mine");
        assert!(entries.contains(&"WEFT_TASK_NAME=web.1.x".to_owned()));
        for bad in ["", "A", "=x", "A=\0"] {
            assert!(env(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn limits_are_set_where_asked_for() {
        let limits = Resources {
            limit_nano_cpus: 500_000_000,
            limit_memory_bytes: 20 << 20,
            limit_pids: 16,
            ..Resources::default()
        };
        let set = resources(&limits).unwrap();
        assert_eq!(set.cpu().as_ref().unwrap().quota(), Some(50_000));
        assert_eq!(set.memory().as_ref().unwrap().limit(), Some(20 << 20));
        let unset = resources(&Resources::default()).unwrap();
        assert!(unset.cpu().is_none() && unset.memory().is_none() && unset.pids().is_none());
    }
}
