//! What guests may use: globally, by tier, and all together.

use std::path::PathBuf;

use super::server::file_path;
use super::{DEADLINE, MEMORY, RATE, STDOUT};
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
    let rest = Rest {
        stdout_max: Some(sandbox.stdout_max),
        stderr_max: Some(sandbox.stderr_max),
        stack_size: Some(sandbox.stack_size),
        table_elements_max: Some(sandbox.table_elements_max),
    };
    rest.check(&at, cx);
    GuestLimits {
        deadline: sandbox.execution_timeout.0,
        memory_bytes_max: sandbox.memory_max.0,
        stdout_bytes_max: sandbox.stdout_max.0,
        stderr_bytes_max: sandbox.stderr_max.0,
        stack_bytes_max: sandbox.stack_size.0,
        table_elements_max: sandbox.table_elements_max,
    }
}

/// Limits that the sandbox and each tier may have.
struct Rest {
    stdout_max: Option<Size>,
    stderr_max: Option<Size>,
    stack_size: Option<Size>,
    table_elements_max: Option<u32>,
}

impl Rest {
    fn check(&self, at: &Path, cx: &mut Context) {
        let sizes = [
            ("stdout_max", self.stdout_max, STDOUT),
            ("stderr_max", self.stderr_max, (Size(0), Size::mib(16))),
            (
                "stack_size",
                self.stack_size,
                (Size::kib(64), Size::mib(16)),
            ),
        ];
        for (key, size, (min, max)) in sizes {
            if let Some(size) = size {
                cx.size(&at.key(key), size, min, max);
            }
        }
        if let Some(elements) = self.table_elements_max {
            cx.count(&at.key("table_elements_max"), elements, 1, 10_000_000);
        }
    }
}

pub fn sandbox(file: &File, tiers: &Tiers, cx: &mut Context) -> Settings {
    let (sandbox, at) = (&file.sandbox, Path::from("sandbox"));
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
    // A tier may have more than the sandbox gives by itself, and the sandbox is made for the most.
    let rows = [&tiers.free, &tiers.basic, &tiers.pro, &tiers.enterprise];
    let stack_bytes = rows.iter().filter_map(|tier| tier.stack_bytes_max);
    let table_elements = rows.iter().filter_map(|tier| tier.table_elements_max);
    Settings {
        wasm_bytes_max: sandbox.wasm_size_max.0,
        guests_max: sandbox.guests_max as usize,
        guests_per_share_max: sandbox.guests_per_caller_max as usize,
        warm_max: sandbox.warm_max as usize,
        queue_max: sandbox.queue_max as usize,
        queue_timeout: sandbox.queue_timeout.0,
        stack_bytes_max: stack_bytes.fold(sandbox.stack_size.0, u64::max),
        table_elements_max: table_elements.fold(sandbox.table_elements_max, u32::max),
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
    // This program, as it was when it was started: its file may have been replaced since.
    let worker = PathBuf::from("/proc/self/exe");
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
    let lower = |own: &mut Option<u64>, ceiling: Size| *own = own.map(|own| own.min(ceiling.0));
    lower(&mut free.stdout_bytes_max, file.sandbox.stdout_max);
    lower(&mut free.stderr_bytes_max, file.sandbox.stderr_max);
    lower(&mut free.stack_bytes_max, file.sandbox.stack_size);
    let elements_max = file.sandbox.table_elements_max;
    free.table_elements_max = free.table_elements_max.map(|own| own.min(elements_max));
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
    let rest = Rest {
        stdout_max: tier.stdout_max,
        stderr_max: tier.stderr_max,
        stack_size: tier.stack_size,
        table_elements_max: tier.table_elements_max,
    };
    rest.check(at, cx);
    TierLimits {
        rate,
        compute,
        memory_bytes_max: tier.memory_max.0,
        deadline: tier.execution_timeout.0,
        stdout_bytes_max: tier.stdout_max.map(|size| size.0),
        stderr_bytes_max: tier.stderr_max.map(|size| size.0),
        stack_bytes_max: tier.stack_size.map(|size| size.0),
        table_elements_max: tier.table_elements_max,
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
