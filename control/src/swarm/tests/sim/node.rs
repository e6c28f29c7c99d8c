//! A node without its manager: the link to the leader, the agent, and the machine with its kernel,
//! processes and disk. The link's decisions are the real ones (`link::acks`, `link::inbox`); the
//! agent is a model, which applies plans late and starts and stops tasks slowly.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use rand::Rng;
use weft_model::{NodeId, NodePlan, NodeReport, TaskId, plan::PlanVersion, state::TaskState};

use super::{
    ctx::{Ctx, Packet, SessionBody, host_at},
    sabotage::Sabotage,
};
use crate::{
    fixture::{
        description,
        machine::{Machine, Process, Runtime},
        observed,
    },
    swarm::{
        dispatch::exchange::PlanMessage,
        link::{
            acks::AckTracker,
            inbox::{Received, receive},
        },
    },
};

/// The pauses between two attempts to open a session, in milliseconds.
const RETRY_MS: [u64; 5] = [100, 200, 400, 800, 1_000];
/// How long the node waits for the first answer of a manager.
const FIRST_REPLY_MS: u64 = 3_000;

/// How long the machine takes for its work, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delays {
    pub plan_ms: u64,
    pub start_ms: u64,
    pub stop_ms: u64,
}

#[derive(Debug)]
enum Link {
    Waiting { until_ms: u64 },
    Opening { conn: u64, manager: usize, redirected: bool, until_ms: u64 },
    Open { conn: u64, manager: usize },
}

/// The last message to the leader.
#[derive(Debug, Default)]
struct Sent {
    acked: PlanVersion,
    /// The number of the report that it had, or of an earlier one.
    report: u64,
    at_ms: u64,
}

#[derive(Debug)]
pub(super) struct Node {
    pub id: NodeId,
    pub delays: Delays,
    /// No plan takes effect while it is true.
    pub stuck: bool,
    /// A leader has said that it is no member any more.
    pub removed: bool,

    // The daemon's memory.
    acks: AckTracker,
    pub published: Option<Rc<NodePlan>>,
    stored: PlanVersion,
    storing: Option<(u64, Rc<NodePlan>)>,
    link: Link,
    failures: usize,
    next_manager: usize,
    applied: PlanVersion,
    applying: Option<(u64, Rc<NodePlan>)>,
    sent: Sent,

    // What outlives the daemon: the disk, the kernel and the processes.
    pub disk_plan: Option<Rc<NodePlan>>,
    pub kernel: Option<Rc<NodePlan>>,
    pub machine: Machine,
    /// Whether no process starts or stops, and the plan has been compared with the processes.
    idle: bool,
    /// The newest report, and how many there were.
    report: NodeReport,
    reports: u64,
    /// The greatest version that the node has acked, and that of its plan, which may be older.
    pub acked: PlanVersion,
    acked_plan: PlanVersion,
}

impl Node {
    pub(super) fn new(id: NodeId, delays: Delays) -> Self {
        Self {
            id,
            delays,
            stuck: false,
            removed: false,
            acks: AckTracker::default(),
            published: None,
            stored: PlanVersion::default(),
            storing: None,
            link: Link::Waiting { until_ms: 0 },
            failures: 0,
            next_manager: 0,
            applied: PlanVersion::default(),
            applying: None,
            sent: Sent::default(),
            disk_plan: None,
            kernel: None,
            machine: Machine::default(),
            idle: false,
            report: NodeReport { description: Some(description(&[])), ..NodeReport::default() },
            reports: 1,
            acked: PlanVersion::default(),
            acked_plan: PlanVersion::default(),
        }
    }

    /// The daemon starts again, with the stored plan.
    pub(super) fn restart(&mut self, now_ms: u64) {
        (self.acks, self.published) = (AckTracker::default(), self.disk_plan.clone());
        self.stored = self.published.as_ref().map_or_else(PlanVersion::default, |plan| plan.version());
        if self.published.is_some() {
            self.acks.deliver(self.stored);
        }
        (self.storing, self.applying, self.applied) = (None, None, PlanVersion::default());
        (self.link, self.failures, self.next_manager) = (Link::Waiting { until_ms: now_ms }, 0, 0);
    }

    /// The machine was switched off: its kernel state is lost, and its tasks have ended.
    pub(super) fn power_off(&mut self) {
        (self.kernel, self.idle) = (None, false);
        for process in self.machine.processes.values_mut().filter(|process| process.is_alive()) {
            *process = Process::Ended(TaskState::Failed);
        }
    }

    pub(super) fn crash_task(&mut self, nth: usize) {
        let mut running = self.machine.processes.values_mut().filter(|process| **process == Process::Running);
        if let Some(process) = running.nth(nth) {
            *process = Process::Ended(TaskState::Failed);
            self.idle = false;
        }
    }

    /// Whether a restart would find the newest plan.
    pub(super) fn has_stored_plan(&self) -> bool {
        self.published.as_ref().is_some_and(|plan| plan.version() == self.stored)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.idle
    }

    pub(super) fn tick(&mut self, ctx: &mut Ctx<'_>, broken_images: &BTreeSet<String>, disk_ms: u64) {
        if self.removed {
            return;
        }
        self.store_plan(ctx, disk_ms);
        self.apply_plan(ctx);
        if let Some(plan) = self.kernel.as_ref().filter(|_| !self.idle) {
            let missing_images = BTreeSet::new();
            let Delays { start_ms, stop_ms, .. } = self.delays;
            let runtime = Runtime { start_ms, stop_ms, broken_images, missing_images: &missing_images };
            self.machine.run_processes(plan, ctx.now_ms, runtime);
            self.machine.reconcile_keys(plan.encryption.as_ref(), ctx.keys_made);
            let waits = |process: &Process| matches!(process, Process::Starting { .. } | Process::Stopping { .. });
            self.idle = !self.machine.processes.values().any(waits);
            self.update_report(ctx.now_ms);
        }
        self.run_link(ctx);
    }

    /// The writer of plans stores the newest one. A write is atomic: a crash leaves the former plan
    /// or the new one.
    fn store_plan(&mut self, ctx: &Ctx<'_>, disk_ms: u64) {
        if let Some((_, plan)) = self.storing.take_if(|(due_ms, _)| *due_ms <= ctx.now_ms) {
            self.stored = plan.version();
            self.disk_plan = Some(plan);
        }
        if let (None, Some(plan)) = (&self.storing, &self.published)
            && plan.version() != self.stored
        {
            self.storing = Some((ctx.now_ms + disk_ms, Rc::clone(plan)));
        }
    }

    fn apply_plan(&mut self, ctx: &mut Ctx<'_>) {
        let Some(published) = &self.published else { return };
        if let Some((_, plan)) = self.applying.take_if(|(due_ms, _)| *due_ms <= ctx.now_ms && !self.stuck) {
            if plan.version() < self.acked_plan {
                let (version, acked) = (plan.version(), self.acked_plan);
                ctx.violation(format!("{} puts {version:?} into effect, and has acked {acked:?}", self.id));
            }
            if plan.version() < self.applied {
                ctx.violation(format!("the plan of {} went back to {:?}", self.id, plan.version()));
            }
            ctx.trace(|| format!("{} puts {:?} into effect", self.id, plan.version()));
            self.applied = plan.version();
            (self.kernel, self.idle) = (Some(plan), false);
        }
        if self.applying.is_none() && published.version() != self.applied {
            let due_ms = ctx.now_ms + ctx.rng.random_range(0..=self.delays.plan_ms);
            self.applying = Some((due_ms, Rc::clone(published)));
        }
    }

    /// Brings the report up to date.
    fn update_report(&mut self, now_ms: u64) {
        let processes = &self.machine.processes;
        let same = |((id, status), (known, process)): ((&TaskId, TaskState), (&TaskId, &Process))| {
            id == known && status == process.state()
        };
        let known = self.report.tasks.iter().map(|(id, status)| (id, status.state));
        let tasks_changed = self.report.tasks.len() != processes.len() || !known.zip(processes).all(same);
        if tasks_changed {
            let former: BTreeMap<_, _> = std::mem::take(&mut self.report.tasks).into_iter().collect();
            let status = |(id, process): (&TaskId, &Process)| {
                let known = former.get(id).filter(|status| status.state == process.state()).cloned();
                (id.clone(), known.unwrap_or_else(|| observed(process.state(), now_ms)))
            };
            self.report.tasks = processes.iter().map(status).collect();
        }
        let keys: Vec<_> = self.machine.keys.iter().map(|(key, _)| *key).collect();
        if tasks_changed || keys != self.report.keys {
            self.report.keys = keys;
            self.reports += 1;
        }
        self.report_version();
    }

    fn report_version(&mut self) {
        (self.report.acked, self.report.epoch) = (self.applied.generation, self.applied.epoch);
    }

    pub(super) fn managers(&self) -> Vec<usize> {
        let planned = self.published.iter().flat_map(|plan| plan.managers.iter().map(|m| host_at(m.rpc_addr)));
        let mut managers: Vec<usize> = planned.collect();
        // The manager that the node joined by.
        if !managers.contains(&0) {
            managers.push(0);
        }
        managers
    }

    fn run_link(&mut self, ctx: &mut Ctx<'_>) {
        match self.link {
            Link::Waiting { until_ms } if ctx.now_ms >= until_ms => {
                let managers = self.managers();
                let manager = managers[self.next_manager % managers.len()];
                self.open(ctx, manager, false);
            }
            Link::Opening { conn, until_ms, .. } if ctx.now_ms >= until_ms => {
                ctx.close(conn);
                self.wait(ctx);
            }
            Link::Open { conn, manager } => {
                self.report_version();
                let acked = self.ack(ctx);
                let changed = self.reports != self.sent.report;
                let heartbeat_ms = self.published.as_ref().map_or(1_000, |plan| plan.heartbeat_ms);
                if changed || acked != self.sent.acked || ctx.now_ms >= self.sent.at_ms + heartbeat_ms {
                    let body = changed.then(|| Box::new(self.report.clone()));
                    ctx.send(manager, Packet::Session(conn, SessionBody::Message { acked, report: body }));
                    self.sent = Sent { acked, report: self.reports, at_ms: ctx.now_ms };
                }
            }
            Link::Waiting { .. } | Link::Opening { .. } => {}
        }
    }

    fn ack(&mut self, ctx: &mut Ctx<'_>) -> PlanVersion {
        let (applied, stored) = match self.published.as_ref().filter(|_| ctx.does(Sabotage::AckEarly)) {
            Some(plan) => (plan.version(), plan.version()),
            None => (self.applied, self.stored),
        };
        let acked = self.acks.ack(applied, stored);
        if acked > self.acked {
            ctx.acks(acked, self.kernel.as_ref(), self.disk_plan.as_ref());
            (self.acked, self.acked_plan) = (acked, self.stored);
        }
        acked
    }

    fn open(&mut self, ctx: &mut Ctx<'_>, manager: usize, redirected: bool) {
        self.update_report(ctx.now_ms);
        let acked = self.ack(ctx);
        let (conn, report) = (ctx.connect(manager), Box::new(self.report.clone()));
        ctx.send(manager, Packet::Session(conn, SessionBody::Open { acked, report }));
        self.sent = Sent { acked, report: self.reports, at_ms: ctx.now_ms };
        self.link = Link::Opening { conn, manager, redirected, until_ms: ctx.now_ms + FIRST_REPLY_MS };
    }

    fn wait(&mut self, ctx: &mut Ctx<'_>) {
        let pause_ms = RETRY_MS[self.failures.min(RETRY_MS.len() - 1)];
        self.failures += 1;
        self.next_manager += 1;
        self.link = Link::Waiting { until_ms: ctx.now_ms + ctx.rng.random_range(pause_ms / 2..=pause_ms) };
    }

    /// The connection has ended.
    pub(super) fn closed(&mut self, ctx: &mut Ctx<'_>, closed: u64) {
        if let Link::Opening { conn, .. } | Link::Open { conn, .. } = self.link
            && conn == closed
        {
            self.wait(ctx);
        }
    }

    pub(super) fn receive(&mut self, ctx: &mut Ctx<'_>, session: u64, body: SessionBody) {
        let (conn, manager, redirected, established) = match self.link {
            Link::Opening { conn, manager, redirected, .. } => (conn, manager, redirected, false),
            Link::Open { conn, manager } => (conn, manager, false, true),
            Link::Waiting { .. } => return,
        };
        if conn != session {
            return;
        }
        match body {
            SessionBody::Plan(PlanMessage::Unchanged(generation)) => {
                if !established {
                    ctx.violation(format!("{} got a generation before a plan", self.id));
                }
                self.acks.unchanged(generation);
            }
            SessionBody::Plan(PlanMessage::Plan(plan)) => {
                let takes_any = ctx.does(Sabotage::TakeOlderPlans);
                let current = self.published.as_deref().filter(|_| !takes_any);
                match receive(&mut self.acks, current, *plan) {
                    Received::Publish(plan) => self.published = Some(Rc::from(plan)),
                    Received::Unchanged => {}
                    Received::Outdated(reason) => {
                        ctx.trace(|| format!("{} refuses a plan: {reason}", self.id));
                        ctx.close(conn);
                        return self.wait(ctx);
                    }
                }
                (self.link, self.failures) = (Link::Open { conn, manager }, 0);
            }
            SessionBody::Redirect(leader) => {
                ctx.close(conn);
                match leader.filter(|leader| !redirected && *leader != manager) {
                    Some(leader) => self.open(ctx, leader, true),
                    None => self.wait(ctx),
                }
            }
            SessionBody::Refused { removed } => {
                ctx.close(conn);
                if removed && ctx.is_member(&self.id) {
                    ctx.violation(format!("{} was told that it was removed", self.id));
                }
                if removed {
                    // As `link`: all tasks stop.
                    ctx.trace(|| format!("{} was removed", self.id));
                    self.removed = true;
                    self.power_off();
                }
                self.wait(ctx);
            }
            SessionBody::Open { .. } | SessionBody::Message { .. } => {}
        }
    }
}
