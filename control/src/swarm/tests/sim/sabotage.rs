//! Mistakes that a run makes on purpose, in the models. They show that the simulation can fail: for
//! each of them a seed must violate an invariant.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// The leader sends plans without the confirmation of a quorum.
    KeepLease,
    /// Nodes ack plans that are neither stored nor in effect.
    AckEarly,
    /// A change is applied as often as it is in the log.
    ApplyTwice,
    /// A manager whose log is lost votes with its former Raft id.
    ReuseRaftId,
    /// Managers answer before their vote and their log are synced.
    ReplyBeforeSync,
    /// Managers vote before the vote is synced.
    VoteBeforeSync,
    /// A snapshot does not have the outcomes of the changes before it.
    ForgetOutcomes,
    /// Nodes take any plan.
    TakeOlderPlans,
    /// The leader accepts messages of earlier sessions of a node.
    AcceptFormerSessions,
    /// The leader ends the quarantine of an address while its task may run on a node that is down.
    ReleaseEarly,
    /// The leader does not notice that its process was paused.
    IgnorePauses,
    /// The leader sets silent nodes to down without the confirmation of a quorum.
    AssumeSilence,
    /// The leader takes all other managers for ones that answer, when it removes a voter.
    AssumeAnswers,
}
