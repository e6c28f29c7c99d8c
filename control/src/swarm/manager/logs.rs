//! Fetches task logs from the node that runs the task. The API calls it.

use futures_util::{StreamExt, stream::BoxStream};
use tonic::Code;
use weft_model::{LogError, LogOptions, LogRecord, TaskId};

use super::Manager;
use crate::{
    codec,
    rpc::pb::{LogsRequest, logs_client::LogsClient},
};

impl Manager {
    /// Reads the log of a task, oldest record first. Resolves when the task's node has opened it.
    /// The stream ends with the last record (with `follow`: when the task ends), or when the
    /// connection to the node breaks.
    ///
    /// # Errors
    /// - [`LogError::NoSuchTask`] if the cluster state does not contain the task, and
    ///   [`LogError::NotAssigned`] if the task has no node yet.
    /// - [`LogError::NodeUnreachable`] if the task's node was removed or does not answer.
    /// - [`LogError::Unreadable`] if the node has no readable log of the task.
    pub async fn task_logs(
        &self,
        task: &TaskId,
        options: LogOptions,
    ) -> Result<BoxStream<'static, LogRecord>, LogError> {
        let (node, addr) = {
            let state = self.inner.state.borrow();
            let known = state.tasks.get(task).ok_or_else(|| LogError::NoSuchTask(task.clone()))?;
            let node = known.node.clone().ok_or_else(|| LogError::NotAssigned(task.clone()))?;
            let addr = state.nodes.get(&node).map(|node| node.rpc_addr);
            (node, addr)
        };
        if node == self.inner.node {
            return self.inner.logs.logs(task, &options);
        }
        let failed = |reason: String| LogError::NodeUnreachable { node: node.clone(), task: task.clone(), reason };
        let addr = addr.ok_or_else(|| failed("it was removed from the swarm".to_owned()))?;
        // A slow reader would block all other calls on a shared connection.
        let channel = self
            .inner
            .peers
            .dedicated_channel(addr, &node)
            .ok_or_else(|| failed("its node id is not a DNS name".to_owned()))?;
        let options = codec::encode(&codec::LOG_OPTIONS, &options).map_err(|e| failed(e.to_string()))?;
        let request = LogsRequest { task: task.to_string(), options: options.into() };
        let lines = LogsClient::new(channel).read(request).await.map_err(|status| match status.code() {
            Code::NotFound | Code::FailedPrecondition => {
                LogError::Unreadable { task: task.clone(), reason: status.message().to_owned() }
            }
            _ => failed(status.message().to_owned()),
        })?;
        let records = lines.into_inner().take_while(|line| std::future::ready(line.is_ok())).filter_map(|line| {
            let record =
                line.ok().map(|line| LogRecord { time_ns: line.time_ns, stderr: line.stderr, line: line.line });
            std::future::ready(record)
        });
        Ok(records.boxed())
    }
}
