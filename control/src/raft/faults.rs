//! Faults of the disk under the log of a daemon in a test: slow syncs, a full disk, and power cuts
//! that lose what was not synced. A test names the directories whose logs have them
//! ([`Disk::under`]) before their daemons start.
//!
//! The file always has the newest content. Beside it, the disk remembers how to undo each write
//! since the last sync. After a power cut the last of these writes are undone, so the file is as it
//! was at some time since then. Disks that reorder and tear writes are in `tests/power.rs`.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use rand::{Rng, rngs::StdRng};
use redb::{Database, DatabaseError, StorageBackend};
use tokio::time::{sleep, timeout};

/// The disks of this process, by the directory of the log. No two daemons share one.
static DISKS: LazyLock<Mutex<BTreeMap<PathBuf, Disk>>> = LazyLock::new(Mutex::default);

/// A disk. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// How long each sync takes.
    sync: Duration,
    /// Nothing is read or written while the power is off.
    off: bool,
    /// While the disk is full, only what was written before can be overwritten.
    full: bool,
    /// After how many more writes and syncs the power is cut.
    left: Option<usize>,
    /// The file of the log. Empty until it was opened.
    log: PathBuf,
    /// How to undo the writes since the last sync, the last write last.
    undo: Vec<Undo>,
}

#[derive(Debug)]
enum Undo {
    Write(u64, Vec<u8>),
    Length(u64),
}

impl Disk {
    /// The disk of the logs in this directory, with faults from now on.
    pub(crate) fn under(dir: &Path) -> Self {
        DISKS.lock().unwrap_or_else(PoisonError::into_inner).entry(dir.to_owned()).or_default().clone()
    }

    pub(crate) fn set_sync_time(&self, sync: Duration) {
        self.lock().sync = sync;
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// Cuts the power after so many writes and syncs, or after 200 ms if there are fewer. Then
    /// every access fails.
    pub(crate) async fn cut_power(&self, left: usize) {
        self.lock().left = Some(left);
        let changes = async {
            while !self.lock().off {
                sleep(Duration::from_millis(1)).await;
            }
        };
        // Without a leader nothing is written.
        let _changed = timeout(Duration::from_millis(200), changes).await;
        self.lock().off = true;
    }

    /// Turns the power on again. The log, which nothing has open, has lost some of the last writes
    /// that were not synced. Returns how many.
    pub(crate) fn restore_power(&self, rng: &mut StdRng) -> io::Result<usize> {
        let mut state = self.lock();
        (state.off, state.left) = (false, None);
        let count = rng.random_range(0..=state.undo.len());
        let kept = state.undo.len() - count;
        let file = OpenOptions::new().write(true).open(&state.log)?;
        for undo in state.undo.drain(kept..).rev() {
            match undo {
                Undo::Write(offset, content) => file.write_all_at(&content, offset)?,
                Undo::Length(length) => file.set_len(length)?,
            }
        }
        state.undo.clear();
        file.sync_data()?;
        Ok(count)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, or an error if the power is off.
    fn powered(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.lock();
        if state.off { Err(io::Error::other("the power is off")) } else { Ok(state) }
    }

    /// The same before a write or a sync, which the power may be cut at.
    fn writing(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.powered()?;
        if let Some(left) = &mut state.left {
            *left = left.saturating_sub(1);
            state.off = *left == 0;
        }
        drop(state);
        self.powered()
    }
}

/// Opens or creates the file of a log, on the disk of its directory if that has faults.
pub(super) fn open(path: &Path) -> Result<Database, DatabaseError> {
    let known = |dir: &Path| DISKS.lock().unwrap_or_else(PoisonError::into_inner).get(dir).cloned();
    let Some(disk) = path.parent().and_then(known) else {
        return Database::create(path);
    };
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    // A new log gets its name when it is complete.
    disk.lock().log =
        if path.extension().is_some_and(|name| name == "new") { path.with_extension("") } else { path.to_owned() };
    Database::builder().create_with_backend(FaultyFile { file, disk })
}

/// A file on such a disk.
#[derive(Debug)]
struct FaultyFile {
    file: File,
    disk: Disk,
}

impl FaultyFile {
    /// Remembers the content from `offset` on, at most `len` octets.
    fn remember(&self, state: &mut State, offset: u64, len: u64) -> io::Result<()> {
        let end = self.file.metadata()?.len();
        let mut content = vec![0; end.saturating_sub(offset).min(len) as usize];
        self.file.read_exact_at(&mut content, offset)?;
        state.undo.push(Undo::Write(offset, content));
        Ok(())
    }
}

impl FaultyFile {
    /// Whether nothing but zeros was written there: a file system stores no such blocks.
    fn is_hole(&self, offset: u64, len: usize) -> io::Result<bool> {
        let mut content = vec![0; len];
        let read = self.file.read_at(&mut content, offset)?;
        Ok(content[..read].iter().all(|octet| *octet == 0))
    }
}

impl StorageBackend for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        let _powered = self.disk.powered()?;
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let _powered = self.disk.powered()?;
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.writing()?;
        let former = self.file.metadata()?.len();
        self.remember(&mut state, len, former.saturating_sub(len))?;
        state.undo.push(Undo::Length(former));
        self.file.set_len(len)
    }

    #[expect(clippy::disallowed_methods, reason = "a slow disk takes time, and redb waits in this thread")]
    fn sync_data(&self) -> io::Result<()> {
        let sync = self.disk.writing()?.sync;
        thread::sleep(sync);
        // What was written meanwhile counts as synced too: a disk may write more than it must.
        let mut state = self.disk.powered()?;
        self.file.sync_data()?;
        state.undo.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.writing()?;
        let former = self.file.metadata()?.len();
        if state.full && self.is_hole(offset, data.len())? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if offset + data.len() as u64 > former {
            state.undo.push(Undo::Length(former));
        }
        self.remember(&mut state, offset, data.len() as u64)?;
        self.file.write_all_at(data, offset)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn written(disk: &Disk, path: &Path) -> FaultyFile {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).expect("a file");
        let file = FaultyFile { file, disk: disk.clone() };
        file.write(0, b"synced, and long").expect("written");
        file.sync_data().expect("synced");
        file
    }

    #[test]
    fn a_power_cut_loses_the_last_writes_that_were_not_synced_and_no_others() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("file");
        let disk = Disk::default();
        let states = ["synced, and long", "Synced, and long", "Synced", "SynCED", "SynCED\0\0", "SynCED\0\0\0more"];
        let mut left = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let file = written(&disk, &path);
            file.write(0, b"S").expect("written");
            file.set_len(6).expect("cut off");
            file.write(3, b"CED").expect("written");
            file.set_len(8).expect("extended");
            file.write(9, b"more").expect("written");
            disk.lock().off = true;
            assert!(file.write(0, b"x").is_err() && file.sync_data().is_err() && file.len().is_err());
            disk.lock().log = path.clone();
            disk.restore_power(&mut StdRng::seed_from_u64(seed)).expect("the file exists");
            left.insert(std::fs::read_to_string(&path).expect("a readable file"));
        }
        for state in states {
            assert!(left.remove(state), "{state:?} is never left");
        }
        // A change of the length and the octets that it cuts off are two writes of the disk.
        assert!(left.iter().all(|state| state.starts_with("Syn")), "{left:?}");
    }
}
