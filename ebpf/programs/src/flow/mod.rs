//! Flows: how they are found, made and followed.

pub mod pick;
pub mod fragments;
pub mod insert;
pub mod lookup;
pub mod apply;
pub mod published;
pub mod vip;
pub mod egress;
pub mod icmp_error;
