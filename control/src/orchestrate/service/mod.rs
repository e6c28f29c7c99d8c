//! Reconciles the tasks of each service with its spec: each slot has one task, with the current
//! task spec, on a node where it may run.
//!
//! A replicated service has numbered slots, a global service has one slot for each node. The slots
//! of both are then reconciled in the same way. The [`Rollout`] replaces tasks: it starts the new
//! task before or after it stops the old one, as the update config says. In reading order:
//!
//! - `rollout`: replaces one task;
//! - `update`: decides how many tasks are replaced at a time, and when an update pauses or rolls
//!   back;
//! - `slot`: reconciles one slot;
//! - `replicated` and `global`: which slots the service has.

mod rollout;
mod update;
mod slot;
mod replicated;
mod global;

use rollout::Rollout;
use weft_model::{
    ClusterState,
    spec::{Availability, ServiceMode},
    state::{Node, Service, Slot, Task, TaskState},
};

use super::{
    Context,
    slot_tasks::{group_by_service, group_by_slot},
};
use crate::schedule;

/// Reconciles every service. The tasks of a service that is being removed are stopped.
pub(super) fn reconcile(ctx: &mut Context<'_>) {
    let state = ctx.state;
    let tasks = group_by_service(state);
    for service in state.services.values() {
        let tasks = tasks.get(&service.id).map_or(&[][..], Vec::as_slice);
        if service.removing {
            tasks.iter().for_each(|task| ctx.stop_task(task, TaskState::Remove));
        } else {
            reconcile_service(service, tasks, ctx);
        }
        if ctx.is_full() {
            break;
        }
    }
}

fn reconcile_service(service: &Service, tasks: &[&Task], ctx: &mut Context<'_>) {
    let mut slots = group_by_slot(tasks);
    slots.retain(|_, slot| slot.is_occupied());
    let total = match service.spec.mode {
        ServiceMode::Replicated { replicas } => replicated::reconcile_replicated(service, &mut slots, replicas, ctx),
        ServiceMode::Global => global::reconcile_global(service, &mut slots, ctx),
    };
    let mut rollout = Rollout::new(service, tasks, total);
    for slot in slots.values() {
        slot::reconcile_slot(service, slot, &mut rollout, ctx);
    }
    let order = update::config(service).order;
    for replacement in std::mem::take(&mut rollout.misplaced) {
        rollout.replace(&replacement, order, ctx);
    }
    update::advance(service, slots.values(), &mut rollout, ctx);
}

/// Whether the scheduler may find a node for a new task of this slot. A slot of a global service
/// has only its own node.
fn can_be_placed(slot: &Slot, service: &Service, state: &ClusterState) -> bool {
    match slot {
        Slot::Replica(_) => true,
        Slot::Node(id) => state.nodes.get(id).is_some_and(|node| takes_tasks_of(node, service)),
    }
}

/// Whether this node takes new tasks of a global service: not while it is paused, and not if it is
/// of none of the image's platforms.
fn takes_tasks_of(node: &Node, service: &Service) -> bool {
    node.takes_tasks() && schedule::is_of_platform(node, &service.spec.task.placement.platforms)
}

/// Whether tasks of the service may stay on this node. The platforms do not matter: an old task
/// runs an image for its node, and an image for none of the nodes must not end it.
fn may_stay(node: &Node, service: &Service) -> bool {
    node.spec.availability != Availability::Drain && schedule::satisfies(node, &service.spec.task.placement.constraints)
}
