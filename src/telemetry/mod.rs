//! What the gateway says of itself: logs, metrics, health. A leaf: it imports nothing of ours.

pub mod access;
pub mod health;
pub mod logging;
pub mod metrics;
pub mod shard;

mod guests;
mod usage;
mod writer;
