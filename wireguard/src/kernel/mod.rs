//! The system calls of this crate that no crate wraps: the TUN device, and UDP sockets that send
//! and receive batches. The only code with `unsafe`.

pub(crate) mod tun;
pub(crate) mod socket;
