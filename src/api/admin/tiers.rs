//! What the tiers give now. They are part of the configuration, where they are changed.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::super::Api;
use super::super::problem::Problem;
use crate::limits::{Tier, TierLimits};

/// What a key of a tier gets; `null` is without limit.
#[derive(Serialize)]
struct Shown {
    tier: Tier,
    per_minute: Option<u32>,
    per_day: Option<u32>,
    memory_bytes_max: u64,
    execution_timeout_ms: u64,
    stdout_bytes_max: u64,
    stderr_bytes_max: u64,
    stack_bytes_max: u64,
    table_elements_max: u32,
}

#[derive(Serialize)]
struct List {
    tiers: Vec<Shown>,
}

pub(in crate::api) async fn list(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    let settings = &api.state.settings;
    let tiers = [Tier::Free, Tier::Basic, Tier::Pro, Tier::Enterprise];
    let shown = |tier| {
        let limits: &TierLimits = settings.tiers.get(tier);
        let guest = settings.tiers.guest_limits(Some(tier), settings.guest);
        Shown {
            tier,
            per_minute: limits.rate.per_minute,
            per_day: limits.rate.per_day,
            memory_bytes_max: guest.memory_bytes_max,
            execution_timeout_ms: u64::try_from(guest.deadline.as_millis()).unwrap_or(u64::MAX),
            stdout_bytes_max: guest.stdout_bytes_max,
            stderr_bytes_max: guest.stderr_bytes_max,
            stack_bytes_max: guest.stack_bytes_max,
            table_elements_max: guest.table_elements_max,
        }
    };
    let tiers = tiers.into_iter().map(shown).collect();
    Ok(Json(List { tiers }).into_response())
}
