//! The disk that the virtual machine boots from: a root file system of Debian with the modules of
//! its kernel, and the kernel and initramfs that mount it. `vm` calls it.
//!
//! An image is built once and kept in `target/vm/<kernel>`. It is rebuilt when this file or the
//! release changes. The machine never writes to it, so several machines may use it at a time.
//! Nothing of it is installed on the host.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::kernel::Kernel;
use crate::{
    cargo,
    ui::{Step, Ui},
};

/// The packages of the root file system, beside the essential ones: the programs of the lab
/// (`setup`) and of `bench overlay`, kmod for modules, and busybox for the initramfs.
const PACKAGES: &str =
    "busybox-static,curl,iperf3,iproute2,iputils-ping,kmod,libc-bin,unbound,util-linux,wireguard-tools,wrk";
/// The package that depends on the release's kernel.
const KERNEL_PACKAGE: &str = "linux-image-amd64";
/// The modules that mount the disks. Debian's kernel has no driver for a disk built in.
const DISK_MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];
/// The space in the root file system beside its files, in KiB. Blocks that are never written take
/// no space on the host.
const FREE_KIB: u64 = 1 << 20;

/// The first program of the initramfs, after the lines that load the modules. A module that cannot
/// be loaded (for example for an instruction set that the processor lacks) may have an
/// alternative: if a disk cannot be mounted, this program ends, and the kernel panics.
const MOUNT: &str = "\
busybox mount -t ext4 /dev/vda /root
busybox mkdir -p /root/payload
busybox mount -t ext4 -o ro /dev/vdb /root/payload
busybox mount -o move /dev /root/dev
exec busybox switch_root /root /payload/init
";

/// The files of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    folder: PathBuf,
}

impl Image {
    pub(super) fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    pub(super) fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs")
    }

    /// The root file system: an ext4 file system without a partition table.
    pub(super) fn root(&self) -> PathBuf {
        self.folder.join("root.img")
    }

    /// What the image was built from.
    fn recipe(&self) -> PathBuf {
        self.folder.join("recipe")
    }
}

/// The folder of everything that the virtual machines use.
pub(super) fn folder() -> PathBuf {
    cargo::root().join("target/vm")
}

/// Returns the image of a kernel, and builds it first if there is none or its recipe has changed.
pub(super) fn prepare(ui: &Ui, kernel: Kernel) -> Result<Image> {
    let image = Image { folder: folder().join(kernel.to_string()) };
    let recipe = format!("{}\n{}", kernel.release(), include_str!("image.rs"));
    fs::create_dir_all(folder())?;
    // Another process may be building the same image.
    let lock = File::create(folder().join("lock"))?;
    lock.lock().context("cannot lock the folder of the images")?;
    if fs::read_to_string(image.recipe()).is_ok_and(|built| built == recipe) {
        return Ok(image);
    }
    let new = Image { folder: folder().join(format!("{kernel}.new")) };
    let name = format!("build an image of Debian {} with its kernel {kernel}", kernel.release());
    ui.step(&name, |step| build(step, kernel, &recipe, &new))?;
    // A machine that uses the old image has its files open, and continues with them.
    remove_folder(&image.folder)?;
    fs::rename(&new.folder, &image.folder).context("cannot move the image to its folder")?;
    Ok(image)
}

fn build(step: &Step, kernel: Kernel, recipe: &str, new: &Image) -> Result<()> {
    let root = new.folder.join("root");
    // An interrupted build leaves its files.
    remove_folder(&new.folder)?;
    fs::create_dir(&new.folder)?;
    step.run(&mut debootstrap(kernel, &root))?;
    let version = add_kernel(step, &root, new)?;
    ensure!(kernel.includes(&version), "Debian {} has the kernel {version}, not {kernel}", kernel.release());
    make_initramfs(step, &root, &version, new)?;
    configure(&root)?;
    clean(&root)?;
    make_disk(step, &root, &new.root(), FREE_KIB)?;
    remove_folder(&root)?;
    fs::write(new.recipe(), recipe)?;
    Ok(())
}

/// Removes a folder, if it exists.
pub(super) fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// In a mount namespace of its own: debootstrap mounts /proc in the new root, and an interrupted
/// one leaves it mounted.
fn debootstrap(kernel: Kernel, root: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "debootstrap", "--variant=minbase", "--arch=amd64"]);
    command.arg(format!("--include={PACKAGES}")).arg(kernel.release()).arg(root);
    command
}

/// Downloads the release's kernel, and unpacks its modules into the root file system. It is not
/// installed, because then its scripts would build an initramfs that boots much slower than ours.
/// Returns the version of the kernel.
fn add_kernel(step: &Step, root: &Path, image: &Image) -> Result<String> {
    let packages = root.join("kernel");
    fs::create_dir(&packages)?;
    step.run(inside(root, "apt-get").args(["--quiet", "update"]))?;
    let depends = read(inside(root, "apt-cache").args(["depends", KERNEL_PACKAGE]))?;
    let package = kernel_package(&depends).with_context(|| format!("{KERNEL_PACKAGE} depends on no kernel"))?;
    // apt warns that it downloads as root, unless its own user may write to the folder.
    let download = format!("cd /kernel && apt-get --quiet --option APT::Sandbox::User=root download {package}");
    step.run(inside(root, "sh").args(["-c", &download]))?;
    let file = only_entry(&packages)?;
    // Not into the root itself: dpkg-deb would replace the link /lib by a folder.
    let unpacked = packages.join("unpacked");
    step.run(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(&unpacked))?;
    // Some releases have the modules in /usr/lib.
    let modules = [unpacked.join("lib/modules"), unpacked.join("usr/lib/modules")];
    let modules = modules.iter().find(|folder| folder.is_dir()).context("the kernel's package has no modules")?;
    let modules = only_entry(modules)?;
    let version = modules.file_name().and_then(|name| name.to_str()).context("a kernel has a version")?.to_owned();
    fs::create_dir_all(root.join("usr/lib/modules"))?;
    fs::rename(&modules, root.join("usr/lib/modules").join(&version))?;
    fs::copy(unpacked.join(format!("boot/vmlinuz-{version}")), image.kernel())?;
    fs::remove_dir_all(&packages)?;
    step.run(inside(root, "depmod").arg(&version))?;
    Ok(version)
}

/// The first package that `apt-cache depends` lists.
fn kernel_package(depends: &str) -> Option<&str> {
    depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "))
}

/// Writes a compressed archive with busybox, the disks' modules and a script that mounts the disks.
fn make_initramfs(step: &Step, root: &Path, version: &str, image: &Image) -> Result<()> {
    let folder = root.join("initramfs");
    for name in ["bin", "dev", "modules", "root"] {
        fs::create_dir_all(folder.join(name))?;
    }
    let busybox = root.join("bin/busybox");
    fs::copy(&busybox, folder.join("bin/busybox"))?;
    let depends =
        read(inside(root, "modprobe").args(["--set-version", version, "--show-depends", "--all"]).args(DISK_MODULES))?;
    let mut script = "#!/bin/busybox sh\nexport PATH=/bin\nbusybox mount -t devtmpfs devtmpfs /dev\n".to_owned();
    for module in modules_in_order(&depends) {
        let source = root.join(module.trim_start_matches('/'));
        let name = Path::new(module).file_name().and_then(|name| name.to_str()).context("a module has a name")?;
        fs::copy(&source, folder.join("modules").join(name))?;
        // busybox decompresses nothing that it loads.
        let name = match name.strip_suffix(".xz") {
            None => name,
            Some(short) => {
                step.run(inside(root, "busybox").arg("unxz").arg(Path::new("/initramfs/modules").join(name)))?;
                short
            }
        };
        script += &format!("busybox insmod /modules/{name}\n");
    }
    fs::write(folder.join("init"), script + MOUNT)?;
    let pack = "chmod +x init && find . | busybox cpio -o -H newc | gzip --fast >/initramfs.gz";
    step.run(inside(root, "sh").args(["-c", &format!("cd /initramfs && {pack}")]))?;
    let packed = root.join("initramfs.gz");
    fs::copy(&packed, image.initramfs())?;
    fs::remove_file(&packed)?;
    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Reads `modprobe --show-depends`: a line `insmod <file> <options>` for each module, in the order
/// in which they must be loaded. A module that several others need is listed several times.
fn modules_in_order(depends: &str) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    let files = depends.lines().filter_map(|line| line.strip_prefix("insmod ")?.split_whitespace().next());
    files.filter(|file| seen.insert(*file)).collect()
}

/// Writes what the installer of Debian writes, and debootstrap does not: tasks with hosts of their
/// own get a copy of this file, and it is mounted where it is.
fn configure(root: &Path) -> Result<()> {
    fs::write(root.join("etc/hosts"), "127.0.0.1\tlocalhost\n::1\tlocalhost\n").context("cannot write /etc/hosts")
}

/// Removes what apt has downloaded.
fn clean(root: &Path) -> Result<()> {
    for folder in ["var/cache/apt", "var/lib/apt/lists"] {
        fs::remove_dir_all(root.join(folder))?;
        fs::create_dir(root.join(folder))?;
    }
    Ok(())
}

/// Writes the files of a folder into an ext4 file system of that size and some more.
pub(super) fn make_disk(step: &Step, files: &Path, disk: &Path, free_kib: u64) -> Result<()> {
    let size = read(Command::new("du").args(["--summarize", "--block-size=1K"]).arg(files))?;
    let size: u64 = size.split_whitespace().next().context("du prints a size")?.parse()?;
    // A quarter for the file system's own tables.
    let size = size + size / 4 + free_kib;
    let mut command = Command::new("mke2fs");
    // Without a journal: the disk is written once, and a machine that ends keeps nothing.
    command.args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(files).arg(disk).arg(format!("{size}k"));
    step.run(&mut command)
}

/// A program of the new root file system, which runs inside of it.
fn inside(root: &Path, program: &str) -> Command {
    let mut command = Command::new("chroot");
    command.arg(root).arg(program);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
    command
}

/// The standard output of a program.
///
/// # Errors
/// When the program fails: then the error contains its standard error.
fn read(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn only_entry(folder: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(folder)?;
    let entry = entries.next().with_context(|| format!("{} is empty", folder.display()))??;
    ensure!(entries.next().is_none(), "{} has more than one entry", folder.display());
    Ok(entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_package_is_read_from_its_dependencies() {
        let depends = "linux-image-amd64\n  Depends: linux-image-6.1.0-50-amd64\n  Conflicts: other\n";
        assert_eq!(kernel_package(depends), Some("linux-image-6.1.0-50-amd64"));
        assert_eq!(kernel_package("linux-image-amd64\n"), None);
    }

    #[test]
    fn each_module_is_loaded_once_and_after_what_it_needs() {
        let depends = "insmod /lib/virtio.ko \ninsmod /lib/virtio_pci.ko force_legacy=1\nbuiltin crc16\n\
                       insmod /lib/virtio.ko \ninsmod /lib/virtio_blk.ko \n";
        assert_eq!(modules_in_order(depends), ["/lib/virtio.ko", "/lib/virtio_pci.ko", "/lib/virtio_blk.ko"]);
    }
}
