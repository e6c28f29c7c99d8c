//! The program that emulates the machine: qemu of this host, which is installed if it is missing.
//! Where apt could install it only by removing another package, for example because the host has a
//! newer version of a part of qemu, it is unpacked into `target/vm` instead. `vm` calls it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::image;
use crate::{
    apt,
    machine::{self, Tool},
    setup,
    ui::{Step, Ui},
};

const QEMU: Tool = Tool { program: "qemu-system-x86_64", package: "qemu-system-x86" };
/// Where its packages have the program, the libraries, and the firmware.
const PROGRAM: &str = "usr/bin/qemu-system-x86_64";
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// A qemu that can be run.
#[derive(Debug)]
pub(super) enum Emulator {
    Installed(PathBuf),
    /// Its packages are unpacked in this folder.
    Unpacked(PathBuf),
}

impl Emulator {
    /// Finds qemu, and installs or unpacks it first if there is none.
    pub(super) fn prepare(ui: &Ui) -> Result<Self> {
        if let Some(found) = Self::find() {
            return Ok(found);
        }
        if apt::is_available() {
            ui.step("update the lists of packages", apt::update)?;
            if apt::install_conflict(&[QEMU.package])?.is_some() {
                return ui.step(&format!("unpack {}", QEMU.package), |step| unpack(step, &folder()));
            }
        }
        setup::packages(ui, &[QEMU])?;
        Self::find().context("the package of qemu has no program for this processor")
    }

    fn find() -> Option<Self> {
        let unpacked = || folder().join(PROGRAM).is_file().then(|| Self::Unpacked(folder()));
        machine::find(QEMU.program).map(Self::Installed).or_else(unpacked)
    }

    /// A command without the arguments that describe the machine.
    pub(super) fn command(&self) -> Command {
        match self {
            Self::Installed(program) => Command::new(program),
            Self::Unpacked(folder) => {
                let mut command = Command::new(folder.join(PROGRAM));
                let libraries = LIBRARIES.map(|path| folder.join(path).display().to_string());
                command.env("LD_LIBRARY_PATH", libraries.join(":"));
                for path in FIRMWARE {
                    command.arg("-L").arg(folder.join(path));
                }
                command
            }
        }
    }
}

fn folder() -> PathBuf {
    image::folder().join("qemu")
}

fn unpack(step: &Step, folder: &Path) -> Result<Emulator> {
    let new = folder.with_extension("new");
    let packages = new.join("packages");
    // An interrupted run leaves its files.
    image::remove_folder(&new)?;
    fs::create_dir_all(&packages)?;
    apt::download(step, QEMU.package, &packages)?;
    for file in fs::read_dir(&packages)? {
        step.run(Command::new("dpkg-deb").arg("--extract").arg(file?.path()).arg(&new))?;
    }
    fs::remove_dir_all(&packages)?;
    ensure!(new.join(PROGRAM).is_file(), "{} has no file {PROGRAM}", QEMU.package);
    image::remove_folder(folder)?;
    fs::rename(&new, folder).context("cannot move qemu to its folder")?;
    Ok(Emulator::Unpacked(folder.to_owned()))
}
