//! Starts the WireGuard devices that are compared, one on each side. Their links have no addresses
//! yet.

use std::{
    fmt::Write as _,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use weft_lab::{netns, scaled};

use super::{
    Programs,
    case::{Case, Tunnel},
    network::{self, Side},
};
use crate::bench::{
    peers::{netns_path, network::ip},
    programs::{Runner, Server, configure},
};

/// boringtun's own tool, and the crate that it is in.
pub(super) const BORINGTUN: &str = "boringtun-cli";
/// Where it listens for its configuration.
const SOCKETS: &str = "/var/run/wireguard";
const READY_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// A key pair of X25519, in the forms that the programs take.
struct Keys {
    private: &'static str,
    public: &'static str,
    private_base64: &'static str,
    public_base64: &'static str,
}

/// The private keys are 32 times 1 and 32 times 2.
fn keys(side: Side) -> Keys {
    match side {
        Side::Client => Keys {
            private: "0101010101010101010101010101010101010101010101010101010101010101",
            public: "a4e09292b651c278b9772c569f5fa9bb13d906b46ab68c9df9dc2b4409f8a209",
            private_base64: "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
            public_base64: "pOCSkrZRwni5dyxWn1+puxPZBrRqtoyd+dwrRAn4ogk=",
        },
        Side::Server => Keys {
            private: "0202020202020202020202020202020202020202020202020202020202020202",
            public: "ce8d3ad1ccb633ec7b70c17814a5c76ecd029685050d344745ba05870e587d59",
            private_base64: "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
            public_base64: "zo060cy2M+x7cMF4FKXHbs0CloUFDTRHRboFhw5YfVk=",
        },
    }
}

fn endpoint(tunnel: Tunnel, side: Side) -> String {
    format!("{}:{}", network::address(Case::Raw, side), network::port(tunnel))
}

/// Asks the kernel for a device.
pub(super) fn kernel_has_wireguard() -> Result<bool> {
    let add = ip(Some(network::CLIENT), &["link add wbprobe type wireguard".to_owned()]);
    match add {
        Ok(()) => ip(Some(network::CLIENT), &["link delete wbprobe".to_owned()]).map(|()| true),
        Err(_) => Ok(false),
    }
}

/// Starts a tunnel on both sides. Returns the programs that must run.
pub(super) fn start(runner: &Runner, tunnel: Tunnel, found: &Programs, workers: usize) -> Result<Vec<Server>> {
    let mut programs = Vec::new();
    for side in Side::BOTH {
        match (tunnel, side) {
            (Tunnel::Boringtun, _) | (Tunnel::Mixed, Side::Server) => {
                let program = found.boringtun.as_deref().context("boringtun's tool is left out")?;
                programs.push(start_boringtun(runner, tunnel, side, program, workers)?);
            }
            (Tunnel::UserSpace, _) | (Tunnel::Mixed, Side::Client) => {
                programs.push(start_device(runner, tunnel, side, &found.device, workers)?);
            }
            (Tunnel::Kernel, _) => create_kernel_device(side)?,
        }
    }
    Ok(programs)
}

/// weft's device runs until the program ends: its standard input stays open.
fn start_device(runner: &Runner, tunnel: Tunnel, side: Side, device: &Path, workers: usize) -> Result<Server> {
    let peer = side.other();
    let link = network::link(tunnel, side);
    let mut command = Command::new(device);
    command.args([&link, keys(side).private, &network::port(tunnel).to_string()]);
    command.args([network::TUNNEL_MTU.to_string(), workers.to_string()]);
    let [v4, v6] = network::allowed(tunnel, peer);
    command.arg(format!("{},{},{v4},{v6}", keys(peer).public, endpoint(tunnel, peer)));
    let server = Server::start_with_open_input(&netns_path(side.host()), command)?;
    wait_link(runner, side, &link)?;
    Ok(server)
}

fn start_boringtun(runner: &Runner, tunnel: Tunnel, side: Side, program: &Path, workers: usize) -> Result<Server> {
    let peer = side.other();
    let link = network::link(tunnel, side);
    let mut command = Command::new(program);
    command.args(["--foreground", "--disable-drop-privileges", "--threads", &workers.to_string(), &link]);
    let server = Server::start(&netns_path(side.host()), command, "")?;
    wait_link(runner, side, &link)?;
    let mut request = format!("set=1\nprivate_key={}\nlisten_port={}\n", keys(side).private, network::port(tunnel));
    write!(request, "public_key={}\nendpoint={}\n", keys(peer).public, endpoint(tunnel, peer))?;
    for allowed in network::allowed(tunnel, peer) {
        writeln!(request, "allowed_ip={allowed}")?;
    }
    request.push('\n');
    let path = PathBuf::from(SOCKETS).join(format!("{link}.sock"));
    let mut stream = wait(runner, &format!("{BORINGTUN} does not listen at {}", path.display()), || {
        UnixStream::connect(&path).ok()
    })?;
    stream.set_read_timeout(Some(scaled(READY_TIMEOUT)))?;
    stream.write_all(request.as_bytes())?;
    let mut reply = [0; 64];
    let len = stream.read(&mut reply)?;
    let reply = String::from_utf8_lossy(&reply[..len]);
    ensure!(reply.trim() == "errno=0", "{BORINGTUN} refuses its configuration: {reply}");
    Ok(server)
}

fn create_kernel_device(side: Side) -> Result<()> {
    let (tunnel, peer) = (Tunnel::Kernel, side.other());
    let link = network::link(tunnel, side);
    ip(Some(side.host()), &[format!("link add {link} type wireguard")])?;
    let mut command = Command::new("wg");
    command.args(["set", &link, "listen-port", &network::port(tunnel).to_string()]);
    command.args(["private-key", "/dev/stdin", "peer", keys(peer).public_base64]);
    command.args(["endpoint", &endpoint(tunnel, peer), "allowed-ips", &network::allowed(tunnel, peer).join(",")]);
    configure(&netns_path(side.host()), &mut command, keys(side).private_base64)
}

/// The links of the calling thread's namespace are in this file (proc_net(5)).
fn wait_link(runner: &Runner, side: Side, link: &str) -> Result<()> {
    let path = Path::new("/proc/thread-self/net/dev");
    let names = || netns::within(&netns_path(side.host()), || std::fs::read_to_string(path)).ok()?.ok();
    wait(runner, &format!("there is no link {link}"), || {
        names()?.lines().any(|line| line.trim_start().starts_with(&format!("{link}:"))).then_some(())
    })
}

fn wait<T>(runner: &Runner, problem: &str, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + scaled(READY_TIMEOUT);
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        ensure!(Instant::now() < deadline, "{problem} after {READY_TIMEOUT:?}");
        runner.pause(POLL)?;
    }
}
