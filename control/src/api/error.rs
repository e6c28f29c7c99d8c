//! The errors of API requests. A client gets an HTTP status and the body `{"message": "…"}`.
//!
//! All handlers return [`ApiError`]. The conversions below choose the status that the docker client
//! expects for each error of the cluster.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use bollard_stubs::models::ErrorResponse;
use weft_model::{LogError, Rejection, command::ObjectKind, name::InvalidName};

use crate::swarm::{ProposeError, RotateError, SwarmError};

/// The reason why a request failed. Users read its text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("{0}")]
    Invalid(String),
    #[error("no such {kind}: {name}")]
    NotFound { kind: ObjectKind, name: String },
    /// Like [`Self::NotFound`], with another text.
    #[error("{0}")]
    Missing(String),
    #[error("{kind} {name} is ambiguous ({matches} matches found): give more of its ID")]
    Ambiguous { kind: ObjectKind, name: String, matches: usize },
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Unauthorized(String),
    #[error("{0}")]
    Forbidden(String),
    /// The request asks for a feature that weft does not have. `features` and `wire::unsupported`
    /// create this error.
    #[error("{0}")]
    Unsupported(String),
    #[error(
        "This node is not a swarm manager. Use \"weft swarm init\" or \"weft swarm join\" to connect this node to swarm and try again."
    )]
    NotInSwarm,
    #[error(
        "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager."
    )]
    Worker,
    #[error("the request body is larger than {} MiB, which is the limit: send a smaller one", limit_bytes >> 20)]
    TooLarge { limit_bytes: usize },
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Internal(String),
}

impl ApiError {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) | Self::Ambiguous { .. } => StatusCode::BAD_REQUEST,
            Self::NotFound { .. } | Self::Missing(_) => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            Self::NotInSwarm | Self::Worker | Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status(), Json(ErrorResponse { message: self.to_string() })).into_response()
    }
}

impl From<InvalidName> for ApiError {
    fn from(error: InvalidName) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        use Rejection as R;
        let text = rejection.to_string();
        match rejection {
            R::NotFound { kind, id } => Self::NotFound { kind, name: id },
            R::NotInitialised => Self::NotInSwarm,
            R::AlreadyInitialised
            | R::NameInUse { .. }
            | R::AlreadyExists { .. }
            | R::OutOfSequence { .. }
            | R::PortInUse { .. }
            | R::NoFreePort
            | R::PoolExhausted { .. }
            | R::AddressesExhausted { .. }
            | R::VniInUse { .. }
            | R::AddressInUse { .. }
            | R::AddressInQuarantine { .. }
            | R::InUse { .. } => Self::Conflict(text),
            R::NotAttachable { network } => Self::Forbidden(format!(
                "Could not attach to network {network}: rpc error: code = PermissionDenied desc = {text}"
            )),
            R::PortReserved { .. }
            | R::SubnetOverlapsRoute { .. }
            | R::OverlappingNetworks { .. }
            | R::NodeIsManager { .. }
            | R::NodeNotDown { .. }
            | R::LastManager { .. }
            | R::NothingToRollBack { .. }
            | R::Invalid(_) => Self::Invalid(text),
        }
    }
}

impl From<ProposeError> for ApiError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Rejected(rejection) => rejection.into(),
            ProposeError::NoQuorum { .. } | ProposeError::Unavailable { .. } => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<RotateError> for ApiError {
    fn from(error: RotateError) -> Self {
        match error {
            RotateError::Ca(error) => Self::Invalid(error.to_string()),
            RotateError::Internal(_) => Self::Internal(error.to_string()),
            RotateError::Propose(error) => error.into(),
        }
    }
}

impl From<SwarmError> for ApiError {
    fn from(error: SwarmError) -> Self {
        use SwarmError as S;
        match error {
            S::InvalidToken { .. }
            | S::WrongCa { .. }
            | S::Refused { .. }
            | S::NoRemote
            | S::NoAdvertiseAddr { .. }
            | S::Backup { .. }
            | S::UnusableAdvertiseAddr { .. } => Self::Invalid(error.to_string()),
            S::AlreadyMember
            | S::NotMember
            | S::NotManager
            | S::ManagerNeedsForce { .. }
            | S::Locked
            | S::Stopped
            | S::LeaveLocked
            | S::LeaveRefused { .. }
            | S::Unreachable { .. }
            | S::Timeout => Self::Unavailable(error.to_string()),
            S::NotLocked => Self::Conflict(error.to_string()),
            S::WrongUnlockKey => Self::Unauthorized(error.to_string()),
            S::Propose(error) | S::Change(error) => error.into(),
            S::Listen { .. } | S::Storage { .. } | S::LogLost { .. } | S::Internal { .. } => {
                Self::Internal(error.to_string())
            }
        }
    }
}

impl From<LogError> for ApiError {
    fn from(error: LogError) -> Self {
        match &error {
            LogError::NoSuchTask(task) => Self::NotFound { kind: ObjectKind::Task, name: task.to_string() },
            LogError::NotAssigned(_) => Self::Conflict(error.to_string()),
            LogError::NodeUnreachable { .. } => Self::Unavailable(error.to_string()),
            LogError::Unreadable { .. } => Self::Internal(error.to_string()),
        }
    }
}
