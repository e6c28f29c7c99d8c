//! Runs the virtual machine: starts qemu, prints what the command in the machine prints, and ends
//! qemu after a deadline. `vm` calls it.
//!
//! The machine has three serial ports. The first is the kernel's console, which goes to a file. The
//! second has the output of the command, and goes to qemu's standard output. The third has the exit
//! code of the command, and goes to a file.
//!
//! Threads: one reads the output; those of [`crate::interrupt`].

use std::{
    fs,
    io::{BufRead, BufReader, PipeReader, Write},
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::image::Image;
use crate::interrupt::{self, End, SignalWatch};

const PROCESSORS: usize = 2;
const MEMORY: &str = "4G";
/// `panic=-1` makes the kernel reboot at once after a panic; with `-no-reboot` qemu then ends.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 panic=-1 quiet";
/// How many lines of the console an error contains.
const CONSOLE_LINES: usize = 20;

/// How a command in the machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finished {
    pub(super) exit_code: i32,
    /// Everything that the command printed.
    pub(super) output: String,
}

/// Boots the machine and returns when it is off. `qemu` has no arguments that describe it yet.
///
/// # Errors
/// When the machine ends without running the command to its end, or is still running after the
/// deadline, or this process gets a signal. Then qemu was killed.
pub(super) fn run(
    mut qemu: Command,
    image: &Image,
    payload: &Path,
    folder: &Path,
    deadline: Duration,
) -> Result<Finished> {
    let (console, exit_code) = (folder.join("console.log"), folder.join("exit-code"));
    let (reader, writer) = std::io::pipe().context("cannot create a pipe")?;
    describe(&mut qemu, image, payload, &console, &exit_code);
    qemu.stdout(writer);
    let watch = SignalWatch::new(&interrupt::SIGNALS)?;
    let output = thread::spawn(move || print_lines(reader));
    let end = watch.run_for(&mut qemu, deadline);
    // Closes this process's end of the pipe. The thread ends when qemu has closed the other.
    drop(qemu);
    let output = output.join().ok().context("the thread that reads the output panicked")??;
    let end = match end? {
        Some(End::Exited(status)) => {
            match fs::read_to_string(&exit_code).ok().and_then(|code| code.trim().parse().ok()) {
                Some(exit_code) => return Ok(Finished { exit_code, output }),
                None => format!("ended ({status}) before its command"),
            }
        }
        Some(End::Interrupted) => bail!("interrupted"),
        None => format!("was still running after {deadline:?}"),
    };
    bail!("the virtual machine {end}. The end of its console:\n{}", tail(&console));
}

/// Adds the arguments that describe the machine.
fn describe(qemu: &mut Command, image: &Image, payload: &Path, console: &Path, exit_code: &Path) {
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        // Emulation in software: KVM is not available in most containers and cloud machines.
        .args(["-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-smp", &PROCESSORS.to_string(), "-m", MEMORY])
        .arg("-kernel")
        .arg(image.kernel())
        .arg("-initrd")
        .arg(image.initramfs())
        .args(["-append", KERNEL_ARGUMENTS])
        // Writes go to a temporary file, which qemu removes.
        .args(["-drive", &format!("file={},format=raw,if=virtio,snapshot=on", escape(&image.root()))])
        .args(["-drive", &format!("file={},format=raw,if=virtio,readonly=on", escape(payload))])
        .args(["-chardev", &format!("file,id=console,path={}", escape(console)), "-serial", "chardev:console"])
        .args(["-serial", "stdio"])
        .args(["-chardev", &format!("file,id=code,path={}", escape(exit_code)), "-serial", "chardev:code"]);
}

/// A path as a value of a qemu option: a comma is doubled.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Prints each line as it comes. Returns all of them.
fn print_lines(pipe: PipeReader) -> Result<String> {
    let mut pipe = BufReader::new(pipe);
    let (mut output, mut line) = (String::new(), Vec::new());
    let mut stdout = std::io::stdout();
    while pipe.read_until(b'\n', &mut line)? > 0 {
        stdout.write_all(&line)?;
        output.push_str(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok(output)
}

fn tail(console: &Path) -> String {
    let text = fs::read_to_string(console).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_paths_are_escaped() {
        assert_eq!(escape(Path::new("/a,b/c")), "/a,,b/c");
    }
}
