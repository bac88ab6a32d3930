//! TLS to PostgreSQL.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use wasm_wizard::store::{Settings, Store};

use crate::support::{PATIENCE, postgres};

fn settings(url: &str, more: &str) -> Settings {
    Settings {
        url: format!("{url}?{more}"),
        connections_max: 1,
        acquire_timeout: Duration::from_secs(1),
    }
}

async fn connects(url: &str, more: &str) -> bool {
    let settings = settings(url, more);
    let connecting = tokio::time::timeout(PATIENCE, Store::connect(&settings));
    connecting.await.unwrap().is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_certificate_of_postgres_is_checked_where_the_url_says_so() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut server = postgres::Server::start_new().await;
    let url = server.database().await;
    assert!(connects(&url, "sslmode=disable").await);
    assert!(
        !connects(&url, "sslmode=require").await,
        "a server without TLS is not talked to in the clear"
    );

    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let named = rcgen::generate_simple_self_signed(["database.example".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, pem: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.display().to_string()
    };
    let (own_ca, other_ca) = (
        file("own.pem", own.cert.pem()),
        file("other.pem", other.cert.pem()),
    );
    server
        .speak_tls(&own.cert.pem(), &own.signing_key.serialize_pem())
        .await;
    for (more, is_good) in [
        (format!("sslmode=verify-full&sslrootcert={own_ca}"), true),
        (format!("sslmode=verify-ca&sslrootcert={own_ca}"), true),
        (format!("sslmode=verify-full&sslrootcert={other_ca}"), false),
        (format!("sslmode=verify-ca&sslrootcert={other_ca}"), false),
        // Encrypted, with whomever.
        ("sslmode=require".to_owned(), true),
    ] {
        assert_eq!(connects(&url, &more).await, is_good, "{more}");
    }
    // It is TLS that is spoken.
    let more = format!("sslmode=verify-full&sslrootcert={own_ca}&application_name=over-tls");
    let store = Store::connect(&settings(&url, &more)).await.unwrap();
    store.migrate().await.unwrap();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let encrypted: Vec<bool> = sqlx::query_scalar(
        "SELECT s.ssl FROM pg_stat_ssl s JOIN pg_stat_activity a ON a.pid = s.pid \
         WHERE a.application_name = 'over-tls'",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    assert!(!encrypted.is_empty() && encrypted.iter().all(|is| *is));

    store.close().await;
    connection.close().await.unwrap();

    // Another server's certificate, by the right authority.
    let named_ca = file("named.pem", named.cert.pem());
    server
        .speak_tls(&named.cert.pem(), &named.signing_key.serialize_pem())
        .await;
    for (more, is_good) in [
        (format!("sslmode=verify-ca&sslrootcert={named_ca}"), true),
        (format!("sslmode=verify-full&sslrootcert={named_ca}"), false),
    ] {
        assert_eq!(connects(&url, &more).await, is_good, "{more}");
    }
}
