//! The OCI runtime specification of a task's container. Pure, except that it checks which files
//! exist in the host's root.

use std::{collections::HashSet, path::Path};

use oci_spec::{
    OciSpecError,
    runtime::{
        Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxDeviceCgroupBuilder,
        LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResources,
        LinuxResourcesBuilder, Mount, MountBuilder, ProcessBuilder, RootBuilder, Spec, SpecBuilder, User, UserBuilder,
    },
};
use weft_model::{plan::TaskPlan, spec::Resources};

use super::super::{image::Image, user};
use crate::runtime::files::FileMount;

/// Period of the processor limit: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// The capabilities that container engines grant by default, without CAP_MKNOD.
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

/// Files of the container that weft writes.
pub(super) const RESOLV_CONF: &str = "/etc/resolv.conf";
pub(super) const HOSTS: &str = "/etc/hosts";
const HOSTNAME: &str = "/etc/hostname";

/// The inputs of a specification.
pub(super) struct SpecInput<'a> {
    pub(super) task: &'a TaskPlan,
    pub(super) image: Image,
    /// The task's directory.
    pub(super) dir: &'a Path,
    pub(super) cgroup: &'a Path,
    pub(super) ids: &'a user::Ids,
    pub(super) hostname: &'a str,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
    /// The files with secrets and configs.
    pub(super) files: &'a [FileMount],
}

impl SpecInput<'_> {
    pub(super) fn build(self) -> Result<Spec, OciSpecError> {
        let namespace = |typ| LinuxNamespaceBuilder::default().typ(typ).build();
        let mut namespaces = vec![
            namespace(LinuxNamespaceType::Mount)?,
            namespace(LinuxNamespaceType::Pid)?,
            namespace(LinuxNamespaceType::Uts)?,
            namespace(LinuxNamespaceType::Ipc)?,
        ];
        // Without one, the task runs in that of its shim, which is the node's.
        if self.task.node_network.is_none() {
            let network = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network);
            namespaces.insert(0, network.path(self.dir.join("netns")).build()?);
        }
        let linux = LinuxBuilder::default()
            .namespaces(namespaces)
            .cgroups_path(self.cgroup)
            .resources(resources(&self.task.resources)?)
            .masked_paths(masked_paths())
            .readonly_paths(readonly_paths())
            .build()?;
        let capabilities = CAPABILITIES.into_iter().collect::<HashSet<_>>();
        let none = HashSet::new();
        // A program of another user than root starts without capabilities, as in every container
        // engine.
        let granted = if self.ids.uid == 0 { capabilities.clone() } else { none.clone() };
        let process = ProcessBuilder::default()
            .terminal(false)
            .user(process_user(self.ids)?)
            .args(self.args)
            .env(self.env)
            // The module `program` changes to the task's working directory, and reports an error
            // to the user if it cannot.
            .cwd("/")
            .capabilities(
                LinuxCapabilitiesBuilder::default()
                    .bounding(capabilities)
                    .effective(granted.clone())
                    .permitted(granted)
                    .inheritable(none.clone())
                    .ambient(none)
                    .build()?,
            )
            // The default of the oci-spec library is a limit of 1024 open files. With an empty list
            // the task inherits the shim's limits.
            .rlimits(vec![])
            .no_new_privileges(false)
            .build()?;
        SpecBuilder::default()
            .version("1.0.2")
            .root(RootBuilder::default().path(self.dir.join("rootfs")).readonly(self.task.container.read_only).build()?)
            .mounts(mounts(self.image, self.dir, self.files)?)
            .process(process)
            .hostname(self.hostname)
            .linux(linux)
            .build()
    }
}

fn process_user(ids: &user::Ids) -> Result<User, OciSpecError> {
    UserBuilder::default().uid(ids.uid).gid(ids.gid).additional_gids(ids.groups.clone()).build()
}

fn resources(limits: &Resources) -> Result<LinuxResources, OciSpecError> {
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    // libcontainer allows the standard devices (null, zero, random, terminals) after this rule.
    let no_device = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?;
    let mut resources = LinuxResourcesBuilder::default().devices(vec![no_device]);
    if limits.limit_nano_cpus > 0 {
        let quota_us = u128::from(limits.limit_nano_cpus) * u128::from(CPU_PERIOD_US) / 1_000_000_000;
        // The kernel refuses a quota below one millisecond.
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

fn mounts(image: Image, dir: &Path, files: &[FileMount]) -> Result<Vec<Mount>, OciSpecError> {
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
        // The host's /run holds the sockets of its daemons.
        mounts.push(mount("/run", "tmpfs", &["nosuid", "nodev", "mode=755", "size=64m"])?);
    }
    let own = [(RESOLV_CONF, "resolv.conf"), (HOSTS, "hosts"), (HOSTNAME, "hostname")];
    let own = own.into_iter().filter(|(at, _)| image.can_mount_file(at)).map(|(at, file)| (at, dir.join(file)));
    let given = files.iter().map(|file| (file.target.as_str(), file.source.clone()));
    for (at, source) in own.chain(given) {
        mounts.push(
            MountBuilder::default()
                .destination(at)
                .typ("bind")
                .source(source)
                .options(["bind", "ro", "nosuid", "nodev"].map(str::to_owned).to_vec())
                .build()?,
        );
    }
    Ok(mounts)
}

/// Parts of /proc and /sys that show or change the whole machine, because no namespace isolates
/// them.
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

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxCpu, LinuxMemory};

    use super::*;

    #[test]
    fn sets_only_the_limits_that_the_user_asked_for() {
        let limits = Resources {
            limit_nano_cpus: 500_000_000,
            limit_memory_bytes: 20 << 20,
            limit_pids: 16,
            ..Resources::default()
        };
        let set = resources(&limits).expect("valid limits");
        assert_eq!(set.cpu().as_ref().and_then(LinuxCpu::quota), Some(50_000));
        assert_eq!(set.memory().as_ref().and_then(LinuxMemory::limit), Some(20 << 20));
        let unset = resources(&Resources::default()).expect("valid limits");
        assert!(unset.cpu().is_none() && unset.memory().is_none() && unset.pids().is_none());
    }
}
