//! Lets the kernel answer the names of a generated plan, for `cargo xtask bench dns`.
//!
//! `answer_names PIN_DIR NETNS NAMES` writes the services `s0`, `s1`, … with the VIPs 10.0.0.2,
//! 10.0.0.3, … to the maps, and attaches the program for names in the network namespace `NETNS`, as
//! in that of a task. It attaches the other programs to its own namespace, which must not be the
//! same. It then waits until it is killed. Programs and maps stay, as after the end of a daemon:
//! to remove them, remove the folder `PIN_DIR`.
//!
//! While it waits, the kernel measures the run time of all programs (`BPF_STATS_RUN_TIME`,
//! bpf(2)): `/proc/PID/fdinfo` shows it.

use std::{
    error::Error,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
};

use weft_mesh::{LocalEndpoint, LocalFacts, LocalNetns, Mesh, ResolvedName};
use weft_model::{
    DualAddr, Mac, NetworkId, NodeId, NodePlan, ServiceId, TaskId, Vni,
    net::Subnets,
    plan::{AttachmentPlan, Expanded, NetworkPlan, TaskGoal, TaskPlan},
    spec::{ContainerSpec, Labels, Resources},
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pin_dir, netns, names] = arguments.as_slice() else {
        return Err("usage: answer_names PIN_DIR NETNS NAMES".into());
    };
    let names: u32 = names.parse()?;
    let plan = plan()?;
    let network = plan.networks[0].id.clone();
    let facts = LocalFacts {
        endpoints: vec![LocalEndpoint {
            task: plan.tasks[0].id.clone(),
            network: network.clone(),
            // The index of a link that does not exist: the task has only loopback.
            ifindex: 0x7fff_ffff,
            netns: Some(LocalNetns { cookie: 1, path: netns.into(), resolver: Ipv4Addr::new(127, 0, 0, 11) }),
        }],
        names: (0..names).map(|number| name(&network, number)).collect::<Result<_, _>>()?,
        ..LocalFacts::default()
    };
    let mut mesh = Mesh::open(Path::new(pin_dir))?;
    mesh.reconcile(&plan, &facts)?;
    let _measured = aya::sys::enable_stats(aya::sys::Stats::RunTime)?;
    println!("answering");
    loop {
        std::thread::park();
    }
}

fn name(network: &NetworkId, number: u32) -> Result<ResolvedName, Box<dyn Error>> {
    Ok(ResolvedName {
        network: network.clone(),
        name: format!("s{number}"),
        qualified: false,
        v4: vec![Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 2).to_bits() + number)],
        v6: vec![Ipv6Addr::from_bits("fd00::2".parse::<Ipv6Addr>()?.to_bits() + u128::from(number))],
    })
}

fn plan() -> Result<NodePlan, Box<dyn Error>> {
    let mut plan = NodePlan::empty(NodeId::from_random(1), [192, 0, 2, 1].into());
    let network = NetworkId::from_random(1);
    let vni = Vni::new(4097).ok_or("not a VNI")?;
    let subnets = Subnets::dual("10.0.0.0/8".parse()?, "fd00::/64".parse()?);
    let addr = DualAddr { v4: Some([10, 0, 0, 1].into()), v6: "fd00::1".parse()? };
    plan.networks.push(NetworkPlan {
        id: network.clone(),
        name: "bench".parse()?,
        vni,
        subnets: subnets.clone(),
        ipv6: true,
        internal: false,
        ingress: false,
        encrypted: false,
    });
    plan.tasks.push(TaskPlan {
        id: TaskId::from_random(1),
        service: ServiceId::from_random(1),
        service_name: "client".parse()?,
        name: "client.1".to_owned(),
        container: ContainerSpec::new("client").into(),
        resources: Resources::default(),
        labels: Labels::new(),
        attachments: vec![AttachmentPlan { network, vni, mtu: None, subnets, addr, mac: Mac::of_task(addr) }],
        desired: TaskGoal::Run,
        expanded: Expanded::default(),
        container_at: None,
        registry_auth: None,
        node_network: None,
        has_run: false,
    });
    Ok(plan)
}
