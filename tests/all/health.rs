//! Health and metrics tell the truth.

use serde_json::{Value, json};

use crate::support::gateway::gateway;
use crate::support::{eventually, postgres};

#[tokio::test]
async fn health_says_what_was_checked() {
    let gateway = gateway().start();
    let client = gateway.client();
    let answer = client.get(gateway.url("/health")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["status"], "healthy");
    assert_eq!(body["service"], "wasm-wizard");
    assert_eq!(body["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(body["checks"]["database"]["status"], "ok");
    assert!(body["timestamp"].as_str().unwrap().ends_with('Z'));
    for path in ["/health/live", "/healthz", "/health/ready", "/readyz"] {
        assert_eq!(
            client.get(gateway.url(path)).send().await.unwrap().status(),
            200,
            "{path}"
        );
        assert_eq!(
            client
                .get(gateway.admin_url(path))
                .send()
                .await
                .unwrap()
                .status(),
            200,
            "{path}"
        );
    }
    let answer = client.post(gateway.url("/health")).send().await.unwrap();
    assert_eq!(answer.status(), 405);
}

#[tokio::test]
async fn ready_follows_the_database_and_routes_work_without_it() {
    let mut server = postgres::Server::start_new().await;
    let url = server.database().await;
    let gateway = gateway().env("DATABASE_URL", &url).start();
    let client = gateway.client();
    let ready = async || {
        client
            .get(gateway.url("/health/ready"))
            .send()
            .await
            .unwrap()
            .status()
    };
    assert_eq!(ready().await, 200);
    server.stop();
    eventually("ready turns 503", async || {
        (ready().await == 503).then_some(())
    })
    .await;
    let hello = client
        .get(gateway.url("/fn/hello?name=you"))
        .send()
        .await
        .unwrap();
    assert_eq!(
        hello.status(),
        200,
        "the data plane does not wait for the database"
    );
    let live = client
        .get(gateway.url("/health/live"))
        .send()
        .await
        .unwrap();
    assert_eq!(
        live.status(),
        200,
        "a lost database is no reason to restart"
    );
    server.start().await;
    eventually("ready turns 200 again", async || {
        (ready().await == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn metrics_are_on_the_admin_listener_and_public_only_when_asked() {
    let closed = gateway().start();
    let client = closed.client();
    client.get(closed.url("/fn/hello")).send().await.unwrap();
    // A request is counted at its end, which is after the client has its answer.
    let counted = r#"wasmwiz_requests_total{method="GET",route="hello",status="2xx"} 1"#;
    let page = crate::support::eventually(counted, async || {
        let page = client.get(closed.admin_url("/metrics")).send().await.ok()?;
        let page = page.text().await.ok()?;
        page.contains(counted).then_some(page)
    })
    .await;
    for must in [
        r#"wasmwiz_guests_total{status="success"}"#,
        "wasmwiz_database_up 1",
        "wasmwiz_build_info{",
        "# HELP wasmwiz_request_duration_seconds",
    ] {
        assert!(page.contains(must), "{must} is missing:\n{page}");
    }
    assert_eq!(
        client
            .get(closed.url("/metrics"))
            .send()
            .await
            .unwrap()
            .status(),
        404
    );
    assert_eq!(
        client
            .get(closed.admin_url("/api/wasm/modules"))
            .send()
            .await
            .unwrap()
            .status(),
        404
    );

    let open = gateway().set("metrics.public", json!(true)).start();
    let answer = open
        .client()
        .get(open.url("/metrics"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert!(
        answer.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/plain")
    );
}
