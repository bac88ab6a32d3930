//! Wasm Wizard: an HTTPS gateway that runs WebAssembly inline.
//!
//! The modules in reading order: a request enters at the top and leaves at the bottom.
//! `docs/ARCHITECTURE.md` tells the same story with the reasons.

pub mod cli;
pub mod config;
pub mod server;

pub mod api;
pub mod gateway;

pub mod auth;
pub mod limits;
pub mod modules;
pub mod route;
pub mod tls;
pub mod upstream;
pub mod usage;

pub mod sandbox;
pub mod store;

pub mod account;
pub mod failure;
pub mod lives;
pub mod telemetry;
