//! Decides which plan this node may ack. The session module calls it.
//!
//! The agent reports the version of the plan that the kernel holds. If the leader says that this
//! plan is unchanged at a later generation, the node acks the later generation without a new report
//! of the agent.

use weft_model::plan::PlanVersion;

/// Computes the ack from the leader's messages and the agent's reports. Pure.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(in crate::swarm) struct AckTracker {
    /// The version of the plan that was published to the agent.
    delivered: PlanVersion,
    /// The latest generation at which that plan is unchanged.
    valid_until: u64,
    /// The greatest generation acked so far, of the epoch of `delivered`.
    acked: u64,
}

impl AckTracker {
    /// A changed plan was published. The generations of another epoch belong to another log, so an
    /// ack of the former epoch means nothing in the new one.
    pub(in crate::swarm) fn deliver(&mut self, version: PlanVersion) {
        if version.epoch != self.delivered.epoch {
            self.acked = 0;
        }
        self.delivered = version;
        self.valid_until = version.generation;
    }

    /// The plan is the same at `generation`.
    pub(in crate::swarm) fn unchanged(&mut self, generation: u64) {
        self.valid_until = self.valid_until.max(generation);
    }

    /// The version up to which this node knows its plan.
    pub(in crate::swarm) fn known(&self) -> PlanVersion {
        PlanVersion { generation: self.valid_until, ..self.delivered }
    }

    /// The epoch of the plan that was published, and the generation of it to ack. `programmed` is
    /// the version that the agent reports, `stored` that of the plan on the disk. Never goes back.
    pub(in crate::swarm) fn ack(&mut self, programmed: PlanVersion, stored: PlanVersion) -> PlanVersion {
        // Compare for equality: a report may still be of an earlier epoch or cluster.
        if programmed == self.delivered && stored == self.delivered && self.delivered.generation > 0 {
            self.acked = self.acked.max(self.valid_until);
        }
        PlanVersion { epoch: self.delivered.epoch, generation: self.acked }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(generation: u64) -> PlanVersion {
        PlanVersion { epoch: 1, generation }
    }

    #[test]
    fn acks_an_unchanged_plan_without_a_new_report() {
        let mut acks = AckTracker::default();
        let none = PlanVersion::default();
        assert_eq!(acks.ack(none, none), none, "without a plan there is nothing to ack");
        acks.deliver(at(5));
        assert_eq!(acks.ack(none, at(5)), at(0), "the plan is not programmed yet");
        acks.unchanged(7);
        assert_eq!(acks.ack(none, at(5)), at(0));
        assert_eq!(acks.ack(at(5), at(5)), at(7), "the plan is programmed, and unchanged at 7");
        acks.unchanged(9);
        assert_eq!(acks.ack(at(5), at(5)), at(9));
    }

    #[test]
    fn acks_a_changed_plan_once_it_is_programmed_and_stored_and_never_goes_back() {
        let mut acks = AckTracker::default();
        acks.deliver(at(5));
        assert_eq!(acks.ack(at(5), at(5)), at(5));
        acks.deliver(at(8));
        acks.unchanged(9);
        assert_eq!(acks.ack(at(5), at(8)), at(5), "the new plan is stored, but not programmed");
        assert_eq!(acks.ack(at(8), at(5)), at(5), "it is programmed, but a restart would find the old plan");
        assert_eq!(acks.ack(at(8), at(8)), at(9));
    }

    #[test]
    fn a_new_epoch_begins_without_an_ack() {
        let mut acks = AckTracker::default();
        acks.deliver(at(8));
        assert_eq!(acks.ack(at(8), at(8)), at(8));
        let reformed = |generation| PlanVersion { epoch: 2, generation };
        acks.deliver(reformed(8));
        assert_eq!(acks.ack(at(8), at(8)), reformed(0), "the same generation of the former epoch");
        assert_eq!(acks.ack(reformed(8), at(8)), reformed(0));
        assert_eq!(acks.ack(reformed(8), reformed(8)), reformed(8));
    }
}
