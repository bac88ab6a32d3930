//! What the tests stand on: real servers, real clients, real guests.

pub mod gateway;
pub mod postgres;
pub mod recorder;
pub mod upstream;

use std::future::Future;
use std::time::{Duration, Instant};

/// Longest wait for anything that must happen at all. A test never says how soon: the machine that
/// runs it may be slow, and runs others beside it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Polls until `check` gives a value; panics with `what` when [`PATIENCE`] is over. Tests never
/// sleep to wait for a fixed time.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut check: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "did not happen within {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// The repository's root.
pub fn root() -> &'static std::path::Path {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
}
