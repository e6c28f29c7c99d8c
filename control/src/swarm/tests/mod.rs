//! Whole clusters in one process, on loopback addresses of their own: real TLS, real logs on disk,
//! no kernel programs.

mod lab;

mod crash;
mod joining;
mod leading;
mod roles;
mod sessions;
