//! System calls that no crate wraps. [`crate::tun`] calls it. The only code of this crate that may
//! be unsafe.

use std::{ffi::c_int, fs::File, io};

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `struct ifreq` (linux/if.h) as `TUNSETIFF` uses it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    _pad: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40);

/// `TUNSETIFF`, `IFF_TUN` and `IFF_NO_PI` (linux/if_tun.h).
const TUNSETIFF: Opcode = opcode::write::<c_int>(b'T', 202);
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;

/// Creates a tun device in the calling thread's network namespace. Reading the file returns one IP
/// packet that the device sends, and writing lets the device receive one. The device exists until
/// the file is closed.
#[expect(unsafe_code, reason = "no crate wraps TUNSETIFF")]
pub(crate) fn create_tun(name: &str) -> io::Result<File> {
    let mut request = InterfaceRequest { name: [0; 16], flags: IFF_TUN | IFF_NO_PI, _pad: [0; 22] };
    if name.len() >= request.name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is too long for a device")));
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: `TUNSETIFF` reads and writes a `struct ifreq`, whose layout `InterfaceRequest` has.
    unsafe { ioctl(&file, Updater::<TUNSETIFF, InterfaceRequest>::new(&mut request)) }?;
    Ok(file)
}
