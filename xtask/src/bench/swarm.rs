//! weft's own cases: a lab of two nodes, and on each a task that only that node runs.

use std::path::Path;

use anyhow::Result;
use weft_lab::{CLIENT, Lab, LabOptions, Runtime, contract};

use super::{
    case::{Answer, Case, Target},
    peers,
};

const HTTP: u16 = 80;
const STREAM: u16 = 5201;
/// The node that the client asks, in all cases.
const ASKED: &str = "n1";

/// Where a case's task runs, and the ports that reach it.
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

/// Makes the lab and its services.
pub(super) fn up(weft: &Path) -> Result<Lab> {
    let options = LabOptions { nodes: 2, managers: 1, runtime: Runtime::Process, init: true, weft: weft.to_owned() };
    let lab = Lab::up(options)?;
    peers::widen_ports(&contract::namespace_path(CLIENT))?;
    peers::unfiltered(&Path::new("/run/netns").join(contract::UNDERLAY))?;
    for Placement { case, node, http, stream } in PLACEMENTS {
        let constraint = format!("node.hostname=={node}");
        let create = |name: &str, port: String, image: &[&str]| {
            let mut arguments = vec!["service", "create", "--quiet", "--detach", "--name", name];
            arguments.extend(["--constraint", &constraint, "--publish", &port]);
            arguments.extend(image);
            lab.weft_ok(ASKED, &arguments)?;
            lab.wait_running(ASKED, name, 1)
        };
        create(&case.name(), format!("{http}:{HTTP}"), &["weft/whoami"])?;
        let server = ["host", "iperf3", "--server", "--port", &STREAM.to_string()];
        create(&format!("{}-stream", case.name()), format!("{stream}:{STREAM}"), &server)?;
    }
    Ok(lab)
}

/// How the client reaches each.
pub(super) fn targets() -> Vec<Target> {
    let target = |Placement { case, node, http, stream }: Placement| Target {
        case,
        client: contract::namespace_path(CLIENT),
        http: (contract::v4(ASKED), http).into(),
        stream: (contract::v4(ASKED), stream).into(),
        answers: Answer::Node(node.to_owned()),
    };
    PLACEMENTS.map(target).into()
}
