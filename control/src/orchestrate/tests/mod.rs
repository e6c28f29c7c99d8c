//! What decisions must bring about, on simulated nodes that are slow, crash and come back.

mod properties;
mod scenarios;
mod sim;
