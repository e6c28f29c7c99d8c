//! Tests the effect of decisions in a simulated cluster, whose nodes are slow, fail and return.

mod keys;
mod properties;
mod scenarios;
mod sim;
