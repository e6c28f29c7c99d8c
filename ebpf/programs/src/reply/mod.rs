//! Answers that weft itself gives, built from the packet that they answer.

pub mod icmp;
pub mod refuse;
pub mod neigh;
pub mod echo;
