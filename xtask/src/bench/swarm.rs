//! The cases of weft: a lab of two nodes. A placement constraint puts the task of each case on one
//! node.

use std::path::Path;

use anyhow::Result;
use weft_lab::{CLIENT, Lab, LabOptions, Runtime, contract};

use super::{
    case::{Case, ExpectedServer, Label, Target},
    settings::{disable_bridge_netfilter, widen_port_range},
};

const HTTP: u16 = 80;
const STREAM: u16 = 5201;
/// The node that the client connects to, in all cases.
const ENTRY_NODE: &str = "n1";

/// The node of a case's task, and the published ports that lead to it.
struct Placement {
    case: Case,
    node: &'static str,
    http: u16,
    stream: u16,
}

const PLACEMENTS: [Placement; 2] = [
    Placement { case: Case::WeftSymmetric, node: "n2", http: 8080, stream: 5201 },
    Placement { case: Case::WeftLocal, node: "n1", http: 8081, stream: 5202 },
];

/// Creates the lab and its services.
pub(super) fn up(weft: &Path) -> Result<Lab> {
    let options = LabOptions { nodes: 2, managers: 1, runtime: Runtime::Process, init: true, weft: weft.to_owned() };
    let lab = Lab::up(options)?;
    widen_port_range(&contract::namespace_path(CLIENT))?;
    disable_bridge_netfilter(&Path::new("/run/netns").join(contract::UNDERLAY))?;
    for Placement { case, node, http, stream } in PLACEMENTS {
        let constraint = format!("node.hostname=={node}");
        let create = |name: &str, port: String, image: &[&str]| {
            let mut arguments = vec!["service", "create", "--quiet", "--detach", "--name", name];
            arguments.extend(["--constraint", &constraint, "--publish", &port]);
            arguments.extend(image);
            lab.weft_ok(ENTRY_NODE, &arguments)?;
            lab.wait_running(ENTRY_NODE, name, 1)
        };
        create(&case.name(), format!("{http}:{HTTP}"), &["weft/whoami"])?;
        let server = ["host", "iperf3", "--server", "--port", &STREAM.to_string()];
        create(&format!("{}-stream", case.name()), format!("{stream}:{STREAM}"), &server)?;
    }
    Ok(lab)
}

/// How the client reaches each case.
pub(super) fn targets() -> Vec<Target<Case>> {
    let target = |Placement { case, node, http, stream }: Placement| Target {
        case,
        client: contract::namespace_path(CLIENT),
        http: (contract::v4(ENTRY_NODE), http).into(),
        stream: (contract::v4(ENTRY_NODE), stream).into(),
        server: ExpectedServer::Node(node.to_owned()),
    };
    PLACEMENTS.map(target).into()
}
