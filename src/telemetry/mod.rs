//! What the gateway says of itself: logs, metrics, health. A leaf: it imports nothing of ours.

pub mod access;
pub mod database;
pub mod health;
pub mod host;
pub mod logging;
pub mod metrics;
pub mod modules;
pub mod seldom;
pub mod shard;
pub mod traces;

mod counters;
mod guests;
mod rows;
mod sample;
mod usage;
mod writer;
