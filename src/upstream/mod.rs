//! Upstreams of `proxy` targets: which one serves a request.
//!
//! A [`Group`] chooses among its members by the [`Balance`] (`balance`), leaves out those that are
//! down (`health`, `breaker`) or full, and gives a [`Lease`] for a place at one. What is known of a server
//! is its [`State`], which the [`Registry`] keeps over changes of the configuration. [`Server`] is where one is,
//! `resolve` finds its address, and `peer` says how to connect to it. `http1` carries requests without a body.

mod balance;
mod breaker;
mod budget;
mod group;
mod health;
pub mod http1;
mod member;
mod peer;
mod registry;
mod resolve;
mod server;
mod settings;
mod tcp;
mod tether;

pub use group::{Failed, Group, GroupError, Member, NoServer, Tries};
pub use member::{Lease, State};
pub use peer::{PeerError, Tls as LoadedTls};
pub use registry::Registry;
pub use server::{Server, ServerError};
pub use settings::{
    Balance, Capacity, ClientFiles, Ejection, HashOn, HealthCheck, Probe, Protocol, Retries,
    SERVERS_MAX, Settings, TRIES_MAX, Tls, Weighted,
};
pub use tether::{Tether, Turn};
