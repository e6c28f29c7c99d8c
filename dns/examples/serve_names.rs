//! Serves the names of a generated plan, for `cargo xtask bench dns`: the resolvers of a node with
//! one thread, on ordinary sockets instead of those of tasks.
//!
//! `serve_names ADDRESS:PORT NAMES TASKS` serves the services `s0`, `s1`, … with the VIPs 10.0.0.2,
//! 10.0.0.3, … to `TASKS` tasks: to the first one at the given address, to each other one at a free
//! port. It prints a line when it serves all of them, and then runs until it is killed.

use std::{
    error::Error,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use weft_dns::{Outside, Server, Sockets, TaskConfig, Zone, ZoneHandle};
use weft_model::{
    DualAddr, MeshServiceId, NetworkId, NodeId, NodePlan, ServiceId, TaskId, Vni,
    net::Subnets,
    plan::{NetworkPlan, ServicePlan},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, names, tasks] = arguments.as_slice() else {
        return Err("usage: serve_names ADDRESS:PORT NAMES TASKS".into());
    };
    let (address, names, tasks): (SocketAddr, u32, u32) = (address.parse()?, names.parse()?, tasks.parse()?);
    let zone = ZoneHandle::default();
    let plan = plan(names)?;
    zone.publish(Zone::from_plan(&plan));
    let server = Server::new(zone);
    let outside = Outside::new(&[])?;
    let networks = vec![plan.networks[0].id.clone()];
    for task in 0..tasks {
        let own = if task == 0 { address } else { SocketAddr::new(address.ip(), 0) };
        let sockets = Sockets { udp: std::net::UdpSocket::bind(own)?, tcp: std::net::TcpListener::bind(own)? };
        let config = TaskConfig { networks: networks.clone(), outside: outside.clone() };
        server.start(TaskId::from_random(task.into()), config, sockets)?;
    }
    println!("serving");
    std::future::pending().await
}

fn plan(names: u32) -> Result<NodePlan, Box<dyn Error>> {
    let mut plan = NodePlan::empty(NodeId::from_random(1), [192, 0, 2, 1].into());
    let network = NetworkId::from_random(1);
    plan.networks.push(NetworkPlan {
        id: network.clone(),
        name: "bench".parse()?,
        vni: Vni::new(4097).ok_or("not a VNI")?,
        subnets: Subnets::dual("10.0.0.0/8".parse()?, "fd00::/64".parse()?),
        ipv6: true,
        internal: false,
        ingress: false,
        encrypted: false,
    });
    for number in 0..names {
        let host = number + 2;
        let vip = DualAddr {
            v4: Some(Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + host)),
            v6: Ipv6Addr::from_bits("fd00::".parse::<Ipv6Addr>()?.to_bits() + u128::from(host)),
        };
        plan.services.push(ServicePlan {
            mesh: MeshServiceId(host),
            service: ServiceId::from_random(host.into()),
            name: format!("s{number}").parse()?,
            aliases: vec![],
            network: network.clone(),
            vip: Some(vip),
            removing: false,
            backends: vec![],
        });
    }
    Ok(plan)
}
