//! Adapts the deadlines of the tests to slow machines.
//!
//! Every deadline in the tests is for a machine of normal speed. [`scaled`] converts it where it is
//! given to a clock or to a socket. On a normal machine that changes nothing. In a virtual machine
//! whose processor is emulated, `cargo xtask vm test` measures the factor first ([`ARGUMENT`]) and
//! passes it in the environment ([`VARIABLE`]).

use std::{
    env,
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

/// The environment variable with the factor, a number of at least 1. Without it, the factor is 1.
pub const VARIABLE: &str = "WEFT_LAB_SLOWDOWN";
/// The argument with which the test program measures and prints the factor of this machine.
pub const ARGUMENT: &str = "lab-slowdown";

/// How many connections one round of the measurement makes.
const CONNECTIONS: u32 = 300;
/// How many rounds are measured. The fastest counts.
const ROUNDS: usize = 3;
/// How long a normal machine needs for one connection: two cores of a server's processor under
/// Linux 6.18, rounded up.
const NORMAL: Duration = Duration::from_micros(100);

static SLOWDOWN: LazyLock<f64> = LazyLock::new(|| match env::var(VARIABLE) {
    Ok(text) => parse(&text).unwrap_or_else(|error| panic!("{VARIABLE}: {error:#}")),
    Err(env::VarError::NotPresent) => 1.0,
    Err(error) => panic!("{VARIABLE}: {error}"),
});

/// How much slower than a normal machine this machine is. At least 1.
pub fn slowdown() -> f64 {
    *SLOWDOWN
}

/// The time that corresponds on this machine to a time on a normal machine.
pub fn scaled(normal: Duration) -> Duration {
    normal.mul_f64(slowdown())
}

/// The time on a normal machine that corresponds to a time on this machine: the inverse of
/// [`scaled`].
pub fn unscaled(actual: Duration) -> Duration {
    actual.div_f64(slowdown())
}

/// Measures and prints the factor, and returns true, if this process was started for that. The
/// program must then end.
pub fn measure_if_requested() -> Result<bool> {
    let is_requested = env::args_os().nth(1).is_some_and(|argument| argument == ARGUMENT);
    if is_requested {
        println!("{:.1}", measure()?);
    }
    Ok(is_requested)
}

/// Measures a fixed piece of work that is like that of the tests: system calls, packets, and
/// switches between threads.
fn measure() -> Result<f64> {
    // The first round also measures how long an emulator takes to translate the code.
    let rounds: io::Result<Vec<Duration>> = (0..ROUNDS).map(|_| connect_repeatedly()).collect();
    let rounds = rounds.context("cannot measure the speed of this machine")?;
    let taken = rounds.into_iter().min().context("there is at least one round")?;
    Ok((taken.as_secs_f64() / (NORMAL * CONNECTIONS).as_secs_f64()).max(1.0))
}

/// Connects to a thread of this process, exchanges one byte, and closes, many times.
fn connect_repeatedly() -> io::Result<Duration> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let addr = listener.local_addr()?;
    let server = thread::spawn(move || {
        (0..CONNECTIONS).try_for_each(|_| {
            let (mut stream, _) = listener.accept()?;
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            stream.write_all(&byte)
        })
    });
    let start = Instant::now();
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(addr)?;
        stream.write_all(&[1])?;
        stream.read_exact(&mut [0])?;
    }
    let taken = start.elapsed();
    server.join().map_err(|_| io::Error::other("the server panicked"))??;
    Ok(taken)
}

fn parse(text: &str) -> Result<f64> {
    let factor: f64 = text.trim().parse().with_context(|| format!("{text:?} is not a number"))?;
    ensure!(factor.is_finite() && factor >= 1.0, "{text} is not a factor of at least 1");
    Ok(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_is_a_number_of_at_least_one() {
        assert_eq!(parse("1").ok(), Some(1.0));
        assert_eq!(parse(" 12.5\n").ok(), Some(12.5));
        for text in ["", "fast", "0.5", "-1", "NaN", "inf"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_measured_factor_can_be_passed_on() -> Result<()> {
        let factor = measure()?;
        assert_eq!(parse(&format!("{factor:.1}"))?.to_bits(), format!("{factor:.1}").parse::<f64>()?.to_bits());
        Ok(())
    }
}
