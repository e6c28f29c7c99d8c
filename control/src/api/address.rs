//! Parses and resolves the addresses in requests of `swarm init` and `swarm join`. A user gives an
//! address with or without a port, or the name of a network interface.
//!
//! The handlers of `swarm` call it. It reads the interfaces and asks DNS, and changes nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nix::ifaddrs::getifaddrs;
use weft_model::CONTROL_PORT;

use super::{error::ApiError, features};

/// Parses the address on which the node RPC listens. An empty text means all IPv4 addresses.
pub(super) fn parse_listen(text: &str) -> Result<SocketAddr, ApiError> {
    let (host, port) = split(text)?;
    let ip = match host {
        "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        host => ip_of(host).map_err(|why| invalid("listen", text, &why))?,
    };
    Ok(SocketAddr::new(ip, port.unwrap_or(CONTROL_PORT)))
}

/// Parses the address at which other nodes reach this node. The port is always that of `listen`.
/// Returns `None` if the text is empty; the daemon then chooses an address itself.
pub(super) fn parse_advertise(text: &str, listen: SocketAddr) -> Result<Option<IpAddr>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    let (host, port) = split(text)?;
    if let Some(port) = port.filter(|&port| port != listen.port()) {
        let subject = format!("advertising port {port} while listening on {}", listen.port());
        return Err(features::ADVERTISED_PORTS.refusal_of(&subject));
    }
    let ip = ip_of(host).map_err(|why| invalid("advertise", text, &why))?;
    if ip.is_unspecified() {
        return Err(invalid("advertise", text, "other nodes cannot reach it"));
    }
    Ok(Some(ip))
}

/// Parses the address at which the tunnels of this node end. Returns `None` if the text is empty;
/// tunnels then use the address that the node advertises.
pub(super) fn parse_tunnel(text: &str) -> Result<Option<IpAddr>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    let ip = ip_of(text).map_err(|why| invalid("data path", text, &why))?;
    if ip.is_unspecified() {
        return Err(invalid("data path", text, "other nodes cannot reach it"));
    }
    Ok(Some(ip))
}

/// Resolves the address of the manager through which this node joins.
pub(super) async fn resolve_manager(text: &str) -> Result<SocketAddr, ApiError> {
    let (host, port) = split(text)?;
    let port = port.unwrap_or(CONTROL_PORT);
    let mut found = tokio::net::lookup_host((host, port))
        .await
        .map_err(|error| invalid("manager", text, &format!("it cannot be resolved ({error})")))?;
    found.next().ok_or_else(|| invalid("manager", text, "it has no address"))
}

fn invalid(what: &str, text: &str, why: &str) -> ApiError {
    ApiError::Invalid(format!("invalid {what} address {text:?}: {why}"))
}

/// Splits `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address into host and port.
fn split(text: &str) -> Result<(&str, Option<u16>), ApiError> {
    if text.parse::<IpAddr>().is_ok() {
        return Ok((text, None));
    }
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map(|port| {
        port.parse::<u16>()
            .ok()
            .filter(|&port| port != 0)
            .ok_or_else(|| invalid("network", text, "its port must be a number from 1 to 65535"))
    });
    Ok((host, port.transpose()?))
}

/// Parses `host` as an address, or returns the address of the interface with this name.
fn ip_of(host: &str) -> Result<IpAddr, String> {
    if let Ok(ip) = host.parse() {
        return Ok(ip);
    }
    let interfaces = getifaddrs().map_err(|error| format!("cannot list the interfaces ({error})"))?;
    let mut addresses: Vec<IpAddr> = interfaces
        .filter(|interface| interface.interface_name == host)
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            let v6 = address
                .as_sockaddr_in6()
                .map(nix::sys::socket::SockaddrIn6::ip)
                .filter(|ip| !ip.is_unicast_link_local());
            v4.or(v6.map(IpAddr::V6))
        })
        .collect();
    addresses.sort();
    match addresses.iter().filter(|ip| ip.is_ipv4()).count() {
        0 => {
            addresses.first().copied().ok_or_else(|| "give an address, or the name of an interface that has one".into())
        }
        1 => Ok(addresses[0]),
        _ => Err(format!("interface {host} has several addresses, name one of them: {addresses:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_listen_address_have_defaults() {
        for (text, address) in [
            ("", "0.0.0.0:2377"),
            ("0.0.0.0:2377", "0.0.0.0:2377"),
            ("192.0.2.1", "192.0.2.1:2377"),
            ("[2001:db8::1]:99", "[2001:db8::1]:99"),
            ("2001:db8::1", "[2001:db8::1]:2377"),
            ("lo", "127.0.0.1:2377"),
            ("lo:77", "127.0.0.1:77"),
        ] {
            assert_eq!(parse_listen(text), Ok(address.parse().expect(address)), "{text}");
        }
        assert!(parse_listen("no-such-interface0").is_err());
        assert!(parse_listen("1.2.3.4:http").is_err());
        assert!(parse_listen("1.2.3.4:0").is_err());
    }

    #[test]
    fn only_the_listening_port_can_be_advertised() {
        let listening = "0.0.0.0:2377".parse().expect("an address");
        assert_eq!(parse_advertise("", listening), Ok(None));
        assert_eq!(parse_advertise("192.0.2.1", listening), Ok(Some("192.0.2.1".parse().expect("an address"))));
        assert_eq!(parse_advertise("192.0.2.1:2377", listening), Ok(Some("192.0.2.1".parse().expect("an address"))));
        assert!(parse_advertise("192.0.2.1:2378", listening).is_err());
        assert!(parse_advertise("0.0.0.0", listening).is_err());
    }
}
