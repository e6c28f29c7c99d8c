//! Runs one WireGuard device until its standard input ends. `cargo xtask bench overlay` measures
//! it.
//!
//!     device NAME PRIVATE_KEY PORT MTU WORKERS [PUBLIC_KEY,ENDPOINT,NETWORK,…]...
//!
//! Keys are in hexadecimal. The link is made in the network namespace of the process, and is down.

use std::{
    env,
    error::Error,
    io::{self, Read},
};

use weft_wireguard::{Device, DeviceConfig, PeerConfig};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [name, private_key, port, mtu, workers, peers @ ..] = arguments.as_slice() else {
        return Err("usage: device NAME PRIVATE_KEY PORT MTU WORKERS [PUBLIC_KEY,ENDPOINT,NETWORK,…]...".into());
    };
    let device = Device::open(DeviceConfig {
        name: name.clone(),
        private_key: key(private_key)?,
        port: port.parse()?,
        mtu: mtu.parse()?,
        workers: workers.parse()?,
    })?;
    device.set_peers(&peers.iter().map(|text| peer(text)).collect::<Result<Vec<_>>>()?);
    io::stdin().read_to_end(&mut Vec::new())?;
    for status in device.status() {
        println!("{status:?}");
    }
    Ok(())
}

fn peer(text: &str) -> Result<PeerConfig> {
    let parts: Vec<&str> = text.split(',').collect();
    let [public_key, endpoint, networks @ ..] = parts.as_slice() else {
        return Err(format!("{text}: a peer is PUBLIC_KEY,ENDPOINT,NETWORK,…").into());
    };
    Ok(PeerConfig {
        public_key: key(public_key)?,
        endpoint: Some(endpoint.parse()?),
        allowed_ips: networks.iter().map(|network| network.parse()).collect::<std::result::Result<_, _>>()?,
        keepalive: None,
    })
}

fn key(text: &str) -> Result<[u8; 32]> {
    let mut key = [0; 32];
    if text.len() != 2 * key.len() || !text.is_ascii() {
        return Err(format!("{text}: a key has 64 hexadecimal digits").into());
    }
    for (octet, at) in key.iter_mut().zip((0..).step_by(2)) {
        *octet = u8::from_str_radix(&text[at..at + 2], 16)?;
    }
    Ok(key)
}
