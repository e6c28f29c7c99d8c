//! Converts the settings of updates and rollbacks. The Engine API has two types for them, with the
//! same fields.

use bollard_stubs::models;
use weft_model::spec::{FailureAction, UpdateConfig, UpdateOrder};

use crate::api::{
    error::ApiError,
    features,
    wire::values::{count, millis, nanos, signed},
};

pub(super) fn update_of_rollback(config: &models::ServiceSpecRollbackConfig) -> models::ServiceSpecUpdateConfig {
    use models::{
        ServiceSpecRollbackConfigFailureActionEnum as RA, ServiceSpecRollbackConfigOrderEnum as RO,
        ServiceSpecUpdateConfigFailureActionEnum as UA, ServiceSpecUpdateConfigOrderEnum as UO,
    };
    models::ServiceSpecUpdateConfig {
        parallelism: config.parallelism,
        delay: config.delay,
        failure_action: config.failure_action.map(|action| match action {
            RA::EMPTY => UA::EMPTY,
            RA::CONTINUE => UA::CONTINUE,
            RA::PAUSE => UA::PAUSE,
        }),
        monitor: config.monitor,
        max_failure_ratio: config.max_failure_ratio,
        order: config.order.map(|order| match order {
            RO::EMPTY => UO::EMPTY,
            RO::STOP_FIRST => UO::STOP_FIRST,
            RO::START_FIRST => UO::START_FIRST,
        }),
    }
}

pub(super) fn rollback_of_update(config: &models::ServiceSpecUpdateConfig) -> models::ServiceSpecRollbackConfig {
    use models::{
        ServiceSpecRollbackConfigFailureActionEnum as RA, ServiceSpecRollbackConfigOrderEnum as RO,
        ServiceSpecUpdateConfigFailureActionEnum as UA, ServiceSpecUpdateConfigOrderEnum as UO,
    };
    models::ServiceSpecRollbackConfig {
        parallelism: config.parallelism,
        delay: config.delay,
        failure_action: config.failure_action.map(|action| match action {
            UA::CONTINUE => RA::CONTINUE,
            UA::EMPTY | UA::PAUSE | UA::ROLLBACK => RA::PAUSE,
        }),
        monitor: config.monitor,
        max_failure_ratio: config.max_failure_ratio,
        order: config.order.map(|order| match order {
            UO::START_FIRST => RO::START_FIRST,
            UO::EMPTY | UO::STOP_FIRST => RO::STOP_FIRST,
        }),
    }
}

/// Reads the settings. Error texts contain `field`, the name of the field in the body.
pub(super) fn read(field: &str, config: Option<models::ServiceSpecUpdateConfig>) -> Result<UpdateConfig, ApiError> {
    use models::{ServiceSpecUpdateConfigFailureActionEnum as Action, ServiceSpecUpdateConfigOrderEnum as Order};
    let default = UpdateConfig::default();
    let Some(config) = config else { return Ok(default) };
    let ratio = config.max_failure_ratio.unwrap_or(0.0);
    if !(0.0..=1.0).contains(&ratio) {
        return Err(ApiError::Invalid(format!("{field}.MaxFailureRatio is {ratio}: give a number from 0 to 1")));
    }
    let max_failure_permille = permille(ratio);
    let honoured = f64::from(max_failure_permille) / 1_000.0;
    if (honoured - ratio).abs() > 1e-9 {
        let subject = format!("{field}.MaxFailureRatio {ratio}, the nearest that it can honour is {honoured}");
        return Err(features::FINE_RATIOS.refusal_of(&subject));
    }
    let monitor = config.monitor.unwrap_or(0);
    Ok(UpdateConfig {
        parallelism: count(&format!("{field}.Parallelism"), config.parallelism)?,
        delay_ms: millis(&format!("{field}.Delay"), config.delay.unwrap_or(0))?,
        on_failure: match config.failure_action {
            Some(Action::CONTINUE) => FailureAction::Continue,
            Some(Action::ROLLBACK) => FailureAction::Rollback,
            None | Some(Action::EMPTY | Action::PAUSE) => FailureAction::Pause,
        },
        monitor_ms: if monitor == 0 { default.monitor_ms } else { millis(&format!("{field}.Monitor"), monitor)? },
        max_failure_permille,
        order: match config.order {
            Some(Order::START_FIRST) => UpdateOrder::StartFirst,
            None | Some(Order::EMPTY | Order::STOP_FIRST) => UpdateOrder::StopFirst,
        },
    })
}

/// Converts a ratio from 0 to 1 to thousandths.
fn permille(ratio: f64) -> u32 {
    (ratio * 1_000.0).round() as u32
}

pub(super) fn write(config: &UpdateConfig) -> models::ServiceSpecUpdateConfig {
    use models::{ServiceSpecUpdateConfigFailureActionEnum as Action, ServiceSpecUpdateConfigOrderEnum as Order};
    models::ServiceSpecUpdateConfig {
        parallelism: Some(signed(config.parallelism)),
        delay: Some(nanos(config.delay_ms)),
        failure_action: Some(match config.on_failure {
            FailureAction::Pause => Action::PAUSE,
            FailureAction::Continue => Action::CONTINUE,
            FailureAction::Rollback => Action::ROLLBACK,
        }),
        monitor: Some(nanos(config.monitor_ms)),
        max_failure_ratio: Some(f64::from(config.max_failure_permille) / 1_000.0),
        order: Some(match config.order {
            UpdateOrder::StopFirst => Order::STOP_FIRST,
            UpdateOrder::StartFirst => Order::START_FIRST,
        }),
    }
}
