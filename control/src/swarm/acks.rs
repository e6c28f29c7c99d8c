//! Which generation this node may ack. The agent acks the plans that it programmed; a plan that stayed the same at a later
//! generation is acked for it, without waking it.

/// Pure bookkeeping between the leader's messages and the agent's acks.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct AckTracker {
    /// Generation of the plan that the agent has.
    delivered: u64,
    /// The latest generation at which that plan is still the right one.
    valid_until: u64,
    /// Greatest generation acked so far.
    acked: u64,
}

impl AckTracker {
    /// A changed plan was handed to the agent.
    pub(super) fn deliver(&mut self, generation: u64) {
        self.delivered = generation;
        self.valid_until = generation;
    }

    /// The plan is the same at `generation`.
    pub(super) fn unchanged(&mut self, generation: u64) {
        self.valid_until = self.valid_until.max(generation);
    }

    /// What to tell the leader, where the agent's own latest ack is `programmed`, and the plan on the disk is `stored`.
    pub(super) fn ack(&mut self, programmed: u64, stored: u64) -> u64 {
        // Exactly that plan: an ack that is left over from an earlier cluster proves nothing.
        if programmed == self.delivered && stored == self.delivered && self.delivered > 0 {
            self.acked = self.acked.max(self.valid_until);
        }
        self.acked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_plan_is_acked_without_the_agent() {
        let mut acks = AckTracker::default();
        assert_eq!(acks.ack(0, 0), 0, "no plan, nothing to ack");
        acks.deliver(5);
        assert_eq!(acks.ack(0, 5), 0, "not programmed yet");
        acks.unchanged(7);
        assert_eq!(acks.ack(0, 5), 0);
        assert_eq!(acks.ack(5, 5), 7, "programmed, and still right at 7");
        acks.unchanged(9);
        assert_eq!(acks.ack(5, 5), 9);
    }

    #[test]
    fn a_changed_plan_waits_for_the_agent_and_acks_never_go_back() {
        let mut acks = AckTracker::default();
        acks.deliver(5);
        assert_eq!(acks.ack(5, 5), 5);
        acks.deliver(8);
        acks.unchanged(9);
        assert_eq!(acks.ack(5, 8), 5, "the new plan is not programmed");
        assert_eq!(acks.ack(8, 5), 5, "nor on the disk: a daemon that is killed now would go back to the old one");
        assert_eq!(acks.ack(8, 8), 9);
    }
}
