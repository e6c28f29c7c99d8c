//! Decides which plan generation this node may ack. The session module calls it.
//!
//! The agent reports the generation of the plan that the kernel holds. If the leader says that this
//! plan is unchanged at a later generation, the node acks the later generation without a new report
//! of the agent.

/// Computes the ack from the leader's messages and the agent's reports. Pure.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct AckTracker {
    /// The generation of the plan that was published to the agent.
    delivered: u64,
    /// The latest generation at which that plan is unchanged.
    valid_until: u64,
    /// The greatest generation acked so far.
    acked: u64,
}

impl AckTracker {
    /// A changed plan was published.
    pub(super) fn deliver(&mut self, generation: u64) {
        self.delivered = generation;
        self.valid_until = generation;
    }

    /// The plan is the same at `generation`.
    pub(super) fn unchanged(&mut self, generation: u64) {
        self.valid_until = self.valid_until.max(generation);
    }

    /// The generation to ack. `programmed` is the generation that the agent reports, `stored` that
    /// of the plan on the disk. Never goes back.
    pub(super) fn ack(&mut self, programmed: u64, stored: u64) -> u64 {
        // Compare for equality: a report may still be of an earlier cluster, with a greater
        // generation.
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
    fn acks_an_unchanged_plan_without_a_new_report() {
        let mut acks = AckTracker::default();
        assert_eq!(acks.ack(0, 0), 0, "without a plan there is nothing to ack");
        acks.deliver(5);
        assert_eq!(acks.ack(0, 5), 0, "the plan is not programmed yet");
        acks.unchanged(7);
        assert_eq!(acks.ack(0, 5), 0);
        assert_eq!(acks.ack(5, 5), 7, "the plan is programmed, and unchanged at 7");
        acks.unchanged(9);
        assert_eq!(acks.ack(5, 5), 9);
    }

    #[test]
    fn acks_a_changed_plan_once_it_is_programmed_and_stored_and_never_goes_back() {
        let mut acks = AckTracker::default();
        acks.deliver(5);
        assert_eq!(acks.ack(5, 5), 5);
        acks.deliver(8);
        acks.unchanged(9);
        assert_eq!(acks.ack(5, 8), 5, "the new plan is stored, but not programmed");
        assert_eq!(acks.ack(8, 5), 5, "it is programmed, but a restart would find the old plan");
        assert_eq!(acks.ack(8, 8), 9);
    }
}
