//! The context of one part of a decision: its inputs, and the commands that it proposes.

use weft_model::{
    ClusterState, Command, Rejection, TaskId,
    state::{Service, Slot, Task, TaskState, Traffic, UpdateStatus},
};

use super::{acks::Acks, restart::Restart};

/// The maximum number of commands in one decision. They become one log entry, which must fit one
/// RPC message. A decision reads all tasks, so a large change takes time that grows with the number
/// of decisions that it needs.
pub(super) const MAX_COMMANDS: usize = 2_048;

/// Makes the command that replaces a refused one.
pub(super) type Alternative = Box<dyn FnOnce(&Rejection) -> Command>;

/// A command that a part proposes.
pub(super) struct Proposal {
    pub(super) command: Command,
    /// `None`: the cluster state must accept the command.
    pub(super) if_refused: Option<Alternative>,
}

/// The inputs of one part, and the commands that it proposes.
pub(super) struct Context<'a> {
    /// The cluster state at the start of the part. The commands of the part are not applied to it.
    pub(super) state: &'a ClusterState,
    pub(super) now_ms: u64,
    pub(super) acks: &'a Acks,
    /// The earliest future time that was passed to [`Context::is_due`].
    pub(super) wake_at_ms: Option<u64>,
    pub(super) random: &'a mut dyn FnMut() -> u128,
    pub(super) proposals: Vec<Proposal>,
}

impl Context<'_> {
    /// Whether the clock has reached `at_ms`. If not, the leader decides again at `at_ms`.
    pub(super) fn is_due(&mut self, at_ms: u64) -> bool {
        if self.now_ms >= at_ms {
            return true;
        }
        self.wake_at_ms = Some(self.wake_at_ms.map_or(at_ms, |wake| wake.min(at_ms)));
        false
    }

    /// Whether this part has proposed as many commands as one decision can hold.
    pub(super) fn is_full(&self) -> bool {
        self.proposals.len() >= MAX_COMMANDS
    }

    /// Proposes a command that the cluster state must accept.
    pub(super) fn propose(&mut self, command: Command) {
        self.proposals.push(Proposal { command, if_refused: None });
    }

    /// Proposes a command that depends on what users did meanwhile, and another one in case the
    /// cluster state refuses it.
    pub(super) fn propose_or(&mut self, command: Command, if_refused: impl FnOnce(&Rejection) -> Command + 'static) {
        self.proposals.push(Proposal { command, if_refused: Some(Box::new(if_refused)) });
    }

    /// Creates a task in a slot. With `desired` [`TaskState::Ready`] the task is prepared and then
    /// held, until the earlier tasks of the slot have ended and the clock has reached
    /// `restart.not_before_ms`.
    pub(super) fn create_task(&mut self, service: &Service, slot: &Slot, desired: TaskState, restart: Restart) {
        let id = TaskId::from_random((self.random)());
        self.propose(Command::CreateTask {
            id,
            service: service.id.clone(),
            slot: slot.clone(),
            desired,
            not_before_ms: restart.not_before_ms,
            restarts: restart.restarts,
        });
    }

    pub(super) fn set_desired(&mut self, task: &Task, desired: TaskState) {
        self.propose(Command::SetDesired { id: task.id.clone(), desired });
    }

    pub(super) fn set_traffic(&mut self, task: &Task, traffic: Traffic) {
        self.propose(Command::SetTraffic { id: task.id.clone(), traffic });
    }

    /// Stops a task. All nodes stop sending new flows to it before its own node stops it.
    pub(super) fn stop_task(&mut self, task: &Task, desired: TaskState) {
        if task.desired < desired {
            self.set_desired(task, desired);
        }
        if !task.status.state.is_terminal() && matches!(task.traffic, Traffic::Local | Traffic::Active) {
            self.set_traffic(task, Traffic::Draining);
        }
    }

    pub(super) fn set_update_status(&mut self, service: &Service, status: UpdateStatus) {
        self.propose(Command::SetUpdateStatus { service: service.id.clone(), version: service.meta.version, status });
    }
}
