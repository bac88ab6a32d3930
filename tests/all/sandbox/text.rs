//! Text, which is translated in a child process.

use std::time::{Duration, Instant};

use bytes::Bytes;
use wasm_wizard::sandbox::{ModuleError, Sandbox, ShareKey};

use super::{PATIENCE, sandbox, settings, wasm, within};

const NOTHING: &str = "(module (func (export \"_start\")))";

/// The translator looks for the label of each branch among all that enclose it: half a minute on a
/// fast machine.
fn bomb() -> Bytes {
    let text = format!(
        "(module (func block $m {}{}))",
        "block $l ".repeat(105_000),
        "br $m ".repeat(160_000)
    );
    text.into()
}

#[tokio::test]
async fn text_is_translated_and_binary_passes() {
    let sandbox = sandbox();
    let binary = within(sandbox.to_binary(NOTHING.into(), ShareKey::default()))
        .await
        .unwrap();
    assert_eq!(binary, wasm(NOTHING));
    let again = within(sandbox.to_binary(binary.clone(), ShareKey::default()))
        .await
        .unwrap();
    assert_eq!(again, binary);
}

#[tokio::test]
async fn mistakes_are_told_with_their_line() {
    for (text, expected) in [
        ("(module\n  (func\n    i32.nonsense))", "line 3:"),
        ("(component)", "WebAssembly text"),
        ("", "the module is empty"),
    ] {
        match within(sandbox().to_binary(text.into(), ShareKey::default())).await {
            Err(ModuleError::Invalid(message)) => {
                assert!(message.contains(expected), "{message}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_text_that_takes_too_long_is_refused() {
    let error = within(sandbox().to_binary(bomb(), ShareKey::default()))
        .await
        .unwrap_err();
    assert!(matches!(&error, ModuleError::CompileLimit(_)), "{error:?}");
    assert!(error.to_string().contains("wat2wasm"), "{error}");
}

#[tokio::test]
async fn texts_wait_in_bounded_number_for_a_bounded_time_and_those_who_leave_free_their_place() {
    let mut settings = settings();
    settings.compile.workers_max = 1;
    settings.compile.queue_max = 1;
    let queue_timeout = Duration::from_millis(50);
    settings.compile.queue_timeout = queue_timeout;
    let sandbox = Sandbox::start(settings).unwrap();
    let spawn = |text: Bytes| {
        let sandbox = sandbox.clone();
        tokio::spawn(async move { sandbox.to_binary(text, ShareKey::default()).await })
    };
    let hard = spawn(bomb());
    tokio::time::sleep(Duration::from_millis(20)).await;
    // One waits, for its time; the others find no room.
    for waiting in [spawn(NOTHING.into()), spawn(NOTHING.into())] {
        let refused = within(waiting).await.unwrap();
        assert!(matches!(refused, Err(ModuleError::Busy)), "{refused:?}");
    }
    let binary = wasm(NOTHING);
    assert_eq!(
        within(sandbox.to_binary(binary.clone(), ShareKey::default()))
            .await
            .unwrap(),
        binary
    );
    hard.abort();

    // One at a time, these would take twenty times the limit if leaving did not end them.
    let begun = Instant::now();
    for _ in 0..20 {
        loop {
            // Longer than any waits for its turn, so this one has it when it is dropped.
            let leaving = tokio::time::timeout(
                queue_timeout * 3,
                sandbox.to_binary(bomb(), ShareKey::default()),
            );
            match leaving.await {
                Err(_) => break,
                Ok(Err(ModuleError::Busy)) => assert!(begun.elapsed() < PATIENCE),
                Ok(other) => panic!("{other:?}"),
            }
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(80));
    while within(sandbox.to_binary(NOTHING.into(), ShareKey::default()))
        .await
        .is_err()
    {
        assert!(begun.elapsed() < PATIENCE, "no place is free again");
    }
}

#[tokio::test]
async fn one_who_brings_many_texts_does_not_hold_up_another() {
    let mut settings = settings();
    settings.compile.workers_max = 2;
    let sandbox = Sandbox::start(settings).unwrap();
    let hard: Vec<_> = (0..4)
        .map(|_| {
            let sandbox = sandbox.clone();
            tokio::spawn(async move { sandbox.to_binary(bomb(), ShareKey::of("many")).await })
        })
        .collect();
    // Each of them comes as far as it can.
    tokio::task::yield_now().await;
    let other = sandbox.to_binary(NOTHING.into(), ShareKey::of("few"));
    assert_eq!(within(other).await.unwrap(), wasm(NOTHING));
    // No bomb had ended, so none made room.
    assert!(hard.iter().all(|bomb| !bomb.is_finished()));
    for bomb in hard {
        bomb.abort();
    }
}
