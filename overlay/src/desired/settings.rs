//! Sysctls of the node that depend on what the administrator has set: the reserved ports, and the
//! values that teardown restores. `desired` and `overlay` call it. Pure.

use std::ops::RangeInclusive;

use weft_model::EGRESS_PORTS;

use super::{LOOPBACK_ACCEPT_LOCAL, LOOPBACK_RP_FILTER};

pub(crate) const LOCAL_PORTS: &str = "net/ipv4/ip_local_port_range";
pub(crate) const RESERVED_PORTS: &str = "net/ipv4/ip_local_reserved_ports";
pub(crate) const DEFAULT_RP_FILTER: &str = "net/ipv4/conf/default/rp_filter";

/// The sysctls of the node that weft reads before it decides what to set. A sysctl that cannot be
/// read is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeSettings {
    /// `net.ipv4.ip_local_port_range`: the first and the last port, separated by white space.
    pub local_ports: String,
    /// `net.ipv4.ip_local_reserved_ports`: ports and ranges, separated by commas.
    pub reserved_ports: String,
    /// `net.ipv4.conf.default.rp_filter`: the value that `lo` had before weft changed it.
    pub default_rp_filter: String,
}

impl NodeSettings {
    /// The reserved ports together with the ports of egress translation. Without the reservation,
    /// the kernel could choose such a port for a socket of the node. `None` if nothing has to be
    /// added: the kernel chooses only lower ports, or the ports are already reserved.
    pub(super) fn reserved_ports_with_egress(&self) -> Option<String> {
        let last = self.local_ports.split_whitespace().nth(1)?.parse::<u16>().ok()?;
        let egress = egress_ports();
        let reserved = self.reserved_ports.trim();
        if last < *EGRESS_PORTS.start() || reserves(reserved, &EGRESS_PORTS) {
            return None;
        }
        Some(if reserved.is_empty() { egress } else { format!("{reserved},{egress}") })
    }
}

/// The sysctls and values that teardown writes: the kernel's defaults, and no reserved port for
/// egress translation.
pub(crate) fn settings_without_weft(settings: &NodeSettings) -> Vec<(&'static str, String)> {
    let egress = egress_ports();
    let others: Vec<&str> = settings.reserved_ports.trim().split(',').filter(|range| *range != egress).collect();
    vec![
        (LOOPBACK_ACCEPT_LOCAL, "0".to_owned()),
        (LOOPBACK_RP_FILTER, settings.default_rp_filter.clone()),
        (RESERVED_PORTS, others.join(",")),
    ]
}

fn egress_ports() -> String {
    format!("{}-{}", EGRESS_PORTS.start(), EGRESS_PORTS.end())
}

/// Whether one range of `list` contains all of `ports`.
fn reserves(list: &str, ports: &RangeInclusive<u16>) -> bool {
    list.split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        matches!((first.trim().parse::<u16>(), last.trim().parse::<u16>()),
            (Ok(first), Ok(last)) if first <= *ports.start() && last >= *ports.end())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_ports(local: &str, reserved: &str, want: Option<&str>) {
        let settings = NodeSettings {
            local_ports: local.to_owned(),
            reserved_ports: reserved.to_owned(),
            ..NodeSettings::default()
        };
        assert_eq!(settings.reserved_ports_with_egress().as_deref(), want, "{local:?} {reserved:?}");
    }

    #[test]
    fn reserves_the_egress_ports_only_if_the_kernel_could_choose_them() {
        check_ports("32768\t60999", "", None);
        check_ports("1024\t65535", "", Some("61000-65535"));
        check_ports("1024\t61000", "8080,9000-9010", Some("8080,9000-9010,61000-65535"));
        check_ports("1024\t65535", "61000-65535", None);
        check_ports("1024\t65535", "8080,60000-65535", None);
        check_ports("1024\t65535", "62000-65535", Some("62000-65535,61000-65535"));
        check_ports("", "", None);
    }

    #[test]
    fn teardown_restores_the_settings() {
        let settings = NodeSettings {
            local_ports: "1024\t65535".to_owned(),
            reserved_ports: "8080,61000-65535".to_owned(),
            default_rp_filter: "1".to_owned(),
        };
        let restored = settings_without_weft(&settings);
        assert!(restored.contains(&(RESERVED_PORTS, "8080".to_owned())), "{restored:?}");
        assert!(restored.contains(&(LOOPBACK_RP_FILTER, "1".to_owned())), "{restored:?}");
    }
}
