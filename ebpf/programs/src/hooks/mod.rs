//! The programs, by the hook that the kernel runs them at.

pub mod uplink_in;
pub mod tunnel_in;
pub mod task_out;
pub mod sock;
