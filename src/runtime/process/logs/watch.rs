//! Waits for changes of the files in a directory. [`super::reader`] calls it to follow a log.

use std::{io, path::Path};

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use super::super::kernel::proc::readable;

/// An inotify(7) watch on one directory.
#[derive(Debug)]
pub(super) struct DirWatch(AsyncFd<rustix::fd::OwnedFd>);

impl DirWatch {
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, dir, events | inotify::WatchFlags::DELETE)?;
        Ok(Self(readable(fd)?))
    }

    /// Waits for the next change. Cancel-safe.
    pub(super) async fn changed(&self) -> io::Result<()> {
        let mut events = [0; 4096];
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut events)?)) {
                Ok(read) => return read.map(|_| ()),
                Err(_would_block) => {}
            }
        }
    }
}
