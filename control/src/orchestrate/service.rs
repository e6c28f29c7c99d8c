//! How many tasks a service has, and which: one for each slot, of the present spec, where it may be.
//!
//! Replicated services have numbered slots, global ones a slot for each node. Both tend their slots alike; a task that must
//! be replaced is rolled: the new one first or the old one first, as the update config says.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{
    ClusterState, Command, NodeId,
    spec::{Availability, ServiceMode, UpdateOrder},
    state::{Node, NodeStatus, Service, Slot, Task, TaskState, Traffic},
};

use super::{
    Context, MAX_COMMANDS,
    restart::{self, Again},
    slot::{SlotTasks, create, end, ended_by_itself, group, is_live},
    update,
};
use crate::schedule;

/// How long a stopping task may outlast its grace before the slot's next one starts without waiting for its end.
const STOP_PATIENCE_MS: u64 = 60_000;

pub(super) fn reconcile(state: &ClusterState, ctx: &mut Context<'_>) -> Vec<Command> {
    let mut tasks = BTreeMap::<_, Vec<&Task>>::new();
    for task in state.tasks.values() {
        tasks.entry(&task.service).or_default().push(task);
    }
    let mut commands = Vec::new();
    for service in state.services.values() {
        let tasks = tasks.get(&service.id).map_or(&[][..], Vec::as_slice);
        if service.removing {
            tasks.iter().for_each(|task| end(task, TaskState::Remove, &mut commands));
        } else {
            keep(state, service, tasks, ctx, &mut commands);
        }
        if commands.len() >= MAX_COMMANDS {
            break;
        }
    }
    commands
}

fn keep(state: &ClusterState, service: &Service, tasks: &[&Task], ctx: &mut Context<'_>, commands: &mut Vec<Command>) {
    let mut slots = group(tasks);
    slots.retain(|_, slot| slot.is_occupied());
    let total = match service.spec.mode {
        ServiceMode::Replicated { replicas } => scale(service, &mut slots, replicas, ctx, commands),
        ServiceMode::Global => cover(state, service, &mut slots, ctx, commands),
    };
    let mut roll = Roll::new(service, tasks, total);
    for slot in slots.values() {
        tend(state, service, slot, ctx, &mut roll, commands);
    }
    let order = update::config(service).order;
    for slot in std::mem::take(&mut roll.misplaced) {
        roll.replace(&slot, order, ctx, commands);
    }
    update::advance(service, slots.values(), &mut roll, ctx, commands);
}

/// Creates or ends replicas until there are as many as wanted; leaves in `slots` those that stay.
fn scale(
    service: &Service,
    slots: &mut BTreeMap<&Slot, SlotTasks<'_>>,
    replicas: u64,
    ctx: &mut Context<'_>,
    commands: &mut Vec<Command>,
) -> usize {
    let wanted = usize::try_from(replicas).unwrap_or(usize::MAX);
    for slot in surplus(slots, slots.len().saturating_sub(wanted)) {
        if let Some(slot) = slots.remove(&slot) {
            slot.tasks.iter().for_each(|task| end(task, TaskState::Remove, commands));
        }
    }
    let missing = wanted.saturating_sub(slots.len()).min(MAX_COMMANDS);
    let free = (1..).map(Slot::Replica).filter(|slot| !slots.contains_key(slot)).take(missing);
    commands.extend(free.map(|slot| create(service, &slot, TaskState::Running, Again::default(), ctx)));
    wanted
}

/// The slots to give up: those that do not run first, then from the nodes that have most, the highest numbers first.
fn surplus(slots: &BTreeMap<&Slot, SlotTasks<'_>>, count: usize) -> Vec<Slot> {
    let mut idle = Vec::new();
    let mut running = BTreeMap::<&NodeId, Vec<&Slot>>::new();
    for (slot, tasks) in slots {
        let node = tasks.live().find(|t| t.status.state == TaskState::Running).and_then(|t| t.node.as_ref());
        match node {
            Some(node) => running.entry(node).or_default().push(slot),
            None => idle.push(*slot),
        }
    }
    let mut surplus: Vec<Slot> = idle.into_iter().rev().take(count).cloned().collect();
    while surplus.len() < count {
        let fullest = running.values_mut().max_by_key(|slots| (slots.len(), slots.last().copied()));
        let Some(slot) = fullest.and_then(Vec::pop) else { break };
        surplus.push(slot.clone());
    }
    surplus
}

/// A task for each node that may have one; leaves in `slots` those of nodes that may keep theirs.
fn cover(
    state: &ClusterState,
    service: &Service,
    slots: &mut BTreeMap<&Slot, SlotTasks<'_>>,
    ctx: &mut Context<'_>,
    commands: &mut Vec<Command>,
) -> usize {
    let mut covered = BTreeSet::new();
    slots.retain(|slot, tasks| {
        let Slot::Node(id) = slot else { return true };
        let node = state.nodes.get(id);
        let keeps = node.is_some_and(|n| n.status != NodeStatus::Down && may_keep(n, service));
        if !keeps {
            tasks.live().for_each(|task| end(task, TaskState::Shutdown, commands));
            return false;
        }
        covered.insert(id.clone());
        // A node that takes no new tasks keeps the one it has, and gets no other.
        tasks.live().next().is_some() || node.is_some_and(Node::takes_tasks)
    });
    let open = state.nodes.values().filter(|n| n.takes_tasks() && may_keep(n, service) && !covered.contains(&n.id));
    for node in open.take(MAX_COMMANDS) {
        commands.push(create(service, &Slot::Node(node.id.clone()), TaskState::Running, Again::default(), ctx));
    }
    slots.len()
}

/// Whether the service's tasks may stay on this node.
fn may_keep(node: &Node, service: &Service) -> bool {
    node.spec.availability != Availability::Drain && schedule::satisfies(node, &service.spec.task.placement.constraints)
}

/// Gives an empty slot its next task, lets a held one go, and ends those that are one too many.
fn tend<'a>(
    state: &ClusterState,
    service: &Service,
    slot: &SlotTasks<'a>,
    ctx: &mut Context<'_>,
    roll: &mut Roll<'a, '_>,
    commands: &mut Vec<Command>,
) {
    // What ended by itself is not wanted back: its successor is another task.
    for task in slot.tasks.iter().filter(|t| t.status.state.is_terminal() && t.desired <= TaskState::Running) {
        commands.push(Command::SetDesired { id: task.id.clone(), desired: TaskState::Shutdown });
    }
    let blocked = is_blocked(slot, ctx);
    if slot.live().next().is_none() {
        if let Some(again) = slot.newest().and_then(|t| restart::after(service, t)) {
            let held = blocked || !ctx.due(again.not_before_ms);
            let desired = if held { TaskState::Ready } else { TaskState::Running };
            commands.push(create(service, slot.slot, desired, again, ctx));
        }
        return;
    }
    for task in slot.live().filter(|t| t.desired < TaskState::Running) {
        if !blocked && ctx.due(task.not_before_ms) {
            commands.push(Command::SetDesired { id: task.id.clone(), desired: TaskState::Running });
        }
    }
    let placed_well = |t: &Task| {
        let node = t.node.as_ref().and_then(|node| state.nodes.get(node));
        node.is_none_or(|node| may_keep(node, service))
    };
    let (fresh, stale): (Vec<_>, Vec<_>) = slot.live().partition(|t| t.is_current(service) && placed_well(t));
    let spare = |tasks: &[&'a Task], commands: &mut Vec<Command>| -> Option<&'a Task> {
        let best = tasks.iter().copied().max_by_key(|t| (t.traffic, t.status.state, &t.id))?;
        tasks.iter().filter(|t| t.id != best.id).for_each(|t| end(t, TaskState::Shutdown, commands));
        Some(best)
    };
    let new = spare(&fresh, commands);
    match (new, spare(&stale, commands)) {
        (Some(new), Some(old)) if new.traffic == Traffic::Active => end(old, TaskState::Shutdown, commands),
        (None, Some(old)) => {
            let Some(again) = retry(service, slot, old) else { return };
            let outdated = Outdated { slot: slot.slot, old, again };
            if placed_well(old) { &mut roll.outdated } else { &mut roll.misplaced }.push(outdated);
        }
        _ => {}
    }
}

/// When a slot whose old task still runs may try a new one. `None`: what was tried has failed for good.
fn retry(service: &Service, slot: &SlotTasks<'_>, old: &Task) -> Option<Again> {
    let tried = slot.newest().filter(|t| t.id != old.id && t.spec == service.spec.task && ended_by_itself(t));
    tried.map_or(Some(Again::default()), |tried| restart::after(service, tried))
}

/// Whether the slot's next task must wait for one before it to end.
fn is_blocked(slot: &SlotTasks<'_>, ctx: &mut Context<'_>) -> bool {
    let mut blocked = false;
    for task in slot.stopping() {
        let told = task.must_stop();
        let patience_ms = task.spec.container.stop_grace_ms.saturating_add(STOP_PATIENCE_MS);
        blocked |= !told || !ctx.due(task.traffic_since_ms.max(task.state_since_ms).saturating_add(patience_ms));
    }
    blocked
}

/// A slot whose task is to be replaced.
#[derive(Debug)]
pub(super) struct Outdated<'a> {
    pub(super) slot: &'a Slot,
    pub(super) old: &'a Task,
    again: Again,
}

/// The replacement of one service's tasks in this look: what is to be replaced, and who serves meanwhile.
pub(super) struct Roll<'a, 's> {
    service: &'s Service,
    /// Slots that the service shall have.
    pub(super) total: usize,
    /// Slots whose task has the old spec.
    pub(super) outdated: Vec<Outdated<'a>>,
    /// Slots whose task is where it may not be.
    misplaced: Vec<Outdated<'a>>,
    /// Tasks that every node sends new flows to, and that nobody has ended.
    serving: usize,
    /// Whether a new task is on its way that has not failed yet.
    coming: bool,
}

impl<'a, 's> Roll<'a, 's> {
    fn new(service: &'s Service, tasks: &[&'a Task], total: usize) -> Self {
        let live = || tasks.iter().filter(|t| is_live(t));
        let coming = |t: &&&Task| {
            t.traffic < Traffic::Active && t.spec == service.spec.task && t.attempts == 0 && t.status.error.is_empty()
        };
        Self {
            service,
            total,
            outdated: Vec::new(),
            misplaced: Vec::new(),
            serving: live().filter(|t| t.traffic == Traffic::Active).count(),
            coming: live().any(|t| coming(&t)),
        }
    }

    /// Begins to replace a slot's task. Postponed where that would take the last one that serves while others are on their
    /// way: unless the service has but one slot, somebody answers all the time.
    pub(super) fn replace(
        &mut self,
        outdated: &Outdated<'_>,
        order: UpdateOrder,
        ctx: &mut Context<'_>,
        commands: &mut Vec<Command>,
    ) -> bool {
        let Outdated { slot, old, again } = *outdated;
        if order == UpdateOrder::StartFirst {
            let held = !ctx.due(again.not_before_ms);
            let desired = if held { TaskState::Ready } else { TaskState::Running };
            commands.push(create(self.service, slot, desired, again, ctx));
            self.coming = true;
            return true;
        }
        let serves = old.traffic == Traffic::Active;
        if serves && self.total > 1 && self.serving <= 1 && self.coming {
            return false;
        }
        self.serving -= usize::from(serves);
        self.coming = true;
        end(old, TaskState::Shutdown, commands);
        commands.push(create(self.service, slot, TaskState::Ready, again, ctx));
        true
    }
}
