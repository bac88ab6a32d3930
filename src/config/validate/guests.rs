//! What guests may use: globally, by tier, and all together.

use std::path::PathBuf;

use super::server::file_path;
use super::{DEADLINE, MEMORY, RATE};
use crate::config::context::Context;
use crate::config::file::{self, File};
use crate::config::problem::Path;
use crate::config::secret::SALT_CHARS_MIN;
use crate::config::values::{Period, Requests, Size};
use crate::limits::{Compute, Rate, TierLimits, Tiers};
use crate::sandbox::{ArtifactKey, ArtifactSettings, CompileSettings, GuestLimits, Settings};

/// The global limits: ceilings for anonymous callers and the Free tier.
pub fn global(sandbox: &file::Sandbox, cx: &mut Context) -> GuestLimits {
    let at = Path::from("sandbox");
    cx.period(
        &at.key("execution_timeout"),
        sandbox.execution_timeout,
        DEADLINE.0,
        DEADLINE.1,
    );
    cx.size(
        &at.key("memory_max"),
        sandbox.memory_max,
        MEMORY.0,
        MEMORY.1,
    );
    cx.size(
        &at.key("stdout_max"),
        sandbox.stdout_max,
        Size(1),
        Size::mib(256),
    );
    cx.size(
        &at.key("stderr_max"),
        sandbox.stderr_max,
        Size(0),
        Size::mib(16),
    );
    GuestLimits {
        deadline: sandbox.execution_timeout.0,
        memory_bytes_max: sandbox.memory_max.0,
        stdout_bytes_max: sandbox.stdout_max.0,
        stderr_bytes_max: sandbox.stderr_max.0,
    }
}

pub fn sandbox(sandbox: &file::Sandbox, cx: &mut Context) -> Settings {
    let at = Path::from("sandbox");
    cx.size(
        &at.key("wasm_size_max"),
        sandbox.wasm_size_max,
        Size(1),
        Size::mib(256),
    );
    cx.size(
        &at.key("input_size_max"),
        sandbox.input_size_max,
        Size(1),
        Size::mib(256),
    );
    cx.size(
        &at.key("stack_size"),
        sandbox.stack_size,
        Size::kib(64),
        Size::mib(16),
    );
    cx.count(
        &at.key("table_elements_max"),
        sandbox.table_elements_max,
        1,
        10_000_000,
    );
    cx.count(&at.key("guests_max"), sandbox.guests_max, 1, 8_000);
    cx.count(
        &at.key("guests_per_caller_max"),
        sandbox.guests_per_caller_max,
        1,
        8_000,
    );
    cx.count(&at.key("warm_max"), sandbox.warm_max, 0, 8_000);
    cx.count(&at.key("queue_max"), sandbox.queue_max, 0, 1_000_000);
    cx.period(
        &at.key("queue_timeout"),
        sandbox.queue_timeout,
        Period::secs(0),
        Period::secs(60),
    );
    cx.size(
        &at.key("cache_max"),
        sandbox.cache_max,
        Size::mib(1),
        Size::gib(64),
    );
    Settings {
        wasm_bytes_max: sandbox.wasm_size_max.0,
        guests_max: sandbox.guests_max as usize,
        guests_per_share_max: sandbox.guests_per_caller_max as usize,
        warm_max: sandbox.warm_max as usize,
        queue_max: sandbox.queue_max as usize,
        queue_timeout: sandbox.queue_timeout.0,
        stack_bytes: sandbox.stack_size.as_usize(),
        table_elements_max: sandbox.table_elements_max,
        cache_bytes_max: sandbox.cache_max.0,
        compile: compile(&sandbox.compile, cx),
        artifacts: artifacts(&sandbox.artifacts, cx),
    }
}

fn compile(compile: &file::Compile, cx: &mut Context) -> CompileSettings {
    let at = Path::from("sandbox.compile");
    cx.count(&at.key("workers_max"), compile.workers_max, 1, 64);
    cx.count(&at.key("workers_spare"), compile.workers_spare, 0, 16);
    cx.count(&at.key("queue_max"), compile.queue_max, 0, 10_000);
    cx.period(
        &at.key("queue_timeout"),
        compile.queue_timeout,
        Period::ms(100),
        Period::secs(600),
    );
    cx.period(
        &at.key("timeout"),
        compile.timeout,
        Period::secs(1),
        Period::secs(600),
    );
    cx.size(
        &at.key("memory_max"),
        compile.memory_max,
        Size::mib(256),
        Size::gib(64),
    );
    // The worker is this program. Where the system can't say which file that is, its name is
    // searched in PATH.
    let worker = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("wasm-wizard"));
    CompileSettings {
        worker,
        workers_max: compile.workers_max as usize,
        workers_spare: compile.workers_spare as usize,
        queue_max: compile.queue_max as usize,
        queue_timeout: compile.queue_timeout.0,
        singlepass: compile.singlepass,
        timeout: compile.timeout.0,
        memory_bytes_max: compile.memory_max.0,
    }
}

fn artifacts(artifacts: &file::Artifacts, cx: &mut Context) -> Option<ArtifactSettings> {
    let at = Path::from("sandbox.artifacts");
    cx.size(
        &at.key("size_max"),
        artifacts.size_max,
        Size::mib(1),
        Size::gib(1024),
    );
    let key = artifacts.key.as_ref().map(|key| {
        let (key, chars) = (key.reveal(), key.reveal().chars().count());
        if chars < SALT_CHARS_MIN {
            let message = format!("must have at least {SALT_CHARS_MIN} characters, not {chars}");
            let hint = "set ARTIFACT_KEY to the output of: openssl rand -hex 32, or leave it out";
            cx.problem(&at.key("key"), message, hint);
        }
        ArtifactKey::new(key)
    });
    let directory = artifacts.directory.as_deref()?;
    Some(ArtifactSettings {
        directory: file_path(Some(directory), &at.key("directory"), cx)?,
        bytes_max: artifacts.size_max.0,
        key,
    })
}

/// The tiers as they take effect: the global limits are ceilings for the Free tier, and a higher
/// tier gets what its row says.
pub fn tiers(file: &File, cx: &mut Context) -> Tiers {
    let at = Path::from("tiers");
    let mut free = tier(&file.tiers.free, &at.key("free"), cx);
    free.memory_bytes_max = free.memory_bytes_max.min(file.sandbox.memory_max.0);
    free.deadline = free.deadline.min(file.sandbox.execution_timeout.0);
    Tiers {
        free,
        basic: tier(&file.tiers.basic, &at.key("basic"), cx),
        pro: tier(&file.tiers.pro, &at.key("pro"), cx),
        enterprise: tier(&file.tiers.enterprise, &at.key("enterprise"), cx),
    }
}

fn tier(tier: &file::Tier, at: &Path, cx: &mut Context) -> TierLimits {
    requests(tier.per_minute, &at.key("per_minute"), cx);
    requests(tier.per_day, &at.key("per_day"), cx);
    let rate = Rate {
        per_minute: tier.per_minute.0,
        per_day: tier.per_day.0,
    };
    rate_order(rate, at, cx);
    let compute = compute(tier, at, cx);
    cx.size(&at.key("memory_max"), tier.memory_max, MEMORY.0, MEMORY.1);
    cx.period(
        &at.key("execution_timeout"),
        tier.execution_timeout,
        DEADLINE.0,
        DEADLINE.1,
    );
    TierLimits {
        rate,
        compute,
        memory_bytes_max: tier.memory_max.0,
        deadline: tier.execution_timeout.0,
    }
}

fn compute(tier: &file::Tier, at: &Path, cx: &mut Context) -> Compute {
    requests(tier.cpu_ms_per_minute, &at.key("cpu_ms_per_minute"), cx);
    requests(tier.cpu_ms_per_day, &at.key("cpu_ms_per_day"), cx);
    requests(tier.guests_max, &at.key("guests_max"), cx);
    let cpu_ms = Rate {
        per_minute: tier.cpu_ms_per_minute.0,
        per_day: tier.cpu_ms_per_day.0,
    };
    if let (Some(minute), Some(day)) = (cpu_ms.per_minute, cpu_ms.per_day)
        && day < minute
    {
        let message = format!("{day} ms a day leave the {minute} ms a minute no use");
        let hint = "raise cpu_ms_per_day, or set cpu_ms_per_minute to unlimited";
        cx.warning(&at.key("cpu_ms_per_day"), message, hint);
    }
    let deadline_ms = tier.execution_timeout.0.as_millis();
    if let Some(minute) = cpu_ms.per_minute
        && u128::from(minute) < deadline_ms
    {
        let message = format!("one guest may use {deadline_ms} ms, more than a minute has");
        let hint = "raise cpu_ms_per_minute, or lower execution_timeout";
        cx.warning(&at.key("cpu_ms_per_minute"), message, hint);
    }
    Compute {
        cpu_ms,
        guests_max: tier.guests_max.0,
    }
}

fn requests(requests: Requests, path: &Path, cx: &mut Context) {
    if let Some(count) = requests.0 {
        cx.count(path, count, RATE.0, RATE.1);
    }
}

/// A day that is shorter than a minute is allowed, but hardly meant.
pub fn rate_order(rate: Rate, at: &Path, cx: &mut Context) {
    if let (Some(minute), Some(day)) = (rate.per_minute, rate.per_day)
        && day < minute
    {
        let message = format!("{day} a day leave the {minute} a minute no use");
        cx.warning(
            &at.key("per_day"),
            message,
            "raise per_day, or leave per_minute out",
        );
    }
}
