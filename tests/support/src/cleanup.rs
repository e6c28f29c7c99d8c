//! Removes a lab, also one whose creator was killed at any point, and lists the remains of a lab.
//!
//! It removes only objects with the names of a lab, and the folders above them if they are empty.
//! It must not change a weft that runs on this machine outside of a lab.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use procfs::process::{MountInfos, Process};
use rustix::mount::{UnmountFlags, unmount};

use crate::{
    contract::{self, LAB_DATA, PINS, RUN, UNDERLAY},
    docker, engine, process, topology, tree, wait,
};

/// The time in which killed processes and their control groups must disappear.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Removes everything. Continues after a failure, and returns one error for all of them.
pub(crate) fn remove_lab() -> Result<()> {
    let mut failures = Vec::new();
    let mut attempt = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            failures.push(format!("{what}: {error:#}"));
        }
    };
    attempt("processes", kill_all());
    attempt("directory of container engines", engine::remove_config_dir());
    attempt("mounts", unmount_all());
    attempt("namespaces", remove_namespaces());
    attempt("pins", pins().iter().try_for_each(|path| tree::remove(path)));
    attempt("control groups", cgroups().and_then(|paths| paths.iter().try_for_each(|path| remove_cgroup(path))));
    attempt("files", files().iter().try_for_each(|path| tree::remove(path)));
    let parents = [PINS, RUN, "/var/lib/weft"].map(PathBuf::from);
    for parent in parents.into_iter().chain(cgroup_roots().unwrap_or_default()) {
        // A folder that a weft outside of the lab uses is not empty, so it stays.
        let _not_empty = fs::remove_dir(parent);
    }
    if failures.is_empty() { Ok(()) } else { Err(anyhow!("cannot remove all of the lab: {}", failures.join("; "))) }
}

/// Removes what a machine loses when it is off, of a node without processes: its namespace, the
/// mounts below its run directory and the directory, its pins, and its control groups.
pub(crate) fn remove_kernel_state(node: &str) -> Result<()> {
    for path in mounts()?.iter().filter(|path| path.starts_with(contract::run_dir(node))) {
        unmount_now(path)?;
    }
    topology::remove_host(node)?;
    tree::remove(&Path::new(PINS).join(node))?;
    for root in cgroup_roots()? {
        let group = root.join(node);
        if group.exists() {
            remove_cgroup(&group)?;
        }
    }
    tree::remove(&contract::run_dir(node))
}

/// Lists all existing objects of a lab, one line for each. Empty after [`crate::Lab::down`].
pub fn leftovers() -> Vec<String> {
    let mut found = Vec::new();
    for pid in processes() {
        found.push(format!("process {pid}: {}", process::command_line(pid).join(" ").trim()));
    }
    found.extend(namespaces().iter().map(|name| format!("network namespace {name}")));
    match mounts() {
        Ok(mounts) => found.extend(mounts.iter().map(|path| format!("mount {}", path.display()))),
        Err(error) => found.push(format!("mounts cannot be listed: {error:#}")),
    }
    found.extend(pins().iter().map(|path| format!("pin {}", path.display())));
    match cgroups() {
        Ok(cgroups) => found.extend(cgroups.iter().map(|path| format!("control group {}", path.display()))),
        Err(error) => found.push(format!("control groups cannot be listed: {error:#}")),
    }
    found.extend(files().iter().map(|path| format!("file {}", path.display())));
    found.extend(links().iter().map(|name| format!("link {name}")));
    found.extend((1..=contract::MAX_NODES).map(contract::node).flat_map(|node| containers(&node)));
    found
}

/// The containers of a node's engine, one line for each. None when the engine is not running.
fn containers(node: &str) -> Vec<String> {
    let socket = contract::engine_socket(node);
    if !docker::is_serving(&socket) {
        return Vec::new();
    }
    match docker::containers(&socket) {
        Ok(containers) => containers.iter().map(|id| format!("container {id} of {node}")).collect(),
        Err(error) => vec![format!("containers of {node} cannot be listed: {error:#}")],
    }
}

/// The processes of a node: its daemon, its container engine, its tasks and their helper processes.
pub(crate) fn processes_of(node: &str) -> Vec<u32> {
    let mut paths = task_namespaces(&contract::run_dir(node));
    paths.push(contract::namespace_path(node));
    let namespaces = crate::netns::inodes(paths.iter().map(PathBuf::as_path));
    let owner = [Owner::new(node)];
    process::others().into_iter().filter(|pid| belongs(*pid, &namespaces, &owner)).collect()
}

/// The nodes whose daemons are running.
pub(crate) fn running_nodes() -> Vec<String> {
    let is_running = |node: &String| {
        let pid = fs::read_to_string(contract::pid_file(node)).ok().and_then(|text| text.trim().parse().ok());
        // The kernel may have given the id to another process since.
        let socket = contract::socket(node);
        pid.is_some_and(|pid| process::command_line(pid).iter().any(|argument| Path::new(argument) == socket))
    };
    (1..=contract::MAX_NODES).map(contract::node).filter(is_running).collect()
}

/// What the processes of a node have.
struct Owner {
    /// An argument that begins with one of these paths.
    directories: [PathBuf; 2],
    /// Or a control group with this path, or below it.
    cgroup: String,
}

impl Owner {
    fn new(node: &str) -> Self {
        Self { directories: [contract::run_dir(node), engine::exec_root(node)], cgroup: contract::cgroup(node) }
    }
}

/// The processes of all nodes and hosts.
fn processes() -> Vec<u32> {
    let mut paths: Vec<PathBuf> = namespaces().iter().map(|name| Path::new("/run/netns").join(name)).collect();
    paths.extend(nodes_with_run_dir().iter().flat_map(|node| task_namespaces(&contract::run_dir(node))));
    let namespaces = crate::netns::inodes(paths.iter().map(PathBuf::as_path));
    let owners: Vec<Owner> = (1..=contract::MAX_NODES).map(|index| Owner::new(&contract::node(index))).collect();
    process::others().into_iter().filter(|pid| belongs(*pid, &namespaces, &owners)).collect()
}

/// Whether a process is in one of these network namespaces, or belongs to one of the owners.
fn belongs(pid: u32, namespaces: &BTreeSet<u64>, owners: &[Owner]) -> bool {
    if process::network_namespace(pid).is_some_and(|inode| namespaces.contains(&inode)) {
        return true;
    }
    let groups = process::cgroups(pid);
    let arguments = process::command_line(pid);
    let names = |directory: &PathBuf| arguments.iter().any(|argument| Path::new(argument).starts_with(directory));
    owners.iter().any(|owner| {
        groups.iter().any(|path| Path::new(path).starts_with(&owner.cgroup)) || owner.directories.iter().any(names)
    })
}

fn nodes_with_run_dir() -> Vec<String> {
    names_in(Path::new(RUN)).into_iter().filter(|name| contract::is_node(name)).collect()
}

fn task_namespaces(run_dir: &Path) -> Vec<PathBuf> {
    let tasks = run_dir.join("tasks");
    names_in(&tasks).into_iter().map(|task| tasks.join(task).join("netns")).collect()
}

fn kill_all() -> Result<()> {
    // A helper may start one more process before it is killed: repeat until there is none.
    let clean = wait::poll(TIMEOUT, || {
        let found = processes();
        // The next check finds a process that cannot be killed.
        found.iter().for_each(|pid| drop(process::kill(*pid)));
        found.is_empty().then_some(())
    });
    clean.with_context(|| format!("processes {:?} are still running", processes()))
}

fn namespaces() -> Vec<String> {
    let is_lab = |name: &str| {
        name == UNDERLAY
            || name.strip_prefix("weft-").is_some_and(|host| host == contract::CLIENT || contract::is_node(host))
    };
    names_in(Path::new("/run/netns")).into_iter().filter(|name| is_lab(name)).collect()
}

fn remove_namespaces() -> Result<()> {
    namespaces().iter().try_for_each(|name| topology::ip(None, &[format!("netns delete {name}")]))
}

/// Mount points below the lab's directories, the deepest first.
fn mounts() -> Result<Vec<PathBuf>> {
    let is_lab = |path: &Path| {
        let first = path.strip_prefix(RUN).ok().and_then(|below| below.iter().next()?.to_str());
        path.starts_with(LAB_DATA) || first.is_some_and(|first| first == "lab" || contract::is_node(first))
    };
    let mounts = mount_table()?.into_iter().map(|mount| mount.mount_point);
    let mut found: Vec<PathBuf> = mounts.filter(|path| is_lab(path)).collect();
    found.reverse();
    Ok(found)
}

/// The mounts of this process in the order of mounting. The kernel writes a space in a path as
/// `\040`, and procfs does not decode that: no path of a lab has a space.
fn mount_table() -> Result<MountInfos> {
    Process::myself().and_then(|own| own.mountinfo()).context("cannot read the mounts of this process")
}

fn unmount_all() -> Result<()> {
    mounts()?.iter().try_for_each(|path| unmount_now(path))
}

fn unmount_now(path: &Path) -> Result<()> {
    unmount(path, UnmountFlags::DETACH).with_context(|| format!("cannot unmount {}", path.display()))
}

fn pins() -> Vec<PathBuf> {
    entries_of_lab(Path::new(PINS))
}

/// weft's directory in each mounted control group hierarchy.
fn cgroup_roots() -> Result<Vec<PathBuf>> {
    let hierarchies =
        mount_table()?.into_iter().filter(|mount| mount.fs_type == "cgroup" || mount.fs_type == "cgroup2");
    Ok(hierarchies.map(|mount| mount.mount_point.join("weft")).filter(|path| path.exists()).collect())
}

fn cgroups() -> Result<Vec<PathBuf>> {
    Ok(cgroup_roots()?.iter().flat_map(|root| entries_of_lab(root)).collect())
}

fn files() -> Vec<PathBuf> {
    let mut found = entries_of_lab(Path::new(RUN));
    found.extend([LAB_DATA].map(PathBuf::from).into_iter().filter(|path| path.exists()));
    found
}

/// The entries of a directory that have the name of a node, or the lab's own.
fn entries_of_lab(parent: &Path) -> Vec<PathBuf> {
    let names = names_in(parent).into_iter().filter(|name| name == "lab" || contract::is_node(name));
    names.map(|name| parent.join(name)).collect()
}

/// Links in the machine's own namespace with weft's name. A lab has none there.
fn links() -> Vec<String> {
    let Ok(output) = Command::new("ip").args(["-oneline", "link", "show"]).output() else { return Vec::new() };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text.lines().filter_map(|line| line.split(": ").nth(1));
    names.filter(|name| name.starts_with("weft")).map(str::to_owned).collect()
}

/// Removes a control group and the groups below it. The kernel's files in the directories cannot be
/// removed: `rmdir` removes them with their directory.
fn remove_cgroup(path: &Path) -> Result<()> {
    for child in names_in(path).iter().map(|name| path.join(name)).filter(|child| child.is_dir()) {
        remove_cgroup(&child)?;
    }
    // The group is busy until the kernel has removed its last process.
    let removed = wait::poll(TIMEOUT, || match fs::remove_dir(path) {
        Ok(()) => Some(Ok(())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Ok(())),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => None,
        Err(error) => Some(Err(error)),
    });
    let result = removed.with_context(|| format!("control group {} is still busy", path.display()))?;
    result.with_context(|| format!("cannot remove {}", path.display()))
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}
