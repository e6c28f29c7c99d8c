//! The parts of a service's spec that a client has left out. As in Swarm, a spec is shown as it was
//! sent, and with the defaults of these parts only if the client asks for them (`insertDefaults`).
//! Some clients apply a configuration, and compare what they sent with what is shown. To them, a
//! default that they did not send is a change.
//!
//! The reader of a spec calls [`read`], and those that show it call [`hide`].

use std::collections::BTreeSet;

use serde_json::Value;
use weft_model::spec::SpecPart;

/// The root of a task's spec in that of its service.
pub(super) const TASK: &str = "/TaskTemplate";

/// The parts, and where they are in a service's spec. These are the fields of moby's types that are
/// shown only if they were sent (`daemon/cluster/convert` in moby, `api/defaults/service.go` in
/// swarmkit). Others have one form for "the default".
const PARTS: &[(SpecPart, &str)] = &[
    (SpecPart::StopGrace, "/TaskTemplate/ContainerSpec/StopGracePeriod"),
    (SpecPart::Dns, "/TaskTemplate/ContainerSpec/DNSConfig"),
    (SpecPart::Resources, "/TaskTemplate/Resources"),
    (SpecPart::Limits, "/TaskTemplate/Resources/Limits"),
    (SpecPart::Reservations, "/TaskTemplate/Resources/Reservations"),
    (SpecPart::Restart, "/TaskTemplate/RestartPolicy"),
    (SpecPart::RestartDelay, "/TaskTemplate/RestartPolicy/Delay"),
    (SpecPart::Placement, "/TaskTemplate/Placement"),
    (SpecPart::Update, "/UpdateConfig"),
    (SpecPart::UpdateMonitor, "/UpdateConfig/Monitor"),
    (SpecPart::Rollback, "/RollbackConfig"),
    (SpecPart::RollbackMonitor, "/RollbackConfig/Monitor"),
    (SpecPart::Endpoint, "/EndpointSpec"),
];

/// The parts that are not in the body of a request. A part of a part that is not there is not among
/// them.
pub(super) fn read(body: &Value) -> BTreeSet<SpecPart> {
    let is_there = |path: &str| path.is_empty() || body.pointer(path).is_some_and(|value| !value.is_null());
    let is_left_out = |path: &str| path.rsplit_once('/').is_some_and(|(parent, _)| is_there(parent) && !is_there(path));
    PARTS.iter().filter(|(_, path)| is_left_out(path)).map(|(part, _)| *part).collect()
}

/// Removes these parts from a spec that is shown. `root` is the part of a service's spec that
/// `shown` is, and `default` is what `shown` is if a user gives as little as possible. A value that
/// is not the default is never removed.
pub(super) fn hide(shown: &mut Value, root: &str, parts: &BTreeSet<SpecPart>, default: &Value) {
    let paths = PARTS.iter().filter(|(part, _)| parts.contains(part)).filter_map(|(_, path)| path.strip_prefix(root));
    for path in paths {
        let Some((parent, field)) = path.rsplit_once('/') else { continue };
        if shown.pointer(path) != default.pointer(path) {
            continue;
        }
        if let Some(Value::Object(map)) = shown.pointer_mut(parent) {
            map.remove(field);
        }
    }
}
