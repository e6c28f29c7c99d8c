//! Tests of the changes of the voters, and of what may not be demoted.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{
    ClusterState, Command, NodeId,
    spec::{Availability, NodeSpec, Role},
};

use crate::{
    fixture::TestCluster,
    raft::{Voter, Voters},
    swarm::manager::voters::{
        Members, VoterChange, check_demotion, flag_updates, keeps_quorum, may_be_member, next_change,
    },
};

/// A cluster state with managers `n1`, `n2`, … whose raft ids are 1, 2, ….
struct Quorum {
    cluster: TestCluster,
    nodes: Vec<NodeId>,
}

impl Quorum {
    fn new(managers: usize) -> Self {
        let mut cluster = TestCluster::new();
        let mut nodes = vec![cluster.first_node()];
        for number in 2..=managers {
            let join = cluster.joining(&format!("n{number}"), Role::Manager);
            nodes.push(join.id.clone());
            cluster.ok(Command::JoinNode(Box::new(join)));
        }
        Self { cluster, nodes }
    }

    fn state(&self) -> &ClusterState {
        &self.cluster.state
    }

    fn demote(&mut self, raft_id: usize) {
        let node = self.cluster.state.nodes.get_mut(&self.nodes[raft_id - 1]).expect("the node");
        node.spec.role = Role::Worker;
    }

    fn voter(&self, raft_id: u64) -> Voter {
        let node = &self.cluster.state.nodes[&self.nodes[raft_id as usize - 1]];
        Voter { node: node.id.clone(), rpc_addr: node.rpc_addr }
    }

    /// A log's membership: `all` are its members, and `votes` are the voters among them.
    fn voters(&self, votes: &[u64], all: &[u64]) -> Voters {
        let nodes: BTreeMap<u64, Voter> = all.iter().map(|&id| (id, self.voter(id))).collect();
        Voters::new(vec![votes.iter().copied().collect::<BTreeSet<u64>>()], nodes)
    }

    /// The next change if all managers except `silent` answer.
    fn next_change_without(
        &self,
        silent: &[usize],
        voters: &Voters,
        replicated: &[(u64, u64)],
        me: u64,
        wait_for_all: bool,
    ) -> Option<VoterChange> {
        let replicated = replicated.iter().copied().collect();
        let answering = self.answering(silent);
        let members = Members { voters, replicated: &replicated, last: 1_000, me, answering: &answering, wait_for_all };
        next_change(self.state(), members)
    }

    fn next_change(&self, voters: &Voters, replicated: &[(u64, u64)], me: u64) -> Option<VoterChange> {
        self.next_change_without(&[], voters, replicated, me, true)
    }

    fn answering(&self, silent: &[usize]) -> BTreeSet<NodeId> {
        let answer = self.nodes.iter().enumerate().filter(|(at, _)| !silent.contains(&(at + 1)));
        answer.map(|(_, node)| node.clone()).collect()
    }

    fn demotion(&self, raft_id: usize) -> Command {
        let node = &self.cluster.state.nodes[&self.nodes[raft_id - 1]];
        let spec = NodeSpec { role: Role::Worker, ..node.spec.clone() };
        Command::UpdateNode { id: node.id.clone(), version: node.meta.version, spec }
    }
}

fn promote(raft_ids: impl Into<BTreeSet<u64>>) -> Option<VoterChange> {
    Some(VoterChange::Promote { raft_ids: raft_ids.into() })
}

fn demote(raft_ids: impl Into<BTreeSet<u64>>) -> Option<VoterChange> {
    Some(VoterChange::Demote { raft_ids: raft_ids.into() })
}

#[test]
fn a_new_manager_is_a_learner_until_it_has_caught_up() {
    let quorum = Quorum::new(2);
    let alone = quorum.voters(&[1], &[1]);
    let add = VoterChange::AddLearners { learners: [(2, quorum.voter(2))].into() };
    assert_eq!(quorum.next_change(&alone, &[(1, 1_000)], 1), Some(add));
    let learning = quorum.voters(&[1], &[1, 2]);
    assert_eq!(quorum.next_change(&learning, &[(1, 1_000)], 1), None, "its progress is not known yet");
    assert_eq!(quorum.next_change(&learning, &[(1, 1_000), (2, 500)], 1), None, "it lacks too many entries");
    let caught_up = [(1, 1_000), (2, 990)];
    assert_eq!(quorum.next_change(&learning, &caught_up, 1), promote([2]));
    assert_eq!(quorum.next_change_without(&[2], &learning, &caught_up, 1, false), None, "it does not answer");
    let voting = quorum.voters(&[1, 2], &[1, 2]);
    assert_eq!(quorum.next_change(&voting, &caught_up, 1), None, "nothing is left to change");
}

#[test]
fn several_promotions_are_one_change() {
    let quorum = Quorum::new(3);
    let learners = [(2, quorum.voter(2)), (3, quorum.voter(3))].into();
    let alone = quorum.voters(&[1], &[1]);
    assert_eq!(quorum.next_change(&alone, &[(1, 1_000)], 1), Some(VoterChange::AddLearners { learners }));
    let learning = quorum.voters(&[1], &[1, 2, 3]);
    let one_ready = [(1, 1_000), (2, 990), (3, 10)];
    assert_eq!(quorum.next_change(&learning, &one_ready, 1), None, "it waits for the other one");
    assert_eq!(quorum.next_change_without(&[], &learning, &one_ready, 1, false), promote([2]), "until the limit");
    assert_eq!(quorum.next_change(&learning, &[(1, 1_000), (2, 990), (3, 990)], 1), promote([2, 3]));
}

#[test]
fn a_demoted_leader_is_removed_last_and_only_if_another_manager_votes() {
    let mut quorum = Quorum::new(4);
    quorum.demote(1);
    quorum.demote(2);
    quorum.demote(4);
    let all = quorum.voters(&[1, 2, 3, 4], &[1, 2, 3, 4]);
    assert_eq!(quorum.next_change(&all, &[], 1), demote([2, 4]), "the leader is demoted last");
    assert_eq!(quorum.next_change(&quorum.voters(&[1, 3], &[1, 3]), &[], 1), demote([1]));
    let learning = quorum.voters(&[1], &[1, 3]);
    assert_eq!(quorum.next_change(&learning, &[(1, 1_000), (3, 1)], 1), None, "the new manager has to catch up first");
}

/// The demotions were accepted, and then managers failed.
#[test]
fn a_voter_is_not_removed_while_the_others_that_answer_are_no_majority() {
    let mut quorum = Quorum::new(3);
    quorum.demote(2);
    let all = quorum.voters(&[1, 2, 3], &[1, 2, 3]);
    assert_eq!(quorum.next_change_without(&[3], &all, &[], 1, true), None);
    assert_eq!(quorum.next_change(&all, &[], 1), demote([2]));
    assert_eq!(quorum.next_change_without(&[2], &all, &[], 1, true), demote([2]), "the silent one can be removed");
    let answering = quorum.answering(&[3]);
    assert!(keeps_quorum(&all, &[3].into(), 1, &answering));
    assert!(!keeps_quorum(&all, &[2].into(), 1, &answering));
    assert!(!keeps_quorum(&all, &[1, 2, 3].into(), 1, &answering), "no voter is no quorum");
}

#[test]
fn a_demotion_is_refused_if_the_remaining_managers_that_answer_are_no_majority() {
    let quorum = Quorum::new(3);
    let check = |raft_id: usize, silent: &[usize]| {
        let answering = quorum.answering(silent);
        check_demotion(quorum.state(), &quorum.demotion(raft_id), |node| answering.contains(node))
    };
    for raft_id in 1..=3 {
        assert_eq!(check(raft_id, &[]), Ok(()));
        assert_eq!(check(raft_id, &[raft_id]), Ok(()), "the silent manager itself can be demoted");
    }
    let refused = check(2, &[3]).expect_err("n1 alone would be no majority").to_string();
    for part in ["without n2", "1 of the 2 managers", "2 are needed", "n3 (192.0.2.3:2377)", "start these first"] {
        assert!(refused.contains(part), "{refused}");
    }
    let node = &quorum.cluster.state.nodes[&quorum.nodes[1]];
    let drain = NodeSpec { availability: Availability::Drain, ..node.spec.clone() };
    let other = Command::UpdateNode { id: node.id.clone(), version: node.meta.version, spec: drain };
    assert_eq!(check_demotion(quorum.state(), &other, |_| false), Ok(()), "this is no demotion");
}

#[test]
fn a_learner_that_is_no_longer_a_manager_is_removed() {
    let mut quorum = Quorum::new(2);
    quorum.demote(2);
    let learning = quorum.voters(&[1], &[1, 2]);
    let remove = VoterChange::RemoveLearners { raft_ids: [2].into() };
    assert_eq!(quorum.next_change(&learning, &[(2, 1_000)], 1), Some(remove));
}

#[test]
fn the_id_of_a_lost_log_is_removed_before_the_new_one_votes() {
    let mut quorum = Quorum::new(3);
    let all = quorum.voters(&[1, 2, 3], &[1, 2, 3]);
    let node = quorum.nodes[1].clone();
    quorum.cluster.ok(Command::ReplaceRaftId { node: node.clone(), raft_id: 2 });
    let voter = Voter { rpc_addr: quorum.voter(2).rpc_addr, node };
    let add = VoterChange::AddLearners { learners: [(4, voter)].into() };
    assert_eq!(quorum.next_change_without(&[2], &all, &[], 1, true), Some(add));
    let caught_up = [(1, 1_000), (3, 1_000), (4, 1_000)];
    let member = |id: u64| (id, quorum.voter(if id == 4 { 2 } else { id }));
    let voters = |votes: &[u64], ids: &[u64]| {
        let votes = votes.iter().copied().collect::<BTreeSet<u64>>();
        Voters::new(vec![votes], ids.iter().map(|id| member(*id)).collect::<BTreeMap<_, _>>())
    };
    assert_eq!(quorum.next_change(&voters(&[1, 2, 3], &[1, 2, 3, 4]), &caught_up, 1), demote([2]));
    assert_eq!(quorum.next_change(&voters(&[1, 3], &[1, 3, 4]), &caught_up, 1), promote([4]));
}

#[test]
fn a_new_address_of_a_manager_is_a_change_of_the_membership() {
    let mut quorum = Quorum::new(2);
    let all = quorum.voters(&[1, 2], &[1, 2]);
    let moved = "192.0.2.77:2377".parse().expect("an address");
    let node = quorum.nodes[1].clone();
    quorum.cluster.state.nodes.get_mut(&node).expect("the node").rpc_addr = moved;
    let members = BTreeMap::from([(2, Voter { node, rpc_addr: moved })]);
    assert_eq!(quorum.next_change(&all, &[], 1), Some(VoterChange::Readdress { members }));
}

#[test]
fn raft_messages_are_accepted_of_members_and_of_members_to_come() {
    let mut quorum = Quorum::new(3);
    let (n2, n3) = (quorum.nodes[1].clone(), quorum.nodes[2].clone());
    let voters = quorum.voters(&[1, 2], &[1, 2]);
    let stranger = NodeId::from_random(99);
    assert!(may_be_member(quorum.state(), &voters, &n2, 2));
    assert!(!may_be_member(quorum.state(), &voters, &n3, 2), "the id belongs to another node");
    assert!(may_be_member(quorum.state(), &voters, &n3, 3), "the log here may lack the entry that adds it");
    assert!(may_be_member(quorum.state(), &voters, &stranger, 4), "the state here may lack the node");
    assert!(!may_be_member(quorum.state(), &voters, &stranger, 3));
    assert!(may_be_member(&ClusterState::default(), &Voters::new(vec![], ()), &stranger, 3), "nothing is known yet");

    quorum.cluster.ok(quorum.demotion(3));
    quorum.cluster.ok(Command::ClearRaftConfig { id: n3.clone() });
    assert!(!may_be_member(quorum.state(), &voters, &n3, 3), "its id has ended");
    assert!(!may_be_member(quorum.state(), &voters, &n3, 0), "it has no id");
    quorum.cluster.ok(Command::ClearRaftConfig { id: n2.clone() });
    quorum.cluster.state.nodes.remove(&n2);
    assert!(!may_be_member(quorum.state(), &quorum.voters(&[1], &[1]), &n2, 2), "it was removed");
}

#[test]
fn a_joint_configuration_of_an_earlier_leader_is_finished_first() {
    let quorum = Quorum::new(3);
    let nodes: BTreeMap<u64, Voter> = (1..=3).map(|id| (id, quorum.voter(id))).collect();
    let joint = Voters::new(vec![[1].into(), [1, 2].into()], nodes);
    assert_eq!(quorum.next_change(&joint, &[(3, 1_000)], 1), Some(VoterChange::FinishJoint));
    assert_eq!(flag_updates(quorum.state(), &joint, false), [], "no flag is updated before");
}

#[test]
fn the_voter_flag_follows_the_log() {
    let quorum = Quorum::new(2);
    assert_eq!(flag_updates(quorum.state(), &quorum.voters(&[1], &[1, 2]), false), [], "the flags are right already");
    let updates = flag_updates(quorum.state(), &quorum.voters(&[1, 2], &[1, 2]), false);
    assert_eq!(updates, [Command::SetVoter { id: quorum.nodes[1].clone(), voter: true }]);
}

#[test]
fn a_demoted_manager_stays_in_the_raft_config_until_no_change_can_need_it() {
    let mut quorum = Quorum::new(2);
    quorum.demote(2);
    let clear_raft_config = Command::ClearRaftConfig { id: quorum.nodes[1].clone() };
    let updates = |all: &[u64], changing| flag_updates(quorum.state(), &quorum.voters(&[1], all), changing);
    assert_eq!(updates(&[1], true), [], "the running change may be the one that adds it");
    assert_eq!(updates(&[1, 2], false), [], "it is still a learner");
    assert_eq!(updates(&[1], false), std::slice::from_ref(&clear_raft_config));
    let joint = Voters::new(vec![[1].into(), [1, 2].into()], BTreeMap::from([1, 2].map(|id| (id, quorum.voter(id)))));
    assert_eq!(flag_updates(quorum.state(), &joint, false), []);
    quorum.cluster.ok(clear_raft_config);
    assert!(!quorum.cluster.state.nodes[&quorum.nodes[1]].in_raft_config);
}

/// openraft ends the leadership of a removed leader a moment after it has confirmed the removal. In
/// a debug build it panics if that leader changes the membership once more.
#[test]
fn a_leader_that_has_removed_itself_leaves_the_next_change_to_its_successor() {
    let quorum = Quorum::new(3);
    // It was promoted again at once.
    let without_leader = quorum.voters(&[2, 3], &[2, 3]);
    let replicated = [(2, 1_000), (3, 1_000)];
    assert_eq!(quorum.next_change(&without_leader, &replicated, 1), None);
    let learners = [(1, quorum.voter(1))].into();
    assert_eq!(quorum.next_change(&without_leader, &replicated, 2), Some(VoterChange::AddLearners { learners }));
}
