//! Chooses the address that this node advertises, at which other nodes reach it. `init` and `join`
//! call this module, and `moved`, which looks for the address of a machine that has another one.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};

use crate::swarm::{error::SwarmError, types::LocalAddrs};

/// Asks the kernel.
#[derive(Debug, Clone, Copy)]
pub struct KernelAddrs;

impl LocalAddrs for KernelAddrs {
    fn addrs(&self) -> io::Result<Vec<(IpAddr, String)>> {
        let links = getifaddrs()?;
        let mut found: Vec<(IpAddr, String)> = Vec::new();
        for link in links {
            if !link.flags.contains(InterfaceFlags::IFF_UP) || link.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
                continue;
            }
            let Some(addr) = link.address else { continue };
            let v4 = addr.as_sockaddr_in().map(|a| IpAddr::V4(a.ip())).filter(|ip| !is_link_local(ip));
            let v6 = addr.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())).filter(|ip| !is_link_local(ip));
            if let Some(ip) = v4.or(v6) {
                found.push((ip, link.interface_name));
            }
        }
        Ok(found)
    }
}

/// The address to advertise: the requested one, or the IP address of `listen_addr`, or this
/// machine's only global address.
///
/// # Errors
/// [`SwarmError::UnusableAdvertiseAddr`], or [`SwarmError::NoAdvertiseAddr`] if the machine has no
/// global address or several.
pub(super) fn choose(requested: Option<IpAddr>, listen_addr: SocketAddr) -> Result<IpAddr, SwarmError> {
    match given(requested, listen_addr)? {
        Some(addr) => Ok(addr),
        None => only_global_addr(),
    }
}

/// The requested address, or the IP address of `listen_addr`. `None` if there is neither.
///
/// # Errors
/// [`SwarmError::UnusableAdvertiseAddr`].
pub(super) fn given(requested: Option<IpAddr>, listen_addr: SocketAddr) -> Result<Option<IpAddr>, SwarmError> {
    let listens_on = Some(listen_addr.ip()).filter(|ip| !ip.is_unspecified());
    requested.or(listens_on).map(check).transpose()
}

/// # Errors
/// [`SwarmError::UnusableAdvertiseAddr`] if the address cannot be the address of a node.
pub(super) fn check(addr: IpAddr) -> Result<IpAddr, SwarmError> {
    if addr.is_unspecified() || addr.is_multicast() {
        Err(SwarmError::UnusableAdvertiseAddr { addr })
    } else {
        Ok(addr)
    }
}

/// This machine's address, if there is only one candidate: one IPv4 address on links that are up,
/// or if there is no IPv4 address, one IPv6 address.
fn only_global_addr() -> Result<IpAddr, SwarmError> {
    let found = KernelAddrs.addrs().map_err(|e| SwarmError::NoAdvertiseAddr { found: e.to_string() })?;
    only_candidate(&found)
}

fn only_candidate(found: &[(IpAddr, String)]) -> Result<IpAddr, SwarmError> {
    let of = |v4: bool| found.iter().filter(move |(ip, _)| ip.is_ipv4() == v4).collect::<Vec<_>>();
    let candidates = if of(true).is_empty() { of(false) } else { of(true) };
    match candidates.as_slice() {
        [] => Err(SwarmError::NoAdvertiseAddr { found: "this machine has no global address".to_owned() }),
        [(ip, _)] => Ok(*ip),
        several => {
            let list: Vec<_> = several.iter().map(|(ip, link)| format!("{ip} on {link}")).collect();
            let found = format!("this machine has several: {}", list.join(", "));
            Err(SwarmError::NoAdvertiseAddr { found })
        }
    }
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chooses_an_address_only_if_there_is_one_candidate() {
        let on = |ip: &str, link: &str| (ip.parse::<IpAddr>().expect("an address"), link.to_owned());
        let chosen = only_candidate(&[on("192.0.2.1", "eth0"), on("2001:db8::1", "eth0")]).expect("the IPv4 address");
        assert_eq!(chosen, "192.0.2.1".parse::<IpAddr>().expect("an address"));
        assert!(only_candidate(&[on("2001:db8::1", "eth0")]).expect("the IPv6 address").is_ipv6());
        let two = [on("192.0.2.1", "eth0"), on("198.51.100.1", "eth1")];
        let error = only_candidate(&two).expect_err("two candidates").to_string();
        assert!(error.contains("192.0.2.1 on eth0, 198.51.100.1 on eth1"), "{error}");
        assert!(error.contains("--advertise-addr"), "{error}");
        assert!(only_candidate(&[]).is_err());
    }

    #[test]
    fn refuses_to_advertise_an_address_that_no_node_can_have() {
        for bad in ["0.0.0.0", "::", "224.0.0.1"] {
            assert!(check(bad.parse().expect("an address")).is_err(), "{bad}");
        }
    }
}
