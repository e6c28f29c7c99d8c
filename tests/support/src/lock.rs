//! The right to have a lab on this machine: one process has it at a time, and who waits for it is told for whom.

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

/// A directory that always exists: a lock on it leaves no file behind.
const PLACE: &str = "/run";

/// The right to have a lab on this machine, for as long as it is held.
#[derive(Debug)]
pub struct LabLock {
    _file: File,
}

/// Takes the lock. Where another process has it, says so and waits.
pub(crate) fn take() -> Result<LabLock> {
    let file = File::open(PLACE).with_context(|| format!("cannot open {PLACE}"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {
            eprintln!("waiting for the lab of this machine: {} has it", holder(&file));
            flock(&file, FlockOperation::LockExclusive).context("cannot lock the lab")?;
        }
        taken => taken.context("cannot lock the lab")?,
    }
    Ok(LabLock { _file: file })
}

/// Who has the lock, in words.
fn holder(file: &File) -> String {
    let found = fstat(file).map_err(io::Error::from).and_then(|stat| Ok((stat, fs::read_to_string("/proc/locks")?)));
    match found.ok().and_then(|(stat, locks)| holder_in(&locks, &stat)) {
        Some(pid) => format!("process {pid} (`{}`)", process::command_line(pid).join(" ").trim()),
        None => "another process".to_owned(),
    }
}

/// The process that has the lock on a whole file (proc(5), locks). Those that wait for it have an arrow before the kind.
fn holder_in(locks: &str, file: &Stat) -> Option<u32> {
    let id = format!("{:02x}:{:02x}:{}", major(file.st_dev), minor(file.st_dev), file.st_ino);
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields[..] {
            [_, "FLOCK", _, "WRITE", pid, of, ..] if of == id => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found() -> Result<()> {
        // Any file will do: this program's own.
        let file = File::open(std::env::current_exe()?)?;
        let found = || -> Result<Option<u32>> { Ok(holder_in(&fs::read_to_string("/proc/locks")?, &fstat(&file)?)) };
        assert_eq!(found()?, None);
        flock(&file, FlockOperation::LockExclusive)?;
        assert_eq!(found()?, Some(std::process::id()));
        assert!(holder(&file).contains(&format!("process {}", std::process::id())));
        Ok(())
    }

    #[test]
    fn who_waits_is_no_holder() -> Result<()> {
        let stat = fstat(File::open("/")?)?;
        let id = format!("{:02x}:{:02x}:{}", major(stat.st_dev), minor(stat.st_dev), stat.st_ino);
        let locks = format!(
            "1: POSIX  ADVISORY  WRITE 11 {id} 0 EOF\n\
             2: FLOCK  ADVISORY  WRITE 12 00:01:7 0 EOF\n\
             2: -> FLOCK  ADVISORY  WRITE 13 {id} 0 EOF\n\
             3: FLOCK  ADVISORY  WRITE 14 {id} 0 EOF\n"
        );
        assert_eq!(holder_in(&locks, &stat), Some(14));
        Ok(())
    }
}
