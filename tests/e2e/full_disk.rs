//! A manager whose disk is full: the other managers and all traffic go on, and the node takes part
//! again once there is room.

use std::{
    ffi::CStr,
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use weft_lab::{CLIENT, Lab, contract, eventually};

use crate::{
    failure,
    fixtures::{HTTP, Loads, WHOAMI, all_answer, service},
    harness::{Group, Shape, tests},
    mesh,
};

/// The size of the file system with the node's data.
const SIZE: &CStr = c"size=64m";
/// Octets that are written at a time until the file system is full.
const BLOCK: usize = 4096;
/// The port of the service that is created meanwhile.
const LATER_PORT: u16 = 8096;
const RETURN_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) fn group() -> Group {
    Group {
        name: "full_disk",
        shape: Shape { managers: 3, ..Shape::default() },
        setup: failure::setup,
        tests: tests![a_full_disk_stops_neither_traffic_nor_changes],
    }
}

/// A small file system that has a node's data directory. The daemon must not run when it is made
/// and when it is removed.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(dir: &Path) -> Result<Self> {
        let before = dir.with_extension("before");
        fs::rename(dir, &before)?;
        fs::create_dir(dir)?;
        mount("tmpfs", dir, "tmpfs", MountFlags::empty(), Some(SIZE))
            .with_context(|| format!("cannot mount a file system at {}", dir.display()))?;
        let disk = Self(dir.to_owned());
        copy(&before, dir)?;
        fs::remove_dir_all(&before)?;
        Ok(disk)
    }

    /// Fills the file system. Returns the file that does it.
    fn fill(&self) -> Result<PathBuf> {
        let path = self.0.join("filler");
        let mut file = File::create(&path)?;
        loop {
            match file.write_all(&[1; BLOCK]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(path),
                Err(error) => return Err(error).context("cannot fill the file system"),
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.display());
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            fs::set_permissions(&target, entry.metadata()?.permissions())?;
            copy(&source, &target)?;
        } else {
            fs::copy(&source, &target).with_context(|| format!("cannot copy {}", source.display()))?;
        }
    }
    Ok(())
}

pub(crate) fn a_full_disk_stops_neither_traffic_nor_changes(lab: &Lab) -> Result<()> {
    let (node, via) = ("n3", "n1");
    lab.kill_daemon(node)?;
    eventually(RETURN_TIMEOUT, "another manager leads", || match lab.leader(via) {
        Ok(leader) if leader != node => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let disk = SmallDisk::mount(&contract::data_dir(node))?;
    lab.start(node)?;
    lab.wait_ready(via, 3)?;
    lab.wait_managers(via, 3)?;
    lab.wait_running(via, "whoami", 3)?;
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    let filler = disk.fill()?;
    // More changes than fit into what the file system may have reserved.
    for round in 0..8 {
        let name = format!("while-full-{round}");
        let created = service(lab, &name, 3, &["-p", &format!("{LATER_PORT}:{HTTP}")], &[WHOAMI])?;
        all_answer(CLIENT, &lab.published(LATER_PORT), &created, Duration::from_secs(10));
        lab.weft_ok(via, &["service", "rm", &name])?;
        lab.wait_stopped(via, &name)?;
    }
    fs::remove_file(&filler)?;
    lab.wait_ready(via, 3)?;
    lab.wait_managers(via, 3)?;
    loads.expect_no_errors()?;
    // The node takes part again: with it and one other manager there is a quorum.
    let other = "n2";
    lab.kill_daemon(other)?;
    eventually(RETURN_TIMEOUT, "the node that was full makes a quorum", || {
        lab.weft_ok(via, &["network", "create", "with-the-third"]).map(drop).map_err(|error| format!("{error:#}"))
    });
    lab.start(other)?;
    lab.wait_managers(via, 3)?;
    ensure!(fs::read_dir(contract::data_dir(node))?.next().is_some(), "the node has its data");
    lab.kill_daemon(node)?;
    Ok(())
}
