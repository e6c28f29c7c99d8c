//! Tests of the order of a node's plans: a leader that goes back, and one of another epoch.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming, service::Routes};
use weft_model::{
    ClusterState, Command, DependencyId, NetworkId, NodeId, NodePlan, NodeReport, ServiceId,
    plan::{DependencyPlan, PlanVersion},
    spec::{
        FileData,
        Role::{Manager, Worker},
        ServiceMode,
    },
    state::{FEATURE_LEVEL, TaskState},
};

use super::{
    callers::{connect, first_answer},
    fixture::{DEADLINE, Daemon, Host, cluster, stop},
};
use crate::{
    codec,
    fixture::{network_spec, service_spec},
    pki::Credentials,
    rpc::{
        Bound, Limits,
        pb::{
            AttachReply, AttachRequest, LeaderMessage, LeaveReply, LeaveRequest, NodeMessage,
            dispatcher_server::{Dispatcher, DispatcherServer},
            leader_message::Message,
        },
        serve,
    },
    swarm::{Membership, dispatch::exchange::PLAN_PART_BYTES},
};

/// The number of a session of a [`ScriptedLeader`], and an ack in it. `None`: the node has ended
/// the session.
type Received = (usize, Option<PlanVersion>);

/// A leader that sends one of these plans in each session, and nothing else.
struct ScriptedLeader {
    plans: Mutex<VecDeque<(usize, NodePlan)>>,
    received: mpsc::Sender<Received>,
}

#[tonic::async_trait]
impl Dispatcher for ScriptedLeader {
    type SessionStream = ReceiverStream<Result<LeaderMessage, Status>>;

    async fn session(&self, request: Request<Streaming<NodeMessage>>) -> Result<Response<Self::SessionStream>, Status> {
        let plan = self.plans.lock().expect("no test thread panicked").pop_front();
        let (session, plan) = plan.ok_or_else(|| Status::unavailable("no plan is left"))?;
        let (outbox, messages) = mpsc::channel(1);
        let bytes = codec::plan::encode(&plan, FEATURE_LEVEL).expect("encoded");
        let message = LeaderMessage { message: Some(Message::Plan(bytes.into())) };
        outbox.send(Ok(message)).await.expect("the queue is empty");
        let (received, mut inbox) = (self.received.clone(), request.into_inner());
        tokio::spawn(async move {
            // The send fails only if the test has ended.
            while let Ok(Some(NodeMessage { acked, epoch, .. })) = inbox.message().await {
                let ack = PlanVersion { epoch, generation: acked };
                let _ = received.send((session, Some(ack))).await;
                // The script goes on once this plan is acked.
                if ack == plan.version() {
                    return;
                }
            }
            drop(outbox);
            let _ = received.send((session, None)).await;
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn attach(&self, _request: Request<AttachRequest>) -> Result<Response<AttachReply>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn leave(&self, _request: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        Err(Status::unimplemented("not in the script"))
    }
}

/// Serves at the address of a manager that is stopped, with its certificate.
fn serve_as(host: &Host, addr: SocketAddr, plans: &[NodePlan]) -> (mpsc::Receiver<Received>, CancellationToken) {
    let (received, messages) = mpsc::channel(64);
    let leader = ScriptedLeader { plans: Mutex::new(plans.iter().cloned().enumerate().collect()), received };
    let mut routes = Routes::builder();
    routes.add_service(DispatcherServer::new(leader));
    let routes = routes.routes().prepare().into_axum_router();
    let credentials = Credentials::new(Arc::new(host.identity())).expect("credentials");
    let bound = Bound::bind(addr).expect("the manager is stopped");
    let stop = CancellationToken::new();
    let (untrusted, _) = mpsc::channel(1);
    tokio::spawn(serve(bound, credentials.server(), routes, Limits::default(), untrusted, stop.clone()));
    (messages, stop)
}

#[tokio::test]
async fn a_node_takes_no_older_plan_and_one_of_a_newer_epoch_with_a_lower_generation() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let spec = Box::new(network_spec("app"));
    n1.manager().propose(Command::CreateNetwork { id: NetworkId::from_random(1), spec }).await.expect("made");
    let mut plans = n2.swarm.plans();
    let has_network = |plan: &Option<Arc<NodePlan>>| plan.as_ref().is_some_and(|plan| plan.networks.len() > 1);
    let current = timeout(DEADLINE, plans.wait_for(has_network)).await.expect("in time").expect("a member").clone();
    let current = NodePlan::clone(&current.expect("a plan"));
    let addr = n1.rpc_addr();
    let host = n1.stop().await;

    let older = NodePlan { generation: current.generation - 1, networks: Vec::new(), ..current.clone() };
    let reformed = NodePlan { epoch: 5, generation: 1, networks: Vec::new(), ..current.clone() };
    let former = NodePlan { generation: current.generation + 100, ..current.clone() };
    let script = [older, reformed.clone(), former];
    let (mut received, stop_serving) = serve_as(&host, addr, &script);
    let played = async {
        loop {
            let message = received.recv().await.expect("the server runs");
            let plan = plans.borrow().as_ref().expect("a plan").clone();
            assert!(*plan == reformed || plan.networks == current.networks, "an older plan after {message:?}");
            match message {
                (0, Some(ack)) => assert!(ack >= current.version(), "{ack:?}"),
                // The node has ended the session of the older plan, and later that of the former
                // epoch. The session between them continues until its plan is acked.
                (0, None) | (1, _) => {}
                (_, Some(ack)) => assert_eq!(ack, reformed.version()),
                (_, None) => return,
            }
        }
    };
    timeout(DEADLINE, played).await.expect("the end of the script in time");
    assert_eq!(**plans.borrow().as_ref().expect("a plan"), reformed);

    let n2 = n2.stop().await.start().await;
    assert_eq!(**n2.swarm.plans().borrow().as_ref().expect("the stored plan"), reformed);
    stop_serving.cancel();
    stop([n2]).await;
}

#[tokio::test]
async fn a_node_stores_no_secret_of_its_plan_and_gets_it_again_after_a_restart() {
    const SECRET: &[u8] = b"correct horse battery staple";
    let [n1, n2] = cluster([Manager, Worker]).await;
    let current = n2.swarm.plans().borrow().clone().expect("a plan");
    let addr = n1.rpc_addr();
    let host = n1.stop().await;
    let data = Some(FileData(SECRET.to_vec()).into());
    let plan = NodePlan {
        // Later than any generation at which the node knows its plan to be unchanged.
        generation: current.generation + 100,
        dependencies: vec![DependencyPlan { id: DependencyId::from_random(1), data }],
        ..NodePlan::clone(&current)
    };
    // The node begins another session after each one whose plan it has acked.
    let (mut received, stop_serving) = serve_as(&host, addr, &vec![plan.clone(); 100]);
    let acked = async { while received.recv().await.expect("the server runs").1 != Some(plan.version()) {} };
    timeout(DEADLINE, acked).await.expect("an ack in time");
    assert_eq!(**n2.swarm.plans().borrow().as_ref().expect("a plan"), plan);

    let n2 = n2.stop().await;
    let has_secret = |bytes: &[u8]| bytes.windows(SECRET.len()).any(|part| part == SECRET);
    let with_secret: Vec<_> = n2.files().into_iter().filter(|(_, bytes)| has_secret(bytes)).collect();
    assert!(with_secret.is_empty(), "{with_secret:?}");
    assert!(has_secret(&codec::plan::encode(&plan, FEATURE_LEVEL).expect("encoded")), "a plan is not compressed");
    let n2 = n2.start().await;
    let mut plans = n2.swarm.plans();
    let has_plan = |found: &Option<Arc<NodePlan>>| found.as_deref() == Some(&plan);
    timeout(DEADLINE, plans.wait_for(has_plan)).await.expect("the secret in time").expect("the daemon runs");
    stop_serving.cancel();
    stop([n2]).await;
}

#[tokio::test]
async fn a_plan_that_is_too_long_for_one_part_reaches_its_node() {
    const MIB: usize = 1 << 20;
    const SERVICES: usize = 2 + PLAN_PART_BYTES / MIB;
    let [n1, n2] = cluster([Manager, Worker]).await;
    // A task of each service on each node.
    for nth in 0..SERVICES {
        let mut spec = service_spec(&format!("large-{nth}"), 0, &[]);
        spec.mode = ServiceMode::Global;
        spec.task.container.env = vec![format!("LONG={nth}{}", "x".repeat(MIB))];
        let command = Command::CreateService { id: ServiceId::from_random(nth as u128), spec: Box::new(spec) };
        n1.manager().propose(command).await.expect("made");
    }
    let worker = n2.id();
    let all_run = |state: &ClusterState| {
        state.tasks_on(&worker).filter(|task| task.status.state == TaskState::Running).count() == SERVICES
    };
    n1.wait_until("the tasks of all services run on the worker", all_run).await;
    let containers = |plan: &NodePlan| plan.tasks.iter().map(|task| task.container.clone()).collect::<Vec<_>>();
    let plan = n2.swarm.plans().borrow().clone().expect("a plan");
    assert!(codec::plan::encode(&plan, FEATURE_LEVEL).expect("encoded").len() > PLAN_PART_BYTES);

    let n1 = n1.stop().await;
    let n2 = n2.stop().await.start().await;
    let stored = n2.swarm.plans().borrow().clone().expect("the stored plan");
    assert_eq!((stored.tasks.len(), containers(&stored)), (SERVICES, containers(&plan)));
    drop(n1);
    stop([n2]).await;
}

#[tokio::test]
async fn a_leader_of_an_earlier_epoch_refuses_a_node_and_does_not_call_it_removed() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let (channel, id) = (connect(&n2, &n1).await, n2.id());
    // It would begin sessions itself.
    n2.stop().await;
    // It has joined the new cluster, after the former leader was cut off.
    n1.manager().propose(Command::RemoveNode { id, force: true }).await.expect("removed");
    let refusal = async |epoch| {
        let report = codec::encode(&codec::REPORT, &NodeReport::default()).expect("encoded");
        let first = NodeMessage { report: report.into(), epoch, feature_level: 1, acked: 7, ..NodeMessage::default() };
        first_answer(&channel, first).await.expect_err("refused")
    };
    let epoch = n1.manager().state().borrow().epoch;
    assert_eq!(refusal(epoch).await.code(), Code::PermissionDenied, "the node was removed");
    let refused = refusal(epoch + 1).await;
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    assert!(refused.message().contains("an earlier cluster"), "{refused}");
    stop([n1]).await;
}

/// Waits until the node says that its managers have an earlier plan, with these words.
async fn says_that_managers_are_set_back(daemon: &Daemon, words: &str) {
    let mut membership = daemon.swarm.membership();
    let names_both = |text: &str| text.contains(words) && text.contains("--force-new-cluster");
    let says = |m: &Membership| matches!(m, Membership::Error(text) if names_both(text));
    let said = timeout(DEADLINE, membership.wait_for(says)).await.is_ok();
    assert!(said, "the node does not say it: {:?}", membership.borrow());
}

/// Waits until the node works, and has acked a plan of the manager that leads alone.
async fn works(daemon: &Daemon, manager: &Daemon) {
    let mut membership = daemon.swarm.membership();
    let active = |m: &Membership| matches!(m, Membership::Active { .. });
    timeout(DEADLINE, membership.wait_for(active)).await.expect("active in time").expect("the daemon runs");
    wait_for_ack(manager, &daemon.id(), 1).await;
}

/// Waits until the leader counts an ack of this generation or a later one of the node.
async fn wait_for_ack(leader: &Daemon, node: &NodeId, generation: u64) {
    let tracker = leader.manager().tracker().clone();
    let mut changes = tracker.changes();
    let acked = async {
        loop {
            changes.mark_unchanged();
            let acked = tracker.view().and_then(|view| Some(view.nodes.get(node)?.acked));
            if acked.is_some_and(|acked| acked >= generation) {
                return;
            }
            changes.changed().await.expect("the tracker exists");
        }
    };
    timeout(DEADLINE, acked).await.expect("an ack in time");
}

/// Starts the manager, which leads alone.
async fn restart(host: Host) -> Daemon {
    let daemon = host.start().await;
    daemon.becomes_manager().await;
    let manager = daemon.manager();
    timeout(DEADLINE, manager.wait_for_leader(&[manager.keys().raft_id])).await.expect("it leads in time");
    daemon
}

#[tokio::test]
async fn acks_of_plans_that_a_manager_has_forgotten_do_not_count() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let n1 = n1.stop().await;
    let snapshot = n1.files();
    let n1 = restart(n1).await;
    for _ in 0..100 {
        n1.manager().rotate_token(Worker).await.expect("the change is made");
    }
    let forgotten = n1.manager().state().borrow().index;
    wait_for_ack(&n1, &n2.id(), forgotten).await;
    let n1 = n1.stop().await;
    n1.set_back(&snapshot);

    let n1 = restart(n1).await;
    says_that_managers_are_set_back(&n2, "was set back").await;
    assert!(n1.manager().state().borrow().index < forgotten);
    let liveness = n1.manager().tracker().view().expect("it leads").nodes[&n2.id()].clone();
    assert_eq!(liveness.acked, 0, "the node does not hold a plan of this leader");
    assert!(liveness.report.problem.contains("was set back"), "{:?}", liveness.report);
    n1.swarm.reform(None).await.expect("the cluster is formed again");
    works(&n2, &n1).await;
    stop([n1, n2]).await;
}

#[tokio::test]
async fn a_node_says_that_its_manager_is_of_a_former_cluster() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let n1 = n1.stop().await;
    let snapshot = n1.files();
    let n1 = restart(n1).await;
    n1.swarm.reform(None).await.expect("the cluster is formed again");
    works(&n2, &n1).await;
    let n1 = n1.stop().await;
    n1.set_back(&snapshot);

    let n1 = restart(n1).await;
    says_that_managers_are_set_back(&n2, "formed again without this manager").await;
    n1.swarm.reform(None).await.expect("the cluster is formed again");
    works(&n2, &n1).await;
    stop([n1, n2]).await;
}
