//! What each tier's guests may use: output, stack and tables, on every way to a guest.

use serde_json::{Value, json};

use crate::support::gateway::{Gateway, gateway, workdir};
use crate::usage::get;

/// Says `out` and `err`, and then does what its input's first byte says: writes 100 KiB to standard output
/// or 1 KiB to standard error, calls itself 6,000 times, has its table grow by 1,000 or its memory by 4 MiB
/// and fails if it does not, spins, or returns.
const GUEST: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 4)
    (table 500 funcref)
    (data (i32.const 0) "\00\01\00\00\01\00\00\00")
    (data (i32.const 16) "\40\01\00\00\03\00\00\00") (data (i32.const 320) "out")
    (data (i32.const 24) "\50\01\00\00\03\00\00\00") (data (i32.const 336) "err")
    (data (i32.const 32) "\00\02\00\00\00\90\01\00")
    (data (i32.const 40) "\00\02\00\00\00\04\00\00")
    (func $say (param i32 i32)
        (drop (call $write (local.get 0) (local.get 1) (i32.const 1) (i32.const 8))))
    (func $down (param i32) (result i32)
        (if (result i32) (local.get 0)
            (then (i32.add (i32.const 1) (call $down (i32.sub (local.get 0) (i32.const 1)))))
            (else (i32.const 0))))
    (func (export "_start") (local i32)
        (call $say (i32.const 1) (i32.const 16))
        (call $say (i32.const 2) (i32.const 24))
        (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
        (local.set 0 (i32.load8_u (i32.const 256)))
        (if (i32.eq (local.get 0) (i32.const 111)) (then (call $say (i32.const 1) (i32.const 32))))
        (if (i32.eq (local.get 0) (i32.const 101)) (then (call $say (i32.const 2) (i32.const 40))))
        (if (i32.eq (local.get 0) (i32.const 115)) (then (drop (call $down (i32.const 6000)))))
        (if (i32.eq (local.get 0) (i32.const 116)) (then
            (if (i32.eq (table.grow (ref.null func) (i32.const 1000)) (i32.const -1))
                (then unreachable))))
        (if (i32.eq (local.get 0) (i32.const 109)) (then
            (if (i32.eq (memory.grow (i32.const 64)) (i32.const -1)) (then unreachable))))
        (if (i32.eq (local.get 0) (i32.const 108)) (then (loop (br 0))))))"#;

/// What the guest is told, what it is ended with where that is too much, and the word of the limit.
const LIMITS: [(&str, &str, &str); 4] = [
    ("o", "output_limit_exceeded", "output"),
    ("s", "stack_limit_exceeded", "stack"),
    ("t", "table_limit_exceeded", "table"),
    ("m", "memory_limit_exceeded", "memory"),
];

/// The tier that has little, in a gateway where the others have what the sandbox gives.
fn little(tier: &str) -> Gateway {
    let dir = workdir();
    std::fs::write(dir.path().join("guest.wat"), GUEST).unwrap();
    gateway()
        .set(&format!("tiers.{tier}.stdout_max"), json!("64KiB"))
        .set(&format!("tiers.{tier}.stderr_max"), json!(100))
        .set(&format!("tiers.{tier}.stack_size"), json!("64KiB"))
        .set(&format!("tiers.{tier}.table_elements_max"), json!(1_000))
        .set(&format!("tiers.{tier}.memory_max"), json!("2MiB"))
        .set("tiers.free.per_minute", json!("unlimited"))
        .set("tiers.free.per_day", json!("unlimited"))
        .route(json!({
            "name": "open", "match": { "path": "/open" }, "execute": { "file": "guest.wat" },
        }))
        .route(json!({
            "name": "keyed", "match": { "path": "/keyed" }, "auth": "key",
            "execute": { "file": "guest.wat" },
        }))
        .in_dir(dir)
        .start()
}

struct Caller<'a> {
    gateway: &'a Gateway,
    key: String,
}

impl Caller<'_> {
    async fn ask(&self, path: &str, kind: &str, body: &str) -> (u16, Value) {
        let answer = self
            .gateway
            .client()
            .post(self.gateway.url(path))
            .bearer_auth(&self.key)
            .header("content-type", kind)
            .body(body.to_owned())
            .send()
            .await
            .unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    /// Uploads the guest; the path that executes it.
    async fn upload(&self) -> String {
        let form = reqwest::multipart::Form::new()
            .text("name", "guest")
            .text("is_public", "true")
            .part("wasm", reqwest::multipart::Part::text(GUEST).file_name("m"));
        let client = self.gateway.client();
        let request = client.post(self.gateway.url("/api/wasm/upload"));
        let answer = request.bearer_auth(&self.key).multipart(form).send().await;
        let module: Value = answer.unwrap().json().await.unwrap();
        format!(
            "/api/wasm/modules/{}/execute",
            module["id"].as_str().unwrap()
        )
    }

    /// Executes the guest in both ways of the API.
    async fn execute(&self, stored: &str, input: &str) -> [(u16, Value); 2] {
        let once = format!("/api/wasm/execute?input={input}");
        [
            self.ask(&once, "text/wat", GUEST).await,
            self.ask(stored, "application/octet-stream", input).await,
        ]
    }

    /// A key of another tier for the same user.
    async fn with_tier(&self, tier: &str) -> Caller<'_> {
        let wanted = json!({ "name": tier, "tier": tier }).to_string();
        let (status, made) = self
            .ask("/api/auth/keys", "application/json", &wanted)
            .await;
        assert_eq!(status, 201, "{made}");
        Caller {
            gateway: self.gateway,
            key: made["api_key"].as_str().unwrap().to_owned(),
        }
    }
}

fn admin(gateway: &Gateway) -> Caller<'_> {
    Caller {
        gateway,
        key: gateway.admin_key(),
    }
}

async fn has_little(caller: &Caller<'_>, stored: &str) {
    for (input, code, limit) in LIMITS {
        for (status, receipt) in caller.execute(stored, input).await {
            assert_eq!(status, 422, "{input}: {receipt}");
            assert_eq!(receipt["code"], code, "{receipt}");
            assert_eq!(receipt["status"], code, "{receipt}");
            assert_eq!(receipt["limit"], limit, "{receipt}");
            assert!(receipt["output"].as_str().unwrap().starts_with("out"));
            assert_eq!(receipt["stderr"], "err");
        }
        let (status, failure) = caller.ask("/keyed", "text/plain", input).await;
        assert_eq!((status, &failure["code"]), (502, &json!(code)), "{failure}");
    }
    for (status, receipt) in caller.execute(stored, "e").await {
        assert_eq!(status, 200, "{receipt}");
        assert_eq!(receipt["stderr"].as_str().unwrap().len(), 100);
        assert_eq!(receipt["stderr_truncated"], true);
    }
}

async fn has_enough(caller: &Caller<'_>, stored: &str) {
    for (input, _, _) in LIMITS {
        for (status, receipt) in caller.execute(stored, input).await {
            assert_eq!(status, 200, "{input}: {receipt}");
        }
        let (status, failure) = caller.ask("/keyed", "text/plain", input).await;
        assert_eq!(status, 200, "{failure}");
    }
    for (status, receipt) in caller.execute(stored, "e").await {
        assert_eq!((status, &receipt["stderr_truncated"]), (200, &json!(false)));
    }
}

#[tokio::test]
async fn each_tier_has_its_own_memory_output_stack_and_tables() {
    let gateway = little("enterprise");
    let enterprise = admin(&gateway);
    let basic = enterprise.with_tier("basic").await;
    let stored = enterprise.upload().await;
    // In turn, so that one's guests find the threads, stacks and instances of the other's.
    for _ in 0..3 {
        has_little(&enterprise, &stored).await;
        has_enough(&basic, &stored).await;
        for (input, _, _) in LIMITS {
            let (status, failure) = basic.ask("/open", "text/plain", input).await;
            assert_eq!(status, 200, "{failure}");
        }
    }

    let (_, tiers) = get(&gateway, &enterprise.key, "/api/admin/tiers").await;
    let row = |at: usize| {
        let row = &tiers["tiers"][at];
        [
            "stdout_bytes_max",
            "stderr_bytes_max",
            "stack_bytes_max",
            "table_elements_max",
        ]
        .map(|key| row[key].as_u64().unwrap())
    };
    assert_eq!(row(1), [8 << 20, 64 << 10, 1 << 20, 100_000]);
    assert_eq!(row(3), [64 << 10, 100, 64 << 10, 1_000]);
}

#[tokio::test]
async fn the_free_tier_has_no_more_than_the_sandbox_gives_and_a_higher_one_does() {
    let gateway = gateway()
        .set("sandbox.stdout_max", json!("64KiB"))
        .set("sandbox.stderr_max", json!(100))
        .set("sandbox.stack_size", json!("64KiB"))
        .set("sandbox.table_elements_max", json!(1_000))
        .set("sandbox.memory_max", json!("2MiB"));
    let gateway = ["free", "enterprise"]
        .into_iter()
        .fold(gateway, |gateway, tier| {
            gateway
                .set(&format!("tiers.{tier}.stdout_max"), json!("1MiB"))
                .set(&format!("tiers.{tier}.stderr_max"), json!("4KiB"))
                .set(&format!("tiers.{tier}.stack_size"), json!("2MiB"))
                .set(&format!("tiers.{tier}.table_elements_max"), json!(2_000))
                .set(&format!("tiers.{tier}.per_minute"), json!("unlimited"))
                .set(&format!("tiers.{tier}.per_day"), json!("unlimited"))
        });
    let dir = workdir();
    std::fs::write(dir.path().join("guest.wat"), GUEST).unwrap();
    let gateway = gateway
        .route(json!({
            "name": "keyed", "match": { "path": "/keyed" }, "auth": "key",
            "execute": { "file": "guest.wat" },
        }))
        .in_dir(dir)
        .start();
    let enterprise = admin(&gateway);
    let free = enterprise.with_tier("free").await;
    let stored = enterprise.upload().await;
    has_enough(&enterprise, &stored).await;
    has_little(&free, &stored).await;
    has_enough(&enterprise, &stored).await;
}

/// What starts with more table elements than its caller may have does not start.
#[tokio::test]
async fn a_table_over_the_tiers_limit_from_the_start_ends_the_guest_before_it_runs() {
    let gateway = gateway()
        .set("tiers.basic.table_elements_max", json!(499))
        .start();
    let enterprise = admin(&gateway);
    let basic = enterprise.with_tier("basic").await;
    let stored = enterprise.upload().await;
    for (status, receipt) in enterprise.execute(&stored, "x").await {
        assert_eq!((status, &receipt["output"]), (200, &json!("out")));
    }
    for (status, receipt) in basic.execute(&stored, "x").await {
        assert_eq!(status, 422, "{receipt}");
        assert_eq!(receipt["code"], "table_limit_exceeded");
        assert_eq!(receipt["output"], Value::Null);
    }
}

#[tokio::test]
async fn each_tier_has_its_own_time() {
    let gateway = gateway()
        .set("tiers.basic.execution_timeout", json!("200ms"))
        .set("tiers.pro.execution_timeout", json!("1h"))
        .start();
    let enterprise = admin(&gateway);
    let (basic, pro) = (
        enterprise.with_tier("basic").await,
        enterprise.with_tier("pro").await,
    );
    let stored = enterprise.upload().await;
    let patient = pro.execute(&stored, "l");
    let hurried = async {
        gateway.guests_running(1).await;
        for _ in 0..2 {
            for (status, receipt) in basic.execute(&stored, "l").await {
                assert_eq!(status, 422, "{receipt}");
                assert_eq!(receipt["code"], "time_limit_exceeded");
                assert_eq!(
                    (&receipt["limit"], &receipt["output"]),
                    (&json!("time"), &json!("out"))
                );
                assert_eq!(receipt["stderr"], "err");
            }
        }
    };
    tokio::select! {
        _ = patient => panic!("an hour is over"),
        () = hurried => {}
    }
    // Nor did those of the other tier end the guest that has its hour.
    gateway.guests_running(0).await;
}
