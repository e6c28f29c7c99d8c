//! The lock for the lab of this machine: only one process at a time may create, use or remove a
//! lab. A process that waits for the lock prints which process holds it.

use std::{
    fs::{self, File},
    io,
};

use anyhow::{Context, Result};
use rustix::{
    fs::{FlockOperation, Stat, flock, fstat, major, minor},
    io::Errno,
};

use crate::process;

/// The directory to lock. It always exists, so that the lock leaves no file behind.
const DIRECTORY: &str = "/run";

/// The lock. Dropping the value releases it.
#[derive(Debug)]
pub struct LabLock {
    _file: File,
}

/// Takes the lock. While another process holds it, prints which one and waits.
pub(crate) fn acquire() -> Result<LabLock> {
    let file = File::open(DIRECTORY).with_context(|| format!("cannot open {DIRECTORY}"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {
            eprintln!("waiting for the lab of this machine: {} uses it", describe_holder(&file));
            flock(&file, FlockOperation::LockExclusive).context("cannot lock the lab")?;
        }
        result => result.context("cannot lock the lab")?,
    }
    Ok(LabLock { _file: file })
}

fn describe_holder(file: &File) -> String {
    let found = fstat(file).map_err(io::Error::from).and_then(|stat| Ok((stat, fs::read_to_string("/proc/locks")?)));
    match found.ok().and_then(|(stat, locks)| holder(&locks, &stat)) {
        Some(pid) => format!("process {pid} (`{}`)", process::command_line(pid).join(" ").trim()),
        None => "another process".to_owned(),
    }
}

/// The process that holds the lock on a whole file (proc(5), locks). The lines of processes that
/// wait for it have an arrow before the kind of the lock.
fn holder(locks: &str, file: &Stat) -> Option<u32> {
    let id = format!("{:02x}:{:02x}:{}", major(file.st_dev), minor(file.st_dev), file.st_ino);
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields[..] {
            [_, "FLOCK", _, "WRITE", pid, locked, ..] if locked == id => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found() -> Result<()> {
        // Any file is fine: this program's own exists.
        let file = File::open(std::env::current_exe()?)?;
        let found = || -> Result<Option<u32>> { Ok(holder(&fs::read_to_string("/proc/locks")?, &fstat(&file)?)) };
        assert_eq!(found()?, None);
        flock(&file, FlockOperation::LockExclusive)?;
        assert_eq!(found()?, Some(std::process::id()));
        assert!(describe_holder(&file).contains(&format!("process {}", std::process::id())));
        Ok(())
    }

    #[test]
    fn a_process_that_waits_is_not_the_holder() -> Result<()> {
        let stat = fstat(File::open("/")?)?;
        let id = format!("{:02x}:{:02x}:{}", major(stat.st_dev), minor(stat.st_dev), stat.st_ino);
        let locks = format!(
            "1: POSIX  ADVISORY  WRITE 11 {id} 0 EOF\n\
             2: FLOCK  ADVISORY  WRITE 12 00:01:7 0 EOF\n\
             2: -> FLOCK  ADVISORY  WRITE 13 {id} 0 EOF\n\
             3: FLOCK  ADVISORY  WRITE 14 {id} 0 EOF\n"
        );
        assert_eq!(holder(&locks, &stat), Some(14));
        Ok(())
    }
}
