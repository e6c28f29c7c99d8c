//! The second disk of the virtual machine: what one run needs. It has the binaries of the tree, the
//! machine's first program (`init.sh`), and the command that the machine runs.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::image;
use crate::ui::Ui;

/// The machine's first program.
const INIT: &str = include_str!("init.sh");
/// The modules that weft and the lab need. udev would load most of them when they are used first;
/// the machine has no udev.
const MODULES: &str = "bridge tun veth vxlan wireguard";

#[derive(Debug)]
pub(super) struct Payload<'a> {
    /// The `weft` binary. In the machine it is at the same path, because the tests contain it.
    pub(super) weft: &'a Path,
    /// Other binaries, with their names in the machine. They are in its PATH.
    pub(super) programs: &'a [(&'a str, &'a Path)],
    /// Lines for sh.
    pub(super) command: &'a str,
}

impl Payload<'_> {
    /// Writes the disk into a folder, and returns its path.
    pub(super) fn write(&self, ui: &Ui, folder: &Path) -> Result<PathBuf> {
        let files = folder.join("payload");
        fs::create_dir(&files)?;
        let settings = settings(self.weft.parent().context("the binary is in a folder")?)?;
        fs::write(files.join("settings"), settings)?;
        fs::write(files.join("command"), self.command)?;
        let init = files.join("init");
        fs::write(&init, INIT)?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
        let disk = folder.join("payload.img");
        ui.step("copy the binaries", |step| {
            for (name, file) in self.programs.iter().chain([&("weft", self.weft)]) {
                // Debug information is three quarters of a binary.
                step.run(Command::new("strip").arg("-o").arg(files.join(name)).arg(file))?;
            }
            image::make_disk(step, &files, &disk, 0)
        })?;
        Ok(disk)
    }
}

/// Variables of `init.sh`.
fn settings(folder: &Path) -> Result<String> {
    let folder = folder.to_str().context("the path of the binary is not UTF-8")?;
    let folder = shlex::try_quote(folder).context("the path of the binary cannot be quoted")?;
    Ok(format!("MODULES='{MODULES}'\nFOLDER={folder}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_the_binary_may_have_any_name() -> Result<()> {
        let settings = settings(Path::new("/home/a user's/target"))?;
        let script = format!("{settings}printf %s \"$FOLDER\"");
        let output = Command::new("sh").args(["-c", &script]).output()?;
        assert_eq!(String::from_utf8_lossy(&output.stdout), "/home/a user's/target");
        Ok(())
    }
}
