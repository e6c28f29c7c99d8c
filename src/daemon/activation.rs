//! The socket of the network driver, if the service manager has opened it (systemd.socket(5)).
//!
//! Such a socket is there also while no daemon runs: an engine that asks for the driver waits for
//! the answer of the next daemon. Without it the engine tries again for 15 s at each container and
//! each network, and then goes on without the driver.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use listenfd::ListenFd;

/// The permissions of others than the owner.
const OTHERS: u32 = 0o077;

/// Takes over the socket that the service manager has opened at this path, if it has.
///
/// # Errors
/// If it has opened another socket, which weft would not serve.
pub(super) fn take_socket(path: &Path) -> Result<Option<UnixListener>> {
    let mut inherited = ListenFd::from_env();
    let mut taken = None;
    for index in 0..inherited.len() {
        let listener = inherited.take_unix_listener(index).with_context(|| wrong("another kind of socket", path))?;
        taken = listener.map(|listener| check(listener, path)).transpose()?;
    }
    Ok(taken)
}

fn check(listener: UnixListener, path: &Path) -> Result<UnixListener> {
    let addr = listener.local_addr().context("cannot read the address of the service manager's socket")?;
    let found = addr.as_pathname();
    let shown = found.map_or_else(|| "a socket without a path".to_owned(), |found| found.display().to_string());
    ensure!(found == Some(path), wrong(&shown, path));
    let mode = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.permissions().mode();
    ensure!(
        mode & OTHERS == 0,
        "other users than root may connect to {}, which moves containers between networks: use SocketMode=0600 in \
         the socket unit",
        path.display()
    );
    Ok(listener)
}

fn wrong(found: &str, path: &Path) -> String {
    format!(
        "the service manager passes {found}, and weft takes only the socket of its network driver: use \
         ListenStream={} in the socket unit",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_socket_of_the_network_driver_is_taken() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, other) = (dir.path().join("weft.sock"), dir.path().join("other.sock"));
        let bind = |path| UnixListener::bind(path).expect("a socket");
        let own = bind(&path);
        let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("permissions");
        mode(0o660);
        let refused = check(own.try_clone().expect("a socket"), &path).expect_err("open to a group").to_string();
        assert!(refused.contains("SocketMode=0600"), "{refused}");
        mode(0o600);
        check(own, &path).expect("its own socket");
        let refused = check(bind(&other), &path).expect_err("another socket").to_string();
        for part in ["passes", "other.sock", "ListenStream=", "weft.sock"] {
            assert!(refused.contains(part), "{refused}");
        }
    }
}
