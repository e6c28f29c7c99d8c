//! Taking a lab away, whoever made it and in whatever state it was left, and telling what is still there.
//!
//! Only things that bear a lab's names are touched: a weft that runs on this machine for real is not.

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
    contract::{self, LAB_DATA, LAB_RUN, PINS, RUN, UNDERLAY},
    docker, process, tree, wait,
};

/// For the last killed process to vanish.
const SETTLE: Duration = Duration::from_secs(10);

/// Whose processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    /// Daemons, tasks and their helpers.
    Nodes,
    /// Those, and the container engine that the lab started.
    Lab,
}

/// Removes everything. Goes on past failures and reports them all.
pub(crate) fn down() -> Result<()> {
    let mut failures = Vec::new();
    let mut attempt = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            failures.push(format!("{what}: {error:#}"));
        }
    };
    attempt("daemons and tasks", kill_all(Of::Nodes));
    if let Some(socket) = docker::socket() {
        attempt("containers", remove_containers(&socket));
    }
    attempt("container engine", docker::stop());
    attempt("the container engine's helpers", kill_all(Of::Lab));
    attempt("mounts", unmount_all());
    attempt("namespaces", remove_namespaces());
    attempt("pins", pins().iter().try_for_each(|path| tree::remove(path)));
    attempt("control groups", cgroups().and_then(|paths| paths.iter().try_for_each(|path| remove_cgroup(path))));
    attempt("files", files().iter().try_for_each(|path| tree::remove(path)));
    // Parents only where nothing else lives in them.
    for parent in [PINS, RUN, "/var/lib/weft"].map(PathBuf::from).into_iter().chain(cgroup_roots().unwrap_or_default())
    {
        let _not_empty = fs::remove_dir(parent);
    }
    if failures.is_empty() { Ok(()) } else { Err(anyhow!("cannot remove all of the lab: {}", failures.join("; "))) }
}

/// Everything of a lab that exists, one line each. Empty after [`crate::Lab::down`].
pub fn leftovers() -> Vec<String> {
    let mut found = Vec::new();
    for pid in processes(Of::Lab) {
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
    if let Some(socket) = docker::socket() {
        match docker::containers(&socket) {
            Ok(containers) => found.extend(containers.iter().map(|id| format!("container {id}"))),
            Err(error) => found.push(format!("the container engine does not tell its containers: {error:#}")),
        }
    }
    found
}

/// What a node needs to live: its daemon, its tasks and their helpers.
pub(crate) fn processes_of(node: &str) -> Vec<u32> {
    let run_dir = contract::run_dir(node);
    let mut paths = task_namespaces(&run_dir);
    paths.push(contract::namespace_path(node));
    let namespaces = crate::netns::inodes(paths.iter().map(PathBuf::as_path));
    let cgroup = format!("/weft/{node}");
    process::others()
        .into_iter()
        .filter(|pid| belongs(*pid, &namespaces, &[(run_dir.clone(), cgroup.clone())]))
        .collect()
}

/// Nodes whose daemons run.
pub(crate) fn live_nodes() -> Vec<String> {
    let runs = |node: &String| {
        let pid = fs::read_to_string(contract::pid_file(node)).ok().and_then(|text| text.trim().parse().ok());
        // The number may be another process's by now.
        let socket = contract::socket(node);
        pid.is_some_and(|pid| process::command_line(pid).iter().any(|argument| Path::new(argument) == socket))
    };
    (1..=contract::MAX_NODES).map(contract::node).filter(runs).collect()
}

/// The lab's processes.
fn processes(of: Of) -> Vec<u32> {
    let nodes = run_nodes();
    let mut paths: Vec<PathBuf> = namespaces().iter().map(|name| Path::new("/run/netns").join(name)).collect();
    paths.extend(nodes.iter().flat_map(|node| task_namespaces(&contract::run_dir(node))));
    let namespaces = crate::netns::inodes(paths.iter().map(PathBuf::as_path));
    let marks: Vec<_> = (1..=contract::MAX_NODES)
        .map(contract::node)
        .map(|node| (contract::run_dir(&node), format!("/weft/{node}")))
        .chain((of == Of::Lab).then(|| (PathBuf::from(LAB_RUN).join("docker"), "/weft/lab".to_owned())))
        .collect();
    process::others().into_iter().filter(|pid| belongs(*pid, &namespaces, &marks)).collect()
}

/// By namespace, by control group, or by an argument that names a node's run directory.
fn belongs(pid: u32, namespaces: &BTreeSet<u64>, marks: &[(PathBuf, String)]) -> bool {
    if process::network_namespace(pid).is_some_and(|inode| namespaces.contains(&inode)) {
        return true;
    }
    let groups = process::cgroups(pid);
    let arguments = process::command_line(pid);
    marks.iter().any(|(run_dir, group)| {
        groups.iter().any(|path| Path::new(path).starts_with(group))
            || arguments.iter().any(|argument| Path::new(argument).starts_with(run_dir))
    })
}

/// Nodes that have a run directory.
fn run_nodes() -> Vec<String> {
    names_in(Path::new(RUN)).into_iter().filter(|name| contract::is_node(name)).collect()
}

fn task_namespaces(run_dir: &Path) -> Vec<PathBuf> {
    let tasks = run_dir.join("tasks");
    names_in(&tasks).into_iter().map(|task| tasks.join(task).join("netns")).collect()
}

fn kill_all(of: Of) -> Result<()> {
    // A dying daemon's helper may start one more process: look again until there is none.
    let clean = wait::until(SETTLE, || {
        let found = processes(of);
        // Errors show in the next look.
        found.iter().for_each(|pid| drop(process::kill(*pid)));
        found.is_empty().then_some(())
    });
    clean.with_context(|| format!("processes {:?} do not end", processes(of)))
}

fn remove_containers(socket: &Path) -> Result<()> {
    docker::remove(socket, &docker::containers(socket)?)
}

fn namespaces() -> Vec<String> {
    let hosts = |name: &str| {
        name == UNDERLAY
            || name.strip_prefix("weft-").is_some_and(|host| host == contract::CLIENT || contract::is_node(host))
    };
    names_in(Path::new("/run/netns")).into_iter().filter(|name| hosts(name)).collect()
}

fn remove_namespaces() -> Result<()> {
    namespaces().iter().try_for_each(|name| crate::topology::ip(None, &[format!("netns delete {name}")]))
}

/// Mount points below the lab's directories, the deepest first.
fn mounts() -> Result<Vec<PathBuf>> {
    let of_lab = |path: &Path| {
        path.starts_with(LAB_DATA)
            || path
                .strip_prefix(RUN)
                .ok()
                .and_then(|rest| rest.iter().next()?.to_str())
                .is_some_and(|first| first == "lab" || contract::is_node(first))
    };
    let mounts = mount_table()?.into_iter().map(|mount| mount.mount_point);
    let mut found: Vec<PathBuf> = mounts.filter(|path| of_lab(path)).collect();
    found.reverse();
    Ok(found)
}

/// The mounts of this process in the order of mounting. The kernel writes a space in a path as
/// `\040`, which procfs leaves as it is: no path of a lab has one.
fn mount_table() -> Result<MountInfos> {
    Process::myself().and_then(|own| own.mountinfo()).context("cannot read the mounts of this process")
}

fn unmount_all() -> Result<()> {
    for path in mounts()? {
        unmount(&path, UnmountFlags::DETACH).with_context(|| format!("cannot unmount {}", path.display()))?;
    }
    Ok(())
}

fn pins() -> Vec<PathBuf> {
    of_nodes(Path::new(PINS))
}

/// weft's directory in each mounted control group hierarchy.
fn cgroup_roots() -> Result<Vec<PathBuf>> {
    let hierarchies =
        mount_table()?.into_iter().filter(|mount| mount.fs_type == "cgroup" || mount.fs_type == "cgroup2");
    Ok(hierarchies.map(|mount| mount.mount_point.join("weft")).filter(|path| path.exists()).collect())
}

fn cgroups() -> Result<Vec<PathBuf>> {
    Ok(cgroup_roots()?.iter().flat_map(|root| of_nodes(root)).collect())
}

fn files() -> Vec<PathBuf> {
    let mut found = of_nodes(Path::new(RUN));
    found.extend([LAB_DATA].map(PathBuf::from).into_iter().filter(|path| path.exists()));
    found
}

/// Entries of a directory that bear a node's name, or the lab's own.
fn of_nodes(parent: &Path) -> Vec<PathBuf> {
    let names = names_in(parent).into_iter().filter(|name| name == "lab" || contract::is_node(name));
    names.map(|name| parent.join(name)).collect()
}

/// Links of the machine itself that bear weft's name: a lab's are all in its namespaces.
fn links() -> Vec<String> {
    let Ok(output) = Command::new("ip").args(["-oneline", "link", "show"]).output() else { return Vec::new() };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text.lines().filter_map(|line| line.split(": ").nth(1));
    names.filter(|name| name.starts_with("weft")).map(str::to_owned).collect()
}

/// A control group's directory holds files that cannot be removed, and goes with `rmdir` once its children are gone.
fn remove_cgroup(path: &Path) -> Result<()> {
    for child in names_in(path).iter().map(|name| path.join(name)).filter(|child| child.is_dir()) {
        remove_cgroup(&child)?;
    }
    // Busy until the kernel has buried the last process.
    let removed = wait::until(SETTLE, || match fs::remove_dir(path) {
        Ok(()) => Some(Ok(())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Ok(())),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => None,
        Err(error) => Some(Err(error)),
    });
    removed.context("still busy")?.with_context(|| format!("cannot remove {}", path.display()))
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}
