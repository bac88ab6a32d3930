//! Limits that gateways share.

mod gateways;
mod model;
mod quotas;
mod script;
mod simulation;
