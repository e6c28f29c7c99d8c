//! Whole clusters in one process. Each daemon has a loopback address and a directory of its own,
//! real TLS and a real log on the disk; nothing touches the kernel's network configuration.

mod fixture;

mod bounds;
mod callers;
mod crash;
mod deposed;
mod digests;
mod disasters;
mod expiry;
mod failover;
mod histories;
mod joining;
mod locking;
mod moving;
mod plans;
mod proposals;
mod quorum;
mod rates;
mod roles;
mod rotation;
mod sessions;
mod sim;
mod stack;
