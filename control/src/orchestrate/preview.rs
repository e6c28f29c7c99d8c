//! A preview of the cluster state: a copy to which the commands of a decision are applied.

use std::borrow::Cow;

use weft_model::{Applied, ClusterState, Command, Rejection};

use super::{
    Decision,
    acks::Acks,
    context::{Context, MAX_COMMANDS, Proposal},
};
use crate::state::execute;

/// A copy of the cluster state, the commands that have been applied to it, and the inputs of the
/// decision.
pub(super) struct Preview<'a> {
    /// Copied when the first command is executed.
    state: Cow<'a, ClusterState>,
    now_ms: u64,
    acks: &'a Acks,
    random: &'a mut dyn FnMut() -> u128,
    wake_at_ms: Option<u64>,
    commands: Vec<Command>,
    refused: Vec<Rejection>,
}

impl<'a> Preview<'a> {
    pub(super) fn new(
        state: &'a ClusterState,
        now_ms: u64,
        acks: &'a Acks,
        random: &'a mut dyn FnMut() -> u128,
    ) -> Self {
        Self {
            state: Cow::Borrowed(state),
            now_ms,
            acks,
            random,
            wake_at_ms: None,
            commands: Vec::new(),
            refused: Vec::new(),
        }
    }
}

impl Preview<'_> {
    pub(super) fn state(&self) -> &ClusterState {
        &self.state
    }

    /// The number of commands that were executed.
    pub(super) fn len(&self) -> usize {
        self.commands.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.commands.len() >= MAX_COMMANDS
    }

    /// Clears the wake-up time of the last round: every round computes it again.
    pub(super) fn start_round(&mut self) {
        self.wake_at_ms = None;
    }

    /// Runs one part of the decision on the current copy, then executes the commands that the part
    /// proposed.
    pub(super) fn run<T>(&mut self, part: impl FnOnce(&mut Context<'_>) -> T) -> T {
        let mut ctx = Context {
            state: &self.state,
            now_ms: self.now_ms,
            acks: self.acks,
            wake_at_ms: self.wake_at_ms,
            random: &mut *self.random,
            proposals: Vec::new(),
        };
        let result = part(&mut ctx);
        let Context { proposals, wake_at_ms, .. } = ctx;
        self.wake_at_ms = wake_at_ms;
        for Proposal { command, if_refused } in proposals {
            if self.is_full() {
                break;
            }
            match (self.execute(command), if_refused) {
                (Ok(_), _) => {}
                (Err(refused), Some(alternative)) => self.execute_or_report(alternative(&refused)),
                (Err(refused), None) => self.refused.push(refused),
            }
        }
        result
    }

    /// Executes a command that the cluster state must accept. If the command is refused, the
    /// decision reports it as a bug.
    pub(super) fn execute_or_report(&mut self, command: Command) {
        if let Err(refused) = self.execute(command) {
            self.refused.push(refused);
        }
    }

    /// Applies the command to the copy. An accepted command becomes part of the decision.
    pub(super) fn execute(&mut self, command: Command) -> Result<Applied, Rejection> {
        if let Cow::Borrowed(state) = self.state {
            let mut copy = state.clone();
            copy.index += 1;
            copy.now_ms = self.now_ms;
            self.state = Cow::Owned(copy);
        }
        let applied = execute(self.state.to_mut(), command.clone())?;
        self.commands.push(command);
        Ok(applied)
    }

    pub(super) fn into_decision(self) -> Decision {
        let commands = if self.commands.len() > 1 { vec![Command::Batch(self.commands)] } else { self.commands };
        Decision { commands, wake_at_ms: self.wake_at_ms, refused: self.refused }
    }
}
