//! Tests what decisions achieve, in a simulated cluster whose nodes are slow, crash and return.

mod properties;
mod scenarios;
mod sim;
