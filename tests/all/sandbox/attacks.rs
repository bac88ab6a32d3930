//! The attack suite: what a stranger may send to take more than is given, to break out, or to take
//! the gateway down. Each attack is declared once, and made twice: against the sandbox itself, by
//! a test of the attack's name, with the code of each compiler; and, in groups, against the real
//! gateway over HTTPS, which must be alive and correct afterwards, with its memory, its mappings,
//! its descriptors and its child processes back where they were (`gateway`).
//!
//! | attack | where |
//! |---|---|
//! | endless loops: body, start section, recursion, mutual `call_indirect`, operators, host calls | `time` |
//! | sleeping forever | `time` |
//! | 2 GiB of randomness in one call | `time`, `host` |
//! | stack overflow with small and huge frames, also in the start section and by `call_indirect` | `stack` |
//! | memory of 4 GiB at start, growth to the limit and touching all | `memory` |
//! | `table.grow` without end, huge tables | `memory` |
//! | floods of stdout and stderr | `host` |
//! | iovecs out of bounds, at the last byte, 2³²−1 of them | `host` |
//! | `/etc/passwd` through every descriptor | `host` |
//! | WASIX imports, unknown imports | `modules` |
//! | component-model and truncated binaries | `modules` |
//! | code of the wrong types, indices of nothing | `modules` |
//! | sections and vectors that claim 4 GiB | `modules` |
//! | exported and imported names with control characters | `modules` |
//! | 1,000,000 functions, 50,000 locals, one function of 7 MB, 50,000 nested blocks | `modules` |
//! | huge `br_table`s, 100,000 data segments, 10 MB of custom sections | `modules`, `bombs` |
//! | quadratic control flow, and what else keeps a compiler busy | `bombs` |
//!
//! The official suite's invalid and malformed modules are in `src/sandbox/check/tests/official.rs`
//! and in `official`, limits one by one in `limits`.

pub(super) mod binary;
mod bombs;
mod gateway;
mod host;
mod memory;
mod modules;
mod stack;
mod time;

use std::time::Duration;

use bytes::Bytes;
use wasm_wizard::sandbox::{End, ModuleError, Preparation, Sandbox};

use super::{PATIENCE, call, command, settings, within};

/// How long a guest may run that would never end.
const SHORT: Duration = Duration::from_millis(300);

/// One attack: modules that mean the same, and how each must end.
struct Attack {
    name: &'static str,
    modules: fn() -> Vec<Vec<u8>>,
    expected: Expected,
}

/// The only end that an attack may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// Refused before it is compiled, with these words among the reasons.
    Invalid(&'static str),
    /// Refused for what it asks for at its start.
    OverLimit,
    /// The compiler is stopped, or the module refused; or else the compiler copes, and then the
    /// guest ends as it should.
    Bounded,
    Exits(i32),
    Traps(&'static str),
    TimeLimit,
    MemoryLimit,
    StackLimit,
    TableLimit,
    OutputLimit,
}

/// Declares attacks: a test of each one's name, and `ALL` of them.
macro_rules! attacks {
    ($($(#[$doc:meta])* $name:ident => $expected:expr, $modules:expr;)*) => {
        pub(super) const ALL: &[$crate::sandbox::attacks::Attack] = &[
            $($crate::sandbox::attacks::Attack {
                name: stringify!($name),
                modules: || $modules,
                expected: $expected,
            },)*
        ];

        $(
            $(#[$doc])*
            #[tokio::test]
            async fn $name() {
                let attack = ALL
                    .iter()
                    .find(|attack| attack.name == stringify!($name))
                    .expect("it is declared above");
                attack.against_the_sandbox().await;
            }
        )*
    };
}
use attacks;

impl Attack {
    /// Makes the attack on a sandbox of its own for each compiler, which must go on working.
    async fn against_the_sandbox(&self) {
        let mut settings = settings();
        if self.expected == Expected::Bounded {
            settings.compile.timeout = Duration::from_secs(3);
            settings.compile.memory_bytes_max = 1 << 30;
        }
        for preparation in [Preparation::Fast, Preparation::Optimised] {
            let sandbox = Sandbox::start(settings.clone()).unwrap();
            for (index, module) in (self.modules)().into_iter().enumerate() {
                let which = format!("{} {index}, {preparation:?}", self.name);
                within(self.against(&sandbox, preparation, module.into(), &which)).await;
            }
            is_well(&sandbox).await;
            let load = sandbox.load();
            assert_eq!((load.running, load.queued), (0, 0), "{}", self.name);
        }
    }

    async fn against(
        &self,
        sandbox: &Sandbox,
        preparation: Preparation,
        module: Bytes,
        which: &str,
    ) {
        let prepared = match sandbox.prepare(module, preparation).await {
            Ok(prepared) => prepared,
            Err(error) => return self.refused(&error, which),
        };
        let mut call = call();
        call.limits.deadline = match self.expected {
            Expected::TimeLimit => SHORT,
            _ => PATIENCE,
        };
        let outcome = sandbox.run(prepared, call).await.unwrap();
        let end = outcome.end;
        let expected = match self.expected {
            Expected::Invalid(_) | Expected::OverLimit => panic!("{which} is accepted: {end:?}"),
            Expected::Bounded => End::Exit(0),
            Expected::Exits(code) => End::Exit(code),
            Expected::Traps(text) => End::Trap(text.into()),
            Expected::TimeLimit => End::TimeLimit,
            Expected::MemoryLimit => End::MemoryLimit,
            Expected::StackLimit => End::StackLimit,
            Expected::TableLimit => End::TableLimit,
            Expected::OutputLimit => End::OutputLimit,
        };
        assert_eq!(end, expected, "{which}");
        assert!(
            end != End::TimeLimit || outcome.usage.wall >= SHORT,
            "{which}"
        );
    }

    fn refused(&self, error: &ModuleError, which: &str) {
        let text = error.to_string();
        assert!(!text.contains(char::is_control), "{which}: {text:?}");
        let fits = match (self.expected, error) {
            (Expected::Invalid(says), ModuleError::Invalid(text)) => text.contains(says),
            (Expected::OverLimit, ModuleError::OverLimit(_)) => true,
            (
                Expected::Bounded,
                ModuleError::Invalid(_) | ModuleError::OverLimit(_) | ModuleError::CompileLimit(_),
            ) => true,
            (_, _) => false,
        };
        assert!(fits, "{which}: {error:?}");
    }
}

/// The next guest gets what it should.
async fn is_well(sandbox: &Sandbox) {
    let hello = text(
        "(module
           (import \"wasi_snapshot_preview1\" \"fd_write\"
             (func $write (param i32 i32 i32 i32) (result i32)))
           (memory (export \"memory\") 1)
           (data (i32.const 0) \"\\10\\00\\00\\00\\05\\00\\00\\00\") (data (i32.const 16) \"still\")
           (func (export \"_start\")
             (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))
               (then unreachable))))",
    );
    let module = within(sandbox.prepare(hello.into(), Preparation::Optimised))
        .await
        .unwrap();
    let outcome = within(sandbox.run(module, call())).await.unwrap();
    assert_eq!(
        (outcome.end, &outcome.stdout[..]),
        (End::Exit(0), &b"still"[..])
    );
}

/// A module from text.
fn text(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// One module with `body` as `_start`; see [`command`] for what is around it.
fn body(body: &str) -> Vec<u8> {
    text(&command(body))
}

/// One module with these fields and `body` as `_start`.
fn module(fields: &str, body: &str) -> Vec<u8> {
    text(&format!(
        "(module {fields} (func (export \"_start\") {body}))"
    ))
}
