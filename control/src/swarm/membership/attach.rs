//! Attaches and detaches this node's containers that are no tasks, through any manager.
//! [`super::super::Swarm`] calls it for the API, on workers too.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tonic::{Code, Status};
use weft_model::{Applied, Command, NetworkId, NodePlan, Rejection, TaskId, command::AttachContainer};

use super::{ask::ask_managers, lifecycle::Lifecycle};
use crate::{
    codec::{self, OUTCOME},
    raft::ProposalId,
    rpc::pb::{AttachRequest, dispatcher_client::DispatcherClient},
    swarm::{
        context::Context,
        error::{ProposeError, SwarmError},
    },
};

/// How long one manager has for its answer. It waits for a leader as long.
const CALL_TIMEOUT: Duration = Duration::from_secs(12);
/// How long the node waits for the plan that contains what a manager has confirmed.
const PLAN_TIMEOUT: Duration = Duration::from_secs(10);

impl Lifecycle {
    pub(in crate::swarm) async fn attach(&self, mut attach: AttachContainer) -> Result<(), SwarmError> {
        let context = self.running_context().await?;
        attach.node = context.record.node.clone();
        let wanted = attach.clone();
        change(&context, Command::AttachContainer(Box::new(attach))).await.map_err(SwarmError::Change)?;
        let mut plans = context.channels.plans.subscribe();
        let known = plans.wait_for(|plan| plan.as_ref().is_some_and(|plan| contains(plan, &wanted)));
        match timeout(PLAN_TIMEOUT, known).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(SwarmError::Stopped),
            Err(_) => Err(SwarmError::Change(ProposeError::Unavailable {
                reason: format!("no manager has sent the node its new plan within {PLAN_TIMEOUT:?}"),
            })),
        }
    }

    pub(in crate::swarm) async fn detach(&self, id: TaskId, networks: Vec<NetworkId>) -> Result<(), SwarmError> {
        let context = self.running_context().await?;
        let command = Command::DetachContainer { node: context.record.node.clone(), id, networks };
        change(&context, command).await.map_err(SwarmError::Change)
    }

    async fn running_context(&self) -> Result<Arc<Context>, SwarmError> {
        Ok(Arc::clone(self.slot.lock().await.running()?.context()))
    }
}

/// Whether the plan has what `wanted` asks for.
fn contains(plan: &NodePlan, wanted: &AttachContainer) -> bool {
    plan.attached.iter().find(|container| container.id == wanted.id).is_some_and(|container| {
        let has = |network: &NetworkId| container.links.iter().any(|link| link.attachment.network == *network);
        let is_present = |network: &NetworkId| {
            let mut links = container.links.iter();
            links.any(|link| link.attachment.network == *network && link.present)
        };
        wanted.networks.iter().all(|wanted| has(&wanted.network))
            && wanted.present.iter().all(is_present)
            && (wanted.identity.is_none() || container.identity == wanted.identity)
    })
}

/// Sends the change to this node's own manager, or to one manager after the other until one has
/// made it.
async fn change(context: &Context, command: Command) -> Result<(), ProposeError> {
    if let Some(manager) = context.manager() {
        return manager.propose(command).await.map(drop);
    }
    let unavailable = |reason: String| ProposeError::Unavailable { reason };
    let id = ProposalId::random().0.to_be_bytes();
    let command = codec::encode(&codec::COMMAND, &command).map_err(|error| unavailable(error.to_string()))?;
    let request = AttachRequest { id: id.to_vec().into(), command: command.into() };
    let tls = context.credentials.client();
    let answer = ask_managers(&tls, context.manager_addrs(), CALL_TIMEOUT, |channel| {
        let request = request.clone();
        async move {
            match DispatcherClient::new(channel).attach(request).await {
                Ok(reply) => read_outcome(&reply.into_inner().outcome),
                // No other manager would answer otherwise.
                Err(status) if is_refusal(status.code()) => Ok(Err(unavailable(status.message().to_owned()))),
                Err(status) => Err(status),
            }
        }
    });
    answer.await.map_err(unavailable)?
}

fn is_refusal(code: Code) -> bool {
    matches!(code, Code::PermissionDenied | Code::ResourceExhausted | Code::InvalidArgument)
}

fn read_outcome(outcome: &[u8]) -> Result<Result<(), ProposeError>, Status> {
    let outcome: Result<Applied, Rejection> =
        codec::decode(&OUTCOME, outcome).map_err(|error| Status::internal(error.to_string()))?;
    Ok(outcome.map(drop).map_err(ProposeError::Rejected))
}
