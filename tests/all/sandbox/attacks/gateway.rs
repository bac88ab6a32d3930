//! The attacks again, over HTTPS, several at a time and in rounds, on one gateway per group: each
//! gets its answer, the next honest guest gets its own, and what the gateway holds stays the same
//! from round to round.

use std::fs;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::{Value, json};

use super::binary::leb;
use super::{Attack, Expected, bombs, host, memory, modules, stack, time};
use crate::support::gateway::{Builder, Gateway, gateway};
use crate::support::root;
use crate::support::{PATIENCE, eventually};

/// Attacks under way at a time.
const AT_A_TIME: usize = 4;

/// How much more the gateway may hold after a round than after the first: what an allocator keeps,
/// not what guests had. Each group's guests had more than this by far.
const RESIDENT_BYTES_MORE: u64 = 48 << 20;
const MAPPINGS_MORE: usize = 100;
const DESCRIPTORS_MORE: usize = 16;

/// How much more it may hold after all rounds than before the first: warm guests, compiled code,
/// warm compilers, and threads come to stay, within the bounds of the settings.
const RESIDENT_BYTES_STAY: u64 = 256 << 20;

/// The most that it may hold at any time: eight guests of 128 MiB, and half a GiB for itself.
const RESIDENT_BYTES_PEAK: u64 = 3 << 29;

/// Children that may stay: warm compile workers (`sandbox.compile.workers_max`), and the server that forks them.
const CHILDREN_MAX: usize = 2 + 1;

#[tokio::test]
async fn guests_that_never_end_over_https() {
    let target = Target::start(&[("tiers.enterprise.execution_timeout", json!("1s"))]);
    target.survives(time::ALL, 3).await;
}

#[tokio::test]
async fn stack_overflows_over_https() {
    Target::start(&[]).survives(stack::ALL, 3).await;
}

#[tokio::test]
async fn memory_and_table_attacks_over_https() {
    Target::start(&[]).survives(memory::ALL, 4).await;
}

#[tokio::test]
async fn attacks_on_the_host_over_https() {
    Target::start(&[]).survives(host::ALL, 3).await;
}

#[tokio::test]
async fn hostile_modules_over_https() {
    // A hundred thousand data segments are larger than the small cache.
    let target = Target::start(&[("sandbox.cache_max", json!("16MiB"))]);
    target.survives(modules::ALL, 2).await;
    target.refuses_to_store(modules::ALL).await;
}

#[tokio::test]
async fn compile_bombs_over_https() {
    let target = Target::start(&[
        ("sandbox.compile.timeout", json!("2s")),
        ("sandbox.compile.memory_max", json!("1GiB")),
        ("tiers.enterprise.execution_timeout", json!("10m")),
    ]);
    target.survives(bombs::ALL, 2).await;
}

/// A gateway under attack.
struct Target {
    gateway: Gateway,
    client: reqwest::Client,
    key: String,
}

impl Target {
    /// A gateway with small bounds, so that what stays is told apart from what was lost.
    fn start(settings: &[(&str, Value)]) -> Target {
        let mut builder: Builder = gateway()
            .set("tiers.enterprise.execution_timeout", json!("10m"))
            .set("tiers.enterprise.memory_max", json!("128MiB"))
            .set("sandbox.stdout_max", json!("1MiB"))
            .set("sandbox.cache_max", json!("1MiB"))
            .set("sandbox.guests_max", json!(8))
            .set("sandbox.queue_timeout", json!("1m"))
            .set("sandbox.compile.queue_timeout", json!("1m"));
        for (path, value) in settings {
            builder = builder.set(path, value.clone());
        }
        let gateway = builder.start();
        Target {
            client: gateway.client(),
            key: gateway.admin_key(),
            gateway,
        }
    }

    /// Makes all of the attacks in each of some rounds.
    async fn survives(&self, attacks: &[Attack], rounds: usize) {
        self.is_well("before").await;
        let before = Held::by(self.gateway.pid());
        let mut first = None;
        for round in 0..rounds {
            self.round(attacks, round).await;
            self.gateway.guests_running(0).await;
            let (resident_bytes, mappings, descriptors) = match &first {
                None => (
                    before.resident_bytes + RESIDENT_BYTES_STAY,
                    usize::MAX,
                    usize::MAX,
                ),
                Some(Held {
                    resident_bytes,
                    mappings,
                    descriptors,
                    ..
                }) => (
                    (resident_bytes + RESIDENT_BYTES_MORE)
                        .min(before.resident_bytes + RESIDENT_BYTES_STAY),
                    mappings + MAPPINGS_MORE,
                    descriptors + DESCRIPTORS_MORE,
                ),
            };
            let deadline = Instant::now() + PATIENCE;
            let held = loop {
                let held = Held::by(self.gateway.pid());
                if held.resident_bytes <= resident_bytes
                    && held.mappings <= mappings
                    && held.descriptors <= descriptors
                    && held.children <= CHILDREN_MAX
                {
                    break held;
                }
                assert!(
                    Instant::now() < deadline,
                    "round {round} leaves {held:?}; before: {before:?}; the first left {first:?}"
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            first.get_or_insert(held);
        }
        let peak_bytes = Held::by(self.gateway.pid()).peak_bytes;
        assert!(peak_bytes <= RESIDENT_BYTES_PEAK, "{peak_bytes}");
    }

    async fn round(&self, attacks: &[Attack], round: usize) {
        let modules = attacks.iter().flat_map(|attack| {
            (attack.modules)()
                .into_iter()
                .map(move |module| (attack, module))
        });
        futures_util::stream::iter(modules)
            .for_each_concurrent(AT_A_TIME, async |(attack, mut module)| {
                if !matches!(attack.expected, Expected::Invalid(_)) {
                    set_apart(&mut module, round);
                }
                self.against(attack, module).await;
            })
            .await;
        self.is_well("after the round").await;
    }

    async fn against(&self, attack: &Attack, module: Vec<u8>) {
        let name = attack.name;
        let (status, answer) = self.send("/api/wasm/execute", module).await;
        let code = answer["code"].as_str().unwrap_or_default();
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(!error.contains(char::is_control), "{name}: {error:?}");
        let fits = match attack.expected {
            Expected::Invalid(says) => {
                matches!((status, code), (422, "invalid_module") | (400 | 413, _))
                    && (status != 422 || error.contains(says))
            }
            Expected::OverLimit => (status, code) == (422, "module_over_limit"),
            Expected::Bounded => matches!(
                (status, code),
                (200, _)
                    | (
                        422,
                        "compile_limit_exceeded" | "invalid_module" | "module_over_limit"
                    )
            ),
            Expected::Exits(0) => status == 200,
            Expected::Exits(_) => (status, code) == (422, "guest_exit"),
            Expected::Traps(text) => (status, code) == (422, "guest_trap") && error.contains(text),
            Expected::TimeLimit => (status, code) == (422, "time_limit_exceeded"),
            Expected::MemoryLimit => (status, code) == (422, "memory_limit_exceeded"),
            Expected::StackLimit => (status, code) == (422, "stack_limit_exceeded"),
            Expected::TableLimit => (status, code) == (422, "table_limit_exceeded"),
            Expected::OutputLimit => (status, code) == (422, "output_limit_exceeded"),
        };
        let shown: String = answer.to_string().chars().take(500).collect();
        assert!(fits, "{name}: {status} {shown}");
        self.is_well(name).await;
    }

    /// What may not run is not stored either.
    async fn refuses_to_store(&self, attacks: &[Attack]) {
        for attack in attacks {
            let Expected::Invalid(_) = attack.expected else {
                continue;
            };
            for module in (attack.modules)().into_iter().step_by(7) {
                let form = reqwest::multipart::Form::new()
                    .part(
                        "wasm",
                        reqwest::multipart::Part::bytes(module).file_name("m.wasm"),
                    )
                    .text("name", "attack");
                let request = self.client.post(self.gateway.url("/api/wasm/upload"));
                let answer = request
                    .bearer_auth(&self.key)
                    .multipart(form)
                    .send()
                    .await
                    .unwrap();
                assert!(
                    answer.status().is_client_error(),
                    "{}: {}",
                    attack.name,
                    answer.status()
                );
            }
        }
        let list = self.client.get(self.gateway.url("/api/wasm/modules"));
        let list = list.bearer_auth(&self.key).send().await.unwrap();
        assert_eq!(list.json::<Value>().await.unwrap()["total"], 0);
        self.is_well("after the uploads").await;
    }

    /// Health says so, and an honest guest gets its own input.
    async fn is_well(&self, when: &str) {
        let health = self.client.get(self.gateway.url("/health")).send().await;
        assert_eq!(health.unwrap().status(), 200, "{when}");
        let echo = fs::read(root().join("examples/guests/echo.wasm")).unwrap();
        let word = uuid::Uuid::new_v4().simple().to_string();
        let (status, answer) = self
            .send(&format!("/api/wasm/execute?input={word}"), echo)
            .await;
        assert_eq!(
            (status, &answer["output"]),
            (200, &json!(word)),
            "{when}: {answer}"
        );
    }

    /// Sends a module; again where several large ones are more than one caller has room for.
    async fn send(&self, path: &str, module: Vec<u8>) -> (u16, Value) {
        let module = bytes::Bytes::from(module);
        eventually("room for a module", async || {
            let request = self.client.post(self.gateway.url(path));
            let answer = request
                .bearer_auth(&self.key)
                .header("content-type", "application/wasm")
                .body(module.clone())
                .send()
                .await
                .unwrap();
            let status = answer.status().as_u16();
            let answer: Value = answer.json().await.unwrap();
            let busy = status == 503 && answer["code"] == "guests_busy";
            (!busy).then_some((status, answer))
        })
        .await
    }
}

/// What a process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    resident_bytes: u64,
    peak_bytes: u64,
    mappings: usize,
    descriptors: usize,
    children: usize,
}

impl Held {
    fn by(pid: i32) -> Held {
        let process = std::path::PathBuf::from(format!("/proc/{pid}"));
        let status = fs::read_to_string(process.join("status")).unwrap();
        let bytes = |field: &str| {
            let line = status.lines().find(|line| line.starts_with(field)).unwrap();
            let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
            kilobytes * 1024
        };
        let children = fs::read_dir(process.join("task"))
            .unwrap()
            .flatten()
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
            .map(|children| children.split_whitespace().count())
            .sum();
        Held {
            resident_bytes: bytes("VmRSS:"),
            peak_bytes: bytes("VmHWM:"),
            mappings: fs::read_to_string(process.join("maps"))
                .unwrap()
                .lines()
                .count(),
            descriptors: fs::read_dir(process.join("fd")).unwrap().count(),
            children,
        }
    }
}

/// Appends a custom section, so that no cache has an answer from the round before.
fn set_apart(module: &mut Vec<u8>, round: usize) {
    let name = format!("round {round}");
    module.push(0);
    leb(module, name.len() + 1);
    leb(module, name.len());
    module.extend_from_slice(name.as_bytes());
}
