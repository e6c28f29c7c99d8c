//! Serves this node's task logs to managers.

use futures_util::{StreamExt, stream::BoxStream};
use tonic::{Request, Response, Status};
use weft_model::{LogError, LogOptions, TaskId};

use super::Services;
use crate::{
    codec,
    rpc::{
        Caller,
        pb::{LogLine, LogsRequest, logs_server::Logs},
    },
};

#[tonic::async_trait]
impl Logs for Services {
    type ReadStream = BoxStream<'static, Result<LogLine, Status>>;

    async fn read(&self, request: Request<LogsRequest>) -> Result<Response<Self::ReadStream>, Status> {
        Caller::manager(request.extensions(), &self.context.record.cluster)?;
        let invalid = |e: &dyn std::fmt::Display| Status::invalid_argument(e.to_string());
        let LogsRequest { task, options } = request.into_inner();
        let task: TaskId = task.parse().map_err(|e| invalid(&e))?;
        let options: LogOptions = codec::decode(&codec::LOG_OPTIONS, &options).map_err(|e| invalid(&e))?;
        let records = self.context.config.logs.logs(&task, &options).map_err(|error| match error {
            LogError::NoSuchTask(_) => Status::not_found(error.to_string()),
            _ => Status::failed_precondition(error.to_string()),
        })?;
        let lines =
            records.map(|record| Ok(LogLine { time_ns: record.time_ns, stderr: record.stderr, line: record.line }));
        Ok(Response::new(lines.boxed()))
    }
}
