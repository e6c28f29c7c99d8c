//! Tests that the kernel and the resolver reply alike: for random plans and questions, the reply
//! that the program builds from the maps of [`weft_mesh`] is the one that [`weft_dns`] sends.
//!
//! The program itself runs in the end-to-end tests. These tests run the same code for messages,
//! from `weft_ebpf_common::names`.

use std::{collections::BTreeMap, net::UdpSocket, time::Duration};

use proptest::{collection::vec, option, prelude::*, sample::select};
use weft_dns::{Outside, Server, Sockets, TaskConfig, Zone, ZoneHandle};
use weft_ebpf_common::names::{NAME_OCTETS, NameKey, QUESTION_OCTETS, find, parse, write_reply};
use weft_mesh::{LocalEndpoint, LocalFacts, LocalNetns, desired::desired, tables::Tables};
use weft_model::{
    BackendId, DualAddr, Mac, MeshServiceId, NetworkId, NodeId, NodePlan, ServiceId, TaskId, Vni,
    net::Subnets,
    plan::{AttachmentPlan, BackendPlan, Expanded, NetworkPlan, ServicePlan, TaskGoal, TaskPlan},
    spec::{ContainerSpec, Labels, Resources},
};

use super::facts::names;
use crate::runtime::identity;

const NETWORKS: [&str; 3] = ["front", "a.network.with.many.labels", "web"];
/// Some are names of services, of networks, of both, or end with the name of a network.
const NAMES: [&str; 4] = ["web", "db", "front", "a-long-name-of-a-service-with-63-octets-0123456789-0123456789-1"];
const ALIASES: [&str; 6] =
    ["db", "api", "web.front", "tasks.web", "api.a.network.with.many.labels", "2.1.0.10.in-addr.arpa"];
const HOSTNAMES: [&str; 3] = ["box", "web", "db.front"];
const HEADER_OCTETS: usize = 12;
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
struct Service {
    name: &'static str,
    aliases: Vec<&'static str>,
    network: usize,
    has_vip: bool,
    removing: bool,
    backends: Vec<(bool, Option<&'static str>)>,
}

#[derive(Debug, Clone)]
struct Question {
    name: String,
    record: u16,
    flags: u16,
    opt: Option<Vec<u8>>,
}

fn a_service() -> impl Strategy<Value = Service> {
    let backend = (any::<bool>(), option::of(select(&HOSTNAMES[..])));
    let names = (select(&NAMES[..]), vec(select(&ALIASES[..]), 0..3));
    (names, 0..NETWORKS.len(), any::<bool>(), prop::bool::weighted(0.1), vec(backend, 0..11)).prop_map(
        |((name, aliases), network, has_vip, removing, backends)| Service {
            name,
            aliases,
            network,
            has_vip,
            removing,
            backends,
        },
    )
}

fn a_question() -> impl Strategy<Value = Question> {
    let names: Vec<&str> = [&NAMES[..], &ALIASES[..], &HOSTNAMES[..], &["missing"]].concat();
    let task = (1_u32..5, 0_u32..6).prop_map(|(service, backend)| task_name(service, backend));
    let short_id =
        (1_u32..5, 0_u32..6).prop_map(|(service, backend)| task_id(service, backend).as_str()[..12].to_owned());
    let name = prop_oneof![6 => select(names).prop_map(str::to_owned), 1 => task, 1 => short_id];
    let prefix = prop_oneof![3 => Just(""), 1 => Just("tasks.")];
    let suffix = prop_oneof![3 => Just(String::new()), 2 => select(&NETWORKS[..]).prop_map(|name| format!(".{name}"))];
    let cased = (prefix, name, suffix, any::<u64>()).prop_map(|(prefix, name, suffix, upper)| {
        let name = format!("{prefix}{name}{suffix}");
        name.chars()
            .enumerate()
            .map(|(i, c)| if upper >> (i % 64) & 1 == 1 { c.to_ascii_uppercase() } else { c })
            .collect()
    });
    let opt = prop_oneof![
        Just(vec![0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]),
        Just(vec![0, 0, 41, 4, 208, 0, 0, 0x80, 0, 0, 0]),
        Just(vec![0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]),
    ];
    let flags = select(&[0x0000, 0x0100, 0x0110, 0x0120, 0x0130][..]);
    let record = prop_oneof![4 => Just(1), 4 => Just(28), 1 => select(&[2, 12, 15, 16, 33, 255][..])];
    (cased, record, flags, option::of(opt)).prop_map(|(name, record, flags, opt)| Question { name, record, flags, opt })
}

fn network(number: usize) -> NetworkId {
    NetworkId::from_random(number as u128 + 1)
}

fn task_id(service: u32, backend: u32) -> TaskId {
    TaskId::from_random(u128::from(service * 100 + backend) << 100)
}

fn task_name(service: u32, backend: u32) -> String {
    format!("task.{backend}.of{service}")
}

fn addr(network: usize, host: u32) -> DualAddr {
    let [net, host] = [network as u16 + 1, host as u16];
    let [high, low] = host.to_be_bytes();
    DualAddr { v4: Some([10, net as u8, high, low].into()), v6: [0xfd00, net, 0, 0, 0, 0, 0, host].into() }
}

fn subnets(network: usize) -> Subnets {
    let net = network + 1;
    let [v4, v6] = [format!("10.{net}.0.0/16"), format!("fd00:{net}::/64")];
    Subnets::dual(v4.parse().expect("a subnet"), v6.parse().expect("a subnet"))
}

/// The plan, whose only task is on the networks `attached`.
fn plan(services: &[Service], ipv6: [bool; 3], attached: &[usize]) -> NodePlan {
    let mut plan = NodePlan::empty(NodeId::from_random(1), [192, 0, 2, 1].into());
    plan.networks = (0..NETWORKS.len())
        .map(|number| NetworkPlan {
            id: network(number),
            name: NETWORKS[number].parse().expect("a name"),
            vni: Vni::new(5000 + number as u32).expect("a VNI"),
            subnets: subnets(number),
            ipv6: ipv6[number],
            internal: false,
            ingress: false,
            encrypted: false,
        })
        .collect();
    plan.services = services.iter().zip(1..).map(|(service, id)| service_plan(service, id)).collect();
    plan.tasks.push(TaskPlan {
        id: TaskId::from_random(1),
        service: ServiceId::from_random(999),
        service_name: "asker".parse().expect("a name"),
        name: "asker.1".to_owned(),
        container: ContainerSpec::new("image").into(),
        resources: Resources::default(),
        labels: Labels::new(),
        attachments: attached.iter().map(|&number| attachment(number)).collect(),
        desired: TaskGoal::Run,
        expanded: Expanded::default(),
        container_at: None,
        registry_auth: None,
        node_network: None,
        has_run: false,
    });
    plan
}

fn attachment(number: usize) -> AttachmentPlan {
    let addr = addr(number, 65_000);
    AttachmentPlan {
        network: network(number),
        vni: Vni::new(5000 + number as u32).expect("a VNI"),
        mtu: None,
        subnets: subnets(number),
        addr,
        mac: Mac::of_task(addr),
    }
}

fn service_plan(service: &Service, id: u32) -> ServicePlan {
    let backends = service.backends.iter().zip(0..).map(|((draining, hostname), backend)| BackendPlan {
        id: BackendId(u64::from(id * 100 + backend)),
        task: task_id(id, backend),
        task_name: task_name(id, backend),
        hostname: hostname.map(str::to_owned),
        node: NodeId::from_random(2),
        addr: addr(service.network, id * 100 + backend + 1),
        draining: *draining,
    });
    ServicePlan {
        mesh: MeshServiceId(id),
        service: ServiceId::from_random(id.into()),
        name: service.name.parse().expect("a name"),
        aliases: service.aliases.iter().map(|&alias| alias.to_owned()).collect(),
        network: network(service.network),
        vip: service.has_vip.then(|| addr(service.network, id * 100)),
        removing: service.removing,
        backends: backends.collect(),
    }
}

fn message(question: &Question) -> Vec<u8> {
    let counts = [1, 0, 0, u16::from(question.opt.is_some())];
    let mut octets: Vec<u8> = [0x1234, question.flags].into_iter().chain(counts).flat_map(u16::to_be_bytes).collect();
    for label in question.name.split('.') {
        octets.push(label.len() as u8);
        octets.extend(label.bytes());
    }
    octets.push(0);
    octets.extend([question.record, 1].map(u16::to_be_bytes).concat());
    octets.extend(question.opt.iter().flatten());
    octets
}

/// The reply of the program `names_out`. `None` if it leaves the question to the resolver.
fn kernel_reply(tables: &Tables, request: &[u8]) -> Option<Vec<u8>> {
    let (_, scope) = tables.name_scopes.first_key_value()?;
    let (start, rest) = request.split_at(HEADER_OCTETS);
    if rest.len() > QUESTION_OCTETS {
        return None;
    }
    let word = |i: usize| u32::from_ne_bytes([start[i], start[i + 1], start[i + 2], start[i + 3]]);
    let mut header = [word(0), word(4), word(8)];
    let mut octets = [0xff; QUESTION_OCTETS];
    octets[..rest.len()].copy_from_slice(rest);
    let mut key = NameKey::default();
    let question = parse(&header, &octets, rest.len(), &mut key)?;
    let name = find(scope, &mut key, |key| tables.names.get(key))?;
    assert_eq!(name.check, key.check(), "the entry is of another name");
    let mut records = [0; 64];
    let len = write_reply(&question, name, 0, &mut header, &mut records);
    let records = records.iter().flat_map(|word| word.to_ne_bytes()).take(len as usize);
    let header = header.iter().flat_map(|word| word.to_ne_bytes());
    Some(header.chain(rest[..question.octets as usize].iter().copied()).chain(records).collect())
}

/// The reply with its address records in order, because both sides rotate them, and without the
/// names of the records. The kernel writes a pointer to the question, the resolver the name of the
/// question, and then pointers to it.
fn comparable(request: &[u8], question: &Question, reply: &[u8]) -> Vec<u8> {
    let question_octets = request.len() - question.opt.as_ref().map_or(0, Vec::len);
    let (start, mut rest) = reply.split_at(question_octets);
    // Before the type and the class.
    let name = &start[HEADER_OCTETS..question_octets - 4];
    let pointers = [HEADER_OCTETS, question_octets].map(|offset| [0xc0, offset as u8]);
    // Type, class, TTL and length, and the address.
    let record_octets = 10 + if question.record == 1 { 4 } else { 16 };
    let mut answers = Vec::new();
    for _ in 0..u16::from_be_bytes([reply[6], reply[7]]) {
        let stripped = pointers.iter().find_map(|pointer| rest.strip_prefix(pointer)).or(rest.strip_prefix(name));
        let (record, after) = stripped.expect("the name of the question").split_at(record_octets);
        answers.push(record);
        rest = after;
    }
    answers.sort_unstable();
    [start, &answers.concat(), rest].concat()
}

fn facts(plan: &NodePlan, zone: &Zone) -> LocalFacts {
    let task = &plan.tasks[0];
    let link = |attachment: &AttachmentPlan| LocalEndpoint {
        task: task.id.clone(),
        network: attachment.network.clone(),
        ifindex: 9,
        netns: Some(LocalNetns { cookie: 1, path: "/run/netns/asker".into(), resolver: identity::RESOLVER }),
    };
    LocalFacts {
        endpoints: task.attachments.iter().map(link).collect(),
        names: names(plan, zone),
        ..LocalFacts::default()
    }
}

/// Starts the resolver of the plan's task, and returns a socket that is connected to it.
fn start(plan: &NodePlan, zone: Zone) -> (Server, UdpSocket) {
    let handle = ZoneHandle::default();
    handle.publish(zone);
    let server = Server::new(handle);
    let bind = || UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let (udp, client) = (bind(), bind());
    client.connect(udp.local_addr().expect("an address")).expect("a connected socket");
    client.set_read_timeout(Some(REPLY_TIMEOUT)).expect("a timeout");
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let task = &plan.tasks[0];
    let config = TaskConfig {
        networks: task.attachments.iter().map(|attachment| attachment.network.clone()).collect(),
        outside: Outside::new(&[]).expect("no upstream resolver"),
    };
    server.start(task.id.clone(), config, Sockets { udp, tcp }).expect("a server");
    (server, client)
}

fn ask(client: &UdpSocket, request: &[u8]) -> Vec<u8> {
    client.send(request).expect("a request");
    let mut reply = vec![0; 4096];
    let len = client.recv(&mut reply).expect("a reply");
    reply.truncate(len);
    reply
}

/// The most addresses that a name can have.
fn most_addresses(services: &[Service]) -> usize {
    let mut by_network = BTreeMap::<usize, usize>::new();
    for service in services {
        *by_network.entry(service.network).or_default() += service.backends.len() + 1;
    }
    by_network.into_values().max().unwrap_or_default()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_kernel_replies_as_the_resolver_does(
        services in vec(a_service(), 0..5),
        ipv6 in any::<[bool; 3]>(),
        attached in prop::sample::subsequence(vec![0, 1, 2], 1..=3).prop_shuffle(),
        questions in vec(a_question(), 20),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let _entered = runtime.enter();
        let plan = plan(&services, ipv6, &attached);
        let zone = Zone::from_plan(&plan);
        let tables = desired(&plan, &facts(&plan, &zone)).tables;
        let (_server, client) = start(&plan, zone);
        for question in &questions {
            let request = message(question);
            let resolver = ask(&client, &request);
            let code = resolver[3] & 0xf;
            match kernel_reply(&tables, &request) {
                Some(kernel) => {
                    prop_assert_eq!(comparable(&request, question, &kernel), comparable(&request, question, &resolver));
                }
                None => {
                    let is_plain = [1, 28].contains(&question.record);
                    let is_long = question.name.len() + 2 > NAME_OCTETS;
                    let fits = most_addresses(&services) <= 8;
                    // A reverse name, although a service has the same alias.
                    let is_reverse = question.name.to_lowercase().ends_with(".arpa");
                    prop_assert!(
                        code != 0 || !is_plain || is_long || is_reverse || !fits,
                        "the kernel does not answer {question:?}, the resolver {resolver:02x?}"
                    );
                }
            }
        }
    }
}
