//! `exec`: runs a module in the gateway's sandbox, under the same limits, without a server.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use serde_json::json;

use crate::config::{Config, Period, Size};
use crate::sandbox::{
    self, Call, End, Files, GuestLimits, ModuleHash, Outcome, Preparation, Sandbox, ShareKey,
    Stdout, Strings,
};

const EXAMPLES: &str = "\
Examples:
  wasm-wizard exec examples/guests/echo.wasm --input 'hello'
  wasm-wizard exec examples/guests/wordcount.wasm < README.md
  wasm-wizard exec mine.wat --timeout 500ms --memory 16MiB --json
  wasm-wizard exec mine.wasm --files data/

The guest's standard output and standard error go to this command's own; what it used is reported on
standard error. The exit code is the guest's, or 124 for a time limit, 125 for another limit, 126 for
a trap.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The module: WebAssembly binary or text (WAT).
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What the guest reads on standard input; without it, this command's standard input unless
    /// that is a terminal.
    #[arg(long, value_name = "TEXT", conflicts_with = "input_file")]
    input: Option<String>,
    /// Reads the guest's input from a file.
    #[arg(long, value_name = "FILE")]
    input_file: Option<PathBuf>,
    /// Wall-clock limit, at most the configured one.
    #[arg(long, value_name = "DURATION", value_parser = Period::parse)]
    timeout: Option<Period>,
    /// Memory limit, at most the configured one.
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    memory: Option<Size>,
    /// A directory that the guest finds as `/`; it reads a copy and can't write.
    #[arg(long, value_name = "DIR")]
    files: Option<PathBuf>,
    /// Environment variables of the guest.
    #[arg(long = "env", value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Prints everything as one JSON object on standard output.
    #[arg(long)]
    json: bool,
    /// Arguments of the guest.
    #[arg(last = true)]
    args: Vec<String>,
}

pub(super) fn run(args: &Args, config: &Config) -> anyhow::Result<i32> {
    let bytes = read_bounded(&args.file, config.sandbox.wasm_bytes_max)?;
    let call = Call {
        args: Strings::arguments(
            std::iter::once("main.wasm").chain(args.args.iter().map(String::as_str)),
        ),
        env: environment(&args.env)?,
        stdin: input(args, config.api.input_bytes_max)?.into(),
        files: files(args)?,
        stdout: Stdout::Collect,
        limits: limits(args, config.gateway.guest),
        share: ShareKey::default(),
    };
    let runtime = super::runtime()?;
    let (hash, outcome) = runtime.block_on(async {
        let sandbox = Sandbox::start(config.sandbox.clone().for_one_command())
            .context("starting the sandbox")?;
        let wasm = sandbox::to_binary(bytes).with_context(|| format!("{}", args.file.display()))?;
        let module = sandbox
            .prepare(wasm, Preparation::Optimised)
            .await
            .with_context(|| format!("{}", args.file.display()))?;
        let outcome = sandbox.run(module.clone(), call).await?;
        anyhow::Ok((module.hash(), outcome))
    })?;
    report(args.json, hash, &outcome)?;
    Ok(exit_code(&outcome.end))
}

fn limits(args: &Args, configured: GuestLimits) -> GuestLimits {
    GuestLimits {
        deadline: args
            .timeout
            .map_or(Duration::MAX, |d| d.0)
            .min(configured.deadline),
        memory_bytes_max: args
            .memory
            .map_or(u64::MAX, |s| s.0)
            .min(configured.memory_bytes_max),
        ..configured
    }
}

fn environment(pairs: &[String]) -> anyhow::Result<Strings> {
    let mut variables = Strings::default();
    for pair in pairs {
        match pair.split_once('=') {
            Some((name, value)) if !name.is_empty() => variables.add_variable(name, value),
            _ => bail!("--env wants NAME=VALUE, not `{pair}`"),
        }
    }
    Ok(variables)
}

fn files(args: &Args) -> anyhow::Result<Option<Arc<Files>>> {
    let files = args.files.as_deref().map(Files::load).transpose()?;
    Ok(files.map(Arc::new))
}

fn input(args: &Args, bytes_max: u64) -> anyhow::Result<Bytes> {
    if let Some(text) = &args.input {
        return Ok(Bytes::from(text.clone()));
    }
    if let Some(file) = &args.input_file {
        return read_bounded(file, bytes_max);
    }
    if std::io::stdin().is_terminal() {
        return Ok(Bytes::new());
    }
    take_bounded(std::io::stdin().lock(), bytes_max).context("reading standard input")
}

fn read_bounded(path: &Path, bytes_max: u64) -> anyhow::Result<Bytes> {
    let file = std::fs::File::open(path).with_context(|| format!("{}", path.display()))?;
    take_bounded(file, bytes_max).with_context(|| format!("{}", path.display()))
}

fn take_bounded(reader: impl Read, bytes_max: u64) -> anyhow::Result<Bytes> {
    let mut bytes = Vec::new();
    reader
        .take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        bail!("larger than the limit of {bytes_max} bytes");
    }
    Ok(Bytes::from(bytes))
}

fn report(as_json: bool, hash: ModuleHash, outcome: &Outcome) -> anyhow::Result<()> {
    let usage = &outcome.usage;
    let mut stdout = std::io::stdout().lock();
    if as_json {
        let report = json!({
            "status": outcome.end.status(),
            "exit_code": match outcome.end { End::Exit(code) => Some(code), _ => None },
            "end": describe(&outcome.end),
            "stdout": String::from_utf8_lossy(&outcome.stdout),
            "stderr": String::from_utf8_lossy(&outcome.stderr),
            "stderr_truncated": outcome.stderr_truncated,
            "wall_us": usage.wall.as_micros() as u64,
            "cpu_us": usage.cpu.as_micros() as u64,
            "memory_peak_bytes": usage.memory_peak_bytes,
            "sha256_hash": hash.to_string(),
        });
        writeln!(stdout, "{report}")?;
        return Ok(());
    }
    stdout.write_all(&outcome.stdout)?;
    stdout.flush()?;
    let mut stderr = std::io::stderr().lock();
    stderr.write_all(&outcome.stderr)?;
    let ends_mid_line = |bytes: &[u8]| bytes.last().is_some_and(|b| *b != b'\n');
    if ends_mid_line(&outcome.stderr)
        || (outcome.stderr.is_empty() && ends_mid_line(&outcome.stdout))
    {
        writeln!(stderr)?;
    }
    writeln!(
        stderr,
        "[{}; wall {} µs, cpu {} µs, memory peak {} bytes, stdout {} bytes]",
        describe(&outcome.end),
        usage.wall.as_micros(),
        usage.cpu.as_micros(),
        usage.memory_peak_bytes,
        usage.stdout_bytes,
    )?;
    Ok(())
}

fn describe(end: &End) -> String {
    match end {
        End::Exit(code) => format!("exit code {code}"),
        End::Trap(trap) => format!("trap: {trap}"),
        End::TimeLimit => "stopped: time limit exceeded".into(),
        End::MemoryLimit => "stopped: memory limit exceeded".into(),
        End::StackLimit => "stopped: stack limit exceeded".into(),
        End::TableLimit => "stopped: table limit exceeded".into(),
        End::OutputLimit => "stopped: output limit exceeded".into(),
        End::Cancelled => "cancelled".into(),
        End::HostError(error) => format!("the sandbox failed: {error}"),
    }
}

fn exit_code(end: &End) -> i32 {
    match end {
        // Exit codes of a process are 8 bits; one that would look like success must not.
        End::Exit(code) if (0..=255).contains(code) => *code,
        End::Exit(_) => 1,
        End::TimeLimit => 124,
        End::MemoryLimit
        | End::StackLimit
        | End::TableLimit
        | End::OutputLimit
        | End::Cancelled => 125,
        End::Trap(_) => 126,
        End::HostError(_) => 70,
    }
}
