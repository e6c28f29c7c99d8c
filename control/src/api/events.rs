//! `events`: what changed in the table, as it changes. Nothing is kept: a client sees what happens while it listens.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::header,
    response::{IntoResponse, Response},
};
use bollard_stubs::models::{EventActor, EventMessage, EventMessageScopeEnum, EventMessageTypeEnum as Type};
use futures_util::{StreamExt as _, stream::select};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use weft_model::{
    ClusterState,
    spec::{Availability, Role, ServiceMode},
    state::{Network, Node, NodeStatus, Service},
};

use super::{
    Api, engine,
    error::ApiError,
    features,
    logs::unix_ms,
    query::{Filters, Params},
};

/// Events on their way to one client.
const QUEUE: usize = 256;
const FILTERS: &[&str] = &["event", "label", "network", "node", "scope", "service", "type"];

/// The cluster's events, and those of the local container engine where there is one.
pub(super) async fn stream(State(api): State<Api>, params: Params, request: Request) -> Result<Response, ApiError> {
    let has_engine = api.node.engine.is_some();
    let table = match api.table() {
        Err(_) if has_engine => return engine::pass_on(State(api), request).await,
        table => table?,
    };
    let filters = Filters::read(&params, FILTERS)?;
    let now_ms = unix_now_ms();
    let time = |name: &str| Some(params.text(name)).filter(|t| !t.is_empty()).map(|t| unix_ms(name, t)).transpose();
    if time("since")?.is_some_and(|since| since + 1_000 < now_ms) {
        return Err(features::PAST_EVENTS.refusal());
    }
    let ends = time("until")?.map(|until| Duration::from_millis(until.saturating_sub(now_ms)));
    let (sender, receiver) = mpsc::channel(QUEUE);
    let mut state = table.state();
    // What happens from here on is told, however late the task begins.
    let before = Arc::clone(&state.borrow_and_update());
    tokio::spawn(async move {
        let watching = watch_table(before, state, filters, sender);
        match ends {
            Some(after) => drop(tokio::time::timeout(after, watching).await),
            None => watching.await,
        }
    });
    let lines = ReceiverStream::new(receiver).map(Ok::<_, axum::Error>);
    let lines = if has_engine {
        let local = engine::pass_on(State(api), request).await?;
        if !local.status().is_success() {
            return Ok(local);
        }
        // Both end at `until`; where one breaks off earlier, the client hears of it.
        select(lines, local.into_body().into_data_stream()).boxed()
    } else {
        lines.boxed()
    };
    Ok(([(header::CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response())
}

fn unix_now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}

async fn watch_table(
    mut before: Arc<ClusterState>,
    mut state: watch::Receiver<Arc<ClusterState>>,
    filters: Filters,
    sender: mpsc::Sender<Bytes>,
) {
    loop {
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
        }
        let after = Arc::clone(&state.borrow_and_update());
        for event in difference(&before, &after).iter().filter(|event| wanted(&filters, event)) {
            let Ok(mut line) = serde_json::to_vec(event) else { continue };
            line.push(b'\n');
            if sender.send(Bytes::from(line)).await.is_err() {
                return;
            }
        }
        before = after;
    }
}

fn wanted(filters: &Filters, event: &EventMessage) -> bool {
    let actor = event.actor.clone().unwrap_or_default();
    let (id, attributes) = (actor.id.unwrap_or_default(), actor.attributes.unwrap_or_default());
    let named = |text: &str| id.starts_with(text) || attributes.get("name").is_some_and(|name| name == text);
    let of = |filter: &str, kind: Type| {
        filters.values(filter).is_empty() || (event.typ == Some(kind) && filters.any(filter, named))
    };
    filters.any("event", |wanted| event.action.as_deref() == Some(wanted))
        && filters.any("type", |wanted| event.typ.is_some_and(|kind| kind.as_ref() == wanted))
        && filters.any("scope", |wanted| wanted == "swarm")
        && filters.labels("label", |key| attributes.get(key))
        && of("service", Type::SERVICE)
        && of("node", Type::NODE)
        && of("network", Type::NETWORK)
}

type Attributes = Vec<(String, String)>;

/// What happened between two tables, at the later one's time.
fn difference(before: &ClusterState, after: &ClusterState) -> Vec<EventMessage> {
    let event = |kind: Type, action: &str, id: &str, attributes: Attributes| EventMessage {
        typ: Some(kind),
        action: Some(action.to_owned()),
        actor: Some(EventActor { id: Some(id.to_owned()), attributes: Some(attributes.into_iter().collect()) }),
        scope: Some(EventMessageScopeEnum::SWARM),
        time: i64::try_from(after.now_ms / 1_000).ok(),
        time_nano: i64::try_from(after.now_ms).ok().and_then(|ms| ms.checked_mul(1_000_000)),
    };
    let networks = pairs(&before.networks, &after.networks).filter_map(|(id, change)| {
        let (action, network) = match change {
            Change::New(network) => ("create", network),
            Change::Gone(network) => ("remove", network),
            Change::Kept(..) => return None,
        };
        Some(event(Type::NETWORK, action, id.as_str(), network_attributes(network)))
    });
    let visible = |services: &BTreeMap<_, Service>| -> BTreeMap<_, Service> {
        services.iter().filter(|(_, s)| !s.removing).map(|(id, s)| (Clone::clone(id), s.clone())).collect()
    };
    let (old_services, new_services) = (visible(&before.services), visible(&after.services));
    let services = pairs(&old_services, &new_services).filter_map(|(id, change)| {
        let (action, attributes) = match change {
            Change::New(service) => ("create", service_attributes(service)),
            Change::Gone(service) => ("remove", service_attributes(service)),
            Change::Kept(old, new) if old.meta.version != new.meta.version || update(old) != update(new) => {
                ("update", changed(&service_attributes(old), service_attributes(new)))
            }
            Change::Kept(..) => return None,
        };
        Some(event(Type::SERVICE, action, id.as_str(), attributes))
    });
    let nodes = pairs(&before.nodes, &after.nodes).filter_map(|(id, change)| {
        let (action, attributes) = match change {
            Change::New(node) => ("create", node_attributes(node)),
            Change::Gone(node) => ("remove", node_attributes(node)),
            Change::Kept(old, new) if node_attributes(old) != node_attributes(new) => {
                ("update", changed(&node_attributes(old), node_attributes(new)))
            }
            Change::Kept(..) => return None,
        };
        Some(event(Type::NODE, action, id.as_str(), attributes))
    });
    let mut events: Vec<_> = nodes.collect();
    events.extend(networks);
    events.extend(services);
    events
}

enum Change<'a, T> {
    New(&'a T),
    Gone(&'a T),
    Kept(&'a T, &'a T),
}

/// Every id of either table, with what became of it.
fn pairs<'a, K: Ord, T>(
    before: &'a BTreeMap<K, T>,
    after: &'a BTreeMap<K, T>,
) -> impl Iterator<Item = (&'a K, Change<'a, T>)> {
    let gone = before.iter().filter(|(id, _)| !after.contains_key(*id)).map(|(id, old)| (id, Change::Gone(old)));
    let there =
        after.iter().map(|(id, new)| (id, before.get(id).map_or(Change::New(new), |old| Change::Kept(old, new))));
    gone.chain(there)
}

/// `name`, and for what differs `key.old` and `key.new`.
fn changed(old: &Attributes, new: Attributes) -> Attributes {
    let mut attributes = Attributes::new();
    for (key, value) in new {
        if key == "name" {
            attributes.push((key, value));
            continue;
        }
        let earlier = old.iter().find(|(k, _)| *k == key).map(|(_, v)| v.clone()).unwrap_or_default();
        if earlier != value {
            attributes.push((format!("{key}.old"), earlier));
            attributes.push((format!("{key}.new"), value));
        }
    }
    attributes
}

fn network_attributes(network: &Network) -> Attributes {
    vec![("name".into(), network.spec.name.to_string()), ("type".into(), "overlay".into())]
}

fn update(service: &Service) -> Option<weft_model::state::UpdateState> {
    service.update.as_ref().map(|update| update.state)
}

fn service_attributes(service: &Service) -> Attributes {
    use weft_model::state::UpdateState as U;
    let mut attributes = vec![
        ("name".into(), service.spec.name.to_string()),
        ("image".into(), service.spec.task.container.image.clone()),
    ];
    if let ServiceMode::Replicated { replicas } = service.spec.mode {
        attributes.push(("replicas".into(), replicas.to_string()));
    }
    if let Some(state) = update(service) {
        let state = match state {
            U::Updating => "updating",
            U::Paused => "paused",
            U::Completed => "completed",
            U::RollbackStarted => "rollback_started",
            U::RollbackPaused => "rollback_paused",
            U::RollbackCompleted => "rollback_completed",
        };
        attributes.push(("updatestate".into(), state.into()));
    }
    attributes
}

fn node_attributes(node: &Node) -> Attributes {
    let status = match node.status {
        NodeStatus::Unknown => "unknown",
        NodeStatus::Ready => "ready",
        NodeStatus::Down => "down",
    };
    let availability = match node.spec.availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    };
    let role = if node.spec.role == Role::Manager { "manager" } else { "worker" };
    vec![
        ("name".into(), node.hostname.to_string()),
        ("state".into(), status.into()),
        ("availability".into(), availability.into()),
        ("role".into(), role.into()),
    ]
}
