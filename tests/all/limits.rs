//! Limits that gateways share.

mod gateways;
mod model;
mod quotas;
mod script;
mod seats;
mod simulation;
