//! Networks (`network create`).

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnetwork::{Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

use super::Labels;
use crate::{NetworkName, Vni};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    pub name: NetworkName,
    pub labels: Labels,
    /// `--ipv4=false` makes it false: the tasks have no IPv4 addresses on this network.
    pub ipv4: bool,
    /// Empty: the network gets a subnet from a pool of the cluster, unless it has no IPv4.
    pub v4: Vec<SubnetSpec<Ipv4Network, Ipv4Addr>>,
    /// Empty: the network gets a unique local /64 (RFC 4193).
    pub v6: Vec<SubnetSpec<Ipv6Network, Ipv6Addr>>,
    /// `--ipv6`: DNS names on this network have AAAA records.
    pub ipv6: bool,
    /// `--internal`: tasks on this network cannot connect to addresses outside of the cluster.
    pub internal: bool,
    /// `--opt encrypted`: packets of this network cross the underlay only inside of WireGuard.
    pub encrypted: bool,
    /// `--ingress`: the network of services whose spec lists no network. They are reached by their
    /// published ports. It has no DNS names and no VIPs, and its tasks cannot reach each other. A
    /// cluster has at most one such network.
    pub ingress: bool,
    /// `--opt com.docker.network.driver.mtu`: the largest MTU of the tasks' links on this network,
    /// in octets. `None`: what fits through the tunnel.
    pub mtu: Option<u32>,
    /// `--opt com.docker.network.driver.overlay.vxlanid_list`. `None`: the cluster chooses the VNI.
    pub vni: Option<Vni>,
    /// `--config-only`: the network only holds options for other networks, and no service uses it.
    pub config_only: bool,
    /// `--config-from`: the name of the configuration-only network from which the options come:
    /// subnets, IP versions, MTU, VNI, IPAM options and labels.
    pub config_from: Option<NetworkName>,
    /// `--ipam-opt`: only options that ask for what weft does in any case. They are shown again.
    pub ipam_options: Labels,
    /// `--attachable`: containers that are no tasks can be on the network.
    #[serde(default)]
    pub attachable: bool,
}

/// The MTUs that a network may have, in octets. Every task has an IPv6 address, and IPv6 needs at
/// least 1280 (RFC 8200, section 5). A link cannot have more than 65,535.
pub const NETWORK_MTU: std::ops::RangeInclusive<u32> = 1280..=65_535;

impl NetworkSpec {
    /// A network with every option at its default.
    pub fn new(name: NetworkName) -> Self {
        Self {
            name,
            labels: Labels::new(),
            ipv4: true,
            v4: Vec::new(),
            v6: Vec::new(),
            ipv6: false,
            internal: false,
            encrypted: false,
            ingress: false,
            mtu: None,
            vni: None,
            config_only: false,
            config_from: None,
            ipam_options: Labels::new(),
            attachable: false,
        }
    }
}

/// A subnet that the user has chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetSpec<N, A> {
    pub subnet: N,
    /// `None`: the first address of the subnet.
    pub gateway: Option<A>,
    /// The range of task addresses and VIPs. `None`: the whole subnet.
    pub ip_range: Option<N>,
    /// `--aux-address`: addresses that no task or VIP gets, by the name that the user gave them.
    pub reserved: BTreeMap<String, A>,
}

impl<N, A> SubnetSpec<N, A> {
    /// A subnet with every option at its default.
    pub fn new(subnet: N) -> Self {
        Self { subnet, gateway: None, ip_range: None, reserved: BTreeMap::new() }
    }
}
