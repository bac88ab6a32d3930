//! What a reload may change.

use super::super::{Config, RELOADABLE};
use super::{load, variables};

#[test]
fn keys_bound_to_the_process_are_named() {
    let running = load("server: { threads: 2 }").unwrap();
    for (yaml, keys) in [
        ("server: { threads: 2 }", &[][..]),
        ("server: { threads: 3 }", &["server.threads"]),
        (
            "server: { threads: 2, shutdown_grace: 1s, connections_max: 5 }",
            &["server.shutdown_grace", "server.connections_max"],
        ),
        (
            "{ server: { threads: 2 }, sandbox: { guests_max: 5, memory_max: 1MiB } }",
            &["sandbox.guests_max"],
        ),
        (
            "{ server: { threads: 2 }, tiers: { free: { memory_max: 1MiB } } }",
            &[],
        ),
        (
            "{ server: { threads: 2 }, tiers: { pro: { stack_size: 512KiB, table_elements_max: 100000 } } }",
            &[],
        ),
        (
            "{ server: { threads: 2 }, tiers: { pro: { stack_size: 2MiB, table_elements_max: 100001 } } }",
            &["tiers.pro.stack_size", "tiers.pro.table_elements_max"],
        ),
        (
            "{ server: { threads: 2 }, headers: { strict_transport_security: null } }",
            &[],
        ),
        ("{ server: { threads: 2, admin: null } }", &["server.admin"]),
        ("{ server: { threads: 2, http: [] } }", &["server.http"]),
        (
            "{ server: { threads: 2, https: [{ address: '0.0.0.0:8443', certificates: [{ cert: a, key: b }] }] } }",
            &[],
        ),
        (
            "{ server: { threads: 2, https: [{ address: '0.0.0.0:8444', certificates: [{ cert: a, key: b }] }] } }",
            &["server.https[0].address"],
        ),
        (
            "{ server: { threads: 2 }, database: { url: 'postgres://a:b@c/d' } }",
            &["database.url"],
        ),
        (
            "{ server: { threads: 2 }, auth: { salt: 5f0c2e9b7a1d4386e8f5b0c7d2a94163 } }",
            &["auth.salt"],
        ),
    ] {
        let new = load(yaml).unwrap_or_else(|problems| panic!("{yaml}: {problems}"));
        assert_eq!(running.needs_restart(&new), keys, "{yaml}");
    }
}

#[test]
fn a_secret_that_changes_is_seen_although_it_is_hidden() {
    let with = |salt: &str| Config::load(None, &variables(&[("API_SALT", salt)])).unwrap();
    let running = with("5f0c2e9b7a1d4386e8f5b0c7d2a94163");
    assert_eq!(
        running.needs_restart(&with("5f0c2e9b7a1d4386e8f5b0c7d2a94163")),
        Vec::<String>::new()
    );
    let keys = running.needs_restart(&with("6f0c2e9b7a1d4386e8f5b0c7d2a94163"));
    assert_eq!(keys, ["auth.salt"]);
    // The secret of access tokens may change.
    let with = |secret: &str| Config::load(None, &variables(&[("JWT_SECRET", secret)])).unwrap();
    let running = with("5f0c2e9b7a1d4386e8f5b0c7d2a94163");
    let new = with("6f0c2e9b7a1d4386e8f5b0c7d2a94163");
    assert!(running.config != new.config);
    assert_eq!(running.needs_restart(&new), Vec::<String>::new());
}

#[test]
fn a_blank_file_is_told_from_one_that_says_something() {
    for blank in ["", "# nothing\n", "{}"] {
        assert!(load(blank).unwrap().is_blank(), "{blank:?}");
    }
    assert!(!load("environment: development").unwrap().is_blank());
}

#[test]
fn what_can_be_reloaded_is_documented() {
    let documentation = include_str!("../../../docs/OPERATIONS.md");
    for key in RELOADABLE {
        assert!(
            documentation.contains(&format!("`{key}`")),
            "{key} is not in docs/OPERATIONS.md"
        );
    }
}
