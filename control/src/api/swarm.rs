//! Handlers of `swarm`: create, join, leave, inspect and update the cluster.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use weft_model::{Command, InvalidUnlockKey, UnlockKey, spec::Role};

use super::{
    Api, address,
    body::{self, JsonBody},
    error::ApiError,
    query::Params,
    wire::{self, fields::Ignored},
};
use crate::{
    pki,
    swarm::{InitOptions, JoinOptions, Membership, RestoreOptions, SwarmError},
};

pub(super) async fn inspect(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    let cluster = api.cluster()?;
    let state = Arc::clone(&cluster.state().borrow());
    let mut shown = wire::cluster::show(state.cluster.as_ref().ok_or(ApiError::NotInSwarm)?);
    let tokens = wire::cluster::show_tokens(cluster.join_token(Role::Worker), cluster.join_token(Role::Manager));
    wire::set(&mut shown, "JoinTokens", tokens);
    Ok(Json(shown))
}

pub(super) async fn init(State(api): State<Api>, JsonBody(mut body): JsonBody) -> Result<Json<Value>, ApiError> {
    let mut ignored = Ignored::default();
    let request = wire::membership::read_init(&mut body, &mut ignored)?;
    ignored.log("swarm init");
    let listen_addr = address::parse_listen(&request.listen_addr)?;
    let advertise_addr = address::parse_advertise(&request.advertise_addr, listen_addr)?;
    if request.force_new_cluster {
        let node = api.member.reform(advertise_addr).await?;
        return Ok(Json(json!(node.as_str())));
    }
    let node = api
        .member
        .init(InitOptions {
            advertise_addr,
            listen_addr,
            tunnel_addr: address::parse_tunnel(&request.tunnel_addr)?,
            tunnel_port: request.tunnel_port,
            spec: request.spec,
            auto_lock: request.auto_lock,
            availability: request.availability,
        })
        .await?;
    Ok(Json(json!(node.as_str())))
}

/// `backup create`: an extension of weft. The answer contains the file in base64.
pub(super) async fn back_up(State(api): State<Api>, JsonBody(mut body): JsonBody) -> Result<Json<Value>, ApiError> {
    let passphrase = wire::membership::read_passphrase(&mut body)?;
    let file = api.member.back_up(passphrase).await?;
    Ok(Json(json!({ "File": STANDARD.encode(file) })))
}

/// `backup restore`: an extension of weft.
pub(super) async fn restore(State(api): State<Api>, request: Request) -> Result<Json<Value>, ApiError> {
    let request = wire::membership::read_restore(&mut body::parse(&body::read_large(request).await?)?)?;
    let listen_addr = address::parse_listen(&request.listen_addr)?;
    let options = RestoreOptions {
        file: request.file,
        passphrase: request.passphrase,
        advertise_addr: address::parse_advertise(&request.advertise_addr, listen_addr)?,
        listen_addr,
        tunnel_addr: address::parse_tunnel(&request.tunnel_addr)?,
        availability: request.availability,
    };
    let node = api.member.restore(options).await?;
    Ok(Json(json!(node.as_str())))
}

pub(super) async fn join(State(api): State<Api>, JsonBody(mut body): JsonBody) -> Result<(), ApiError> {
    let mut ignored = Ignored::default();
    let request = wire::membership::read_join(&mut body, &mut ignored)?;
    ignored.log("swarm join");
    let listen_addr = address::parse_listen(&request.listen_addr)?;
    let advertise_addr = address::parse_advertise(&request.advertise_addr, listen_addr)?;
    if !matches!(api.member.membership(), Membership::None) {
        return Err(SwarmError::AlreadyMember.into());
    }
    let mut remotes = Vec::new();
    for manager in &request.managers {
        remotes.push(address::resolve_manager(manager).await?);
    }
    let (token, availability) = (request.token, request.availability);
    let tunnel_addr = address::parse_tunnel(&request.tunnel_addr)?;
    api.member.join(JoinOptions { remotes, token, advertise_addr, listen_addr, tunnel_addr, availability }).await?;
    Ok(())
}

pub(super) async fn leave(State(api): State<Api>, params: Params) -> Result<(), ApiError> {
    api.member.leave(params.flag("force")).await?;
    Ok(())
}

pub(super) async fn update(
    State(api): State<Api>,
    params: Params,
    JsonBody(mut body): JsonBody,
) -> Result<(), ApiError> {
    let cluster = api.cluster()?;
    let (current, is_locked) = {
        let state = Arc::clone(&cluster.state().borrow());
        let cluster = state.cluster.as_ref().ok_or(ApiError::NotInSwarm)?;
        (cluster.spec.clone(), cluster.lock.key.is_some())
    };
    let mut ignored = Ignored::default();
    let own_ca = wire::cluster::take_ca(&mut body, &mut ignored)?;
    let (spec, auto_lock) = wire::cluster::read(&mut body, &current, is_locked, &mut ignored)?;
    ignored.log("swarm update");
    let rotates_unlock_key = params.strict_flag("rotateManagerUnlockKey")?;
    if rotates_unlock_key && !auto_lock {
        return Err(ApiError::Invalid(
            "cannot rotate the unlock key because autolock is not turned on (swarm update --autolock)".into(),
        ));
    }
    let changes_lock = rotates_unlock_key || auto_lock != is_locked;
    let changes_ca = own_ca.is_some() || spec.force_rotate != current.force_rotate;
    if changes_lock && changes_ca {
        return Err(ApiError::Invalid(
            "one request cannot change both the certificate authority and the lock of the managers: send two".into(),
        ));
    }
    let version = params.version()?;
    let rotations = [
        (params.strict_flag("rotateWorkerToken")?, Role::Worker),
        (params.strict_flag("rotateManagerToken")?, Role::Manager),
    ];
    if changes_ca {
        cluster.rotate_root(version, spec, own_ca).await?;
    } else if changes_lock {
        let key = auto_lock.then(pki::random_unlock_key).transpose();
        let key = key.map_err(|error| ApiError::Internal(error.to_string()))?;
        cluster.propose(Command::SetUnlockKey { version, spec, key }).await?;
    } else {
        // Also if nothing but a token changes: the request must be about the current version.
        cluster.propose(Command::UpdateCluster { version, spec }).await?;
    }
    for (_, role) in rotations.into_iter().filter(|(is_wanted, _)| *is_wanted) {
        cluster.rotate_token(role).await?;
    }
    Ok(())
}

/// `GET /swarm/unlockkey`: the key is empty if managers are not locked.
pub(super) async fn unlock_key(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    let state = api.state()?;
    let key = state.cluster.as_ref().ok_or(ApiError::NotInSwarm)?.lock.key.as_ref();
    Ok(Json(json!({ "UnlockKey": key.map(UnlockKey::to_text).unwrap_or_default() })))
}

pub(super) async fn unlock(State(api): State<Api>, JsonBody(mut body): JsonBody) -> Result<(), ApiError> {
    let mut ignored = Ignored::default();
    let text = wire::membership::read_unlock_key(&mut body, &mut ignored)?;
    ignored.log("swarm unlock");
    if api.member.membership() != Membership::Locked {
        api.cluster()?;
        return Err(SwarmError::NotLocked.into());
    }
    let key: UnlockKey = text.parse().map_err(|error: InvalidUnlockKey| ApiError::Invalid(error.to_string()))?;
    api.member.unlock(key).await?;
    Ok(())
}
