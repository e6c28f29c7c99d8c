//! `swarm`: form, join, leave, read and change the cluster.

use axum::{Json, extract::State};
use bollard_stubs::models as wire;
use serde_json::{Value, json};
use weft_model::{
    Command,
    spec::{Availability, Role},
};

use super::{Api, address, body::WholeBody, error::ApiError, features, query::Params, wire as convert};
use crate::swarm::{InitOptions, JoinOptions, Membership};

pub(super) async fn inspect(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    let table = api.table()?;
    let state = std::sync::Arc::clone(&table.state().borrow());
    let cluster = state.cluster.as_ref().ok_or(ApiError::NotInSwarm)?;
    let mut shown = convert::cluster::show(cluster);
    let tokens = convert::cluster::show_tokens(table.join_token(Role::Worker), table.join_token(Role::Manager));
    convert::set(&mut shown, "JoinTokens", tokens);
    Ok(Json(shown))
}

pub(super) async fn init(State(api): State<Api>, WholeBody(body): WholeBody) -> Result<Json<Value>, ApiError> {
    let mut body = convert::parse(&body)?;
    let spec = convert::cluster::read_init(&mut body)?;
    let request: wire::SwarmInitRequest = convert::typed(&body)?;
    convert::fields::rename(&mut body, "AutoLockManagers")?;
    let listen_addr = address::listen(&request.listen_addr.unwrap_or_default())?;
    let advertise_addr = address::advertise(&request.advertise_addr.unwrap_or_default(), listen_addr)?;
    let availability = availability(&mut body)?;
    refuse_others(
        &body,
        &[
            "ListenAddr",
            "AdvertiseAddr",
            "DataPathAddr",
            "DataPathPort",
            "DefaultAddrPool",
            "ForceNewCluster",
            "SubnetSize",
            "Spec",
            "Availability",
        ],
    )?;
    let node = api.member.init(InitOptions { advertise_addr, listen_addr, spec, availability }).await?;
    Ok(Json(json!(node.as_str())))
}

pub(super) async fn join(State(api): State<Api>, WholeBody(body): WholeBody) -> Result<(), ApiError> {
    let mut body = convert::parse(&body)?;
    let request: wire::SwarmJoinRequest = convert::fields::read(&mut body)?;
    let listen_addr = address::listen(&request.listen_addr.unwrap_or_default())?;
    let advertise_addr = address::advertise(&request.advertise_addr.unwrap_or_default(), listen_addr)?;
    let availability = availability(&mut body)?;
    refuse_others(&body, &["ListenAddr", "AdvertiseAddr", "RemoteAddrs", "JoinToken", "Availability"])?;
    let token = request.join_token.unwrap_or_default();
    if token.is_empty() {
        return Err(ApiError::Invalid(
            "no join token was given: print one with \"weft swarm join-token worker\" on a manager".into(),
        ));
    }
    if !matches!(api.member.membership(), Membership::None) {
        return Err(crate::swarm::SwarmError::AlreadyMember.into());
    }
    let mut remotes = Vec::new();
    for remote in request.remote_addrs.unwrap_or_default() {
        remotes.push(address::remote(&remote).await?);
    }
    api.member.join(JoinOptions { remotes, token, advertise_addr, listen_addr, availability }).await?;
    Ok(())
}

pub(super) async fn leave(State(api): State<Api>, params: Params) -> Result<(), ApiError> {
    api.member.leave(params.flag("force")).await?;
    Ok(())
}

pub(super) async fn update(State(api): State<Api>, params: Params, WholeBody(body): WholeBody) -> Result<(), ApiError> {
    if params.strict_flag("rotateManagerUnlockKey")? {
        return Err(features::LOCKED_MANAGERS.refusal());
    }
    let table = api.table()?;
    let current = {
        let state = std::sync::Arc::clone(&table.state().borrow());
        state.cluster.as_ref().ok_or(ApiError::NotInSwarm)?.spec.clone()
    };
    let spec = convert::cluster::read(&mut convert::parse(&body)?, &current)?;
    let version = params.version()?;
    let rotated = [
        (params.strict_flag("rotateWorkerToken")?, Role::Worker),
        (params.strict_flag("rotateManagerToken")?, Role::Manager),
    ];
    if spec != current {
        table.propose(Command::UpdateCluster { version, spec }).await?;
    }
    for (_, role) in rotated.into_iter().filter(|(rotate, _)| *rotate) {
        table.rotate_token(role).await?;
    }
    Ok(())
}

pub(super) async fn unlock_key() -> ApiError {
    features::LOCKED_MANAGERS.refusal()
}

pub(super) async fn unlock() -> ApiError {
    features::LOCKED_MANAGERS.refusal()
}

fn availability(body: &mut Value) -> Result<Availability, ApiError> {
    convert::fields::rename(body, "Availability")?;
    match &body["Availability"] {
        Value::Null => Ok(Availability::Active),
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "" | "active" => Ok(Availability::Active),
            "pause" => Ok(Availability::Pause),
            "drain" => Ok(Availability::Drain),
            _ => Err(ApiError::Invalid(format!("invalid availability {text:?}: use active, pause or drain"))),
        },
        other => Err(ApiError::Invalid(format!("invalid availability {other}: use active, pause or drain"))),
    }
}

/// Refuses every field that is not one of `known`.
fn refuse_others(body: &Value, known: &[&str]) -> Result<(), ApiError> {
    let mut rest = body.clone();
    if let Some(rest) = rest.as_object_mut() {
        rest.retain(|field, _| !known.contains(&field.as_str()));
    }
    convert::unsupported::refuse(&rest, &json!({}))
}
