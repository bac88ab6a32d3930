//! All integration tests, as one binary: the dependencies link once.

#![expect(
    clippy::unwrap_used,
    reason = "a test that can not go on says so by panicking"
)]

mod accounts;
mod addresses;
mod answers;
mod api;
mod artifacts;
mod at_once;
mod bodies;
mod compression;
mod config;
mod cors;
mod deploy;
mod execute;
mod explain;
mod files;
mod grpc;
mod guests;
mod health;
mod health_command;
mod http2;
mod image;
mod limits;
mod monitoring;
mod mutual;
mod named;
mod operations;
mod privileges;
mod reload;
mod routes;
mod sandbox;
mod shutdown;
mod start;
mod stops;
mod store;
mod strict;
mod supply;
mod support;
mod tidy;
mod tiers;
mod timeouts;
mod tls;
mod tokens;
mod tour;
mod traces;
mod upgrade;
mod upstreams;
mod usage;
mod websocket;
