//! `wasm-wizard check`: is this configuration fit to start with? Binds no port and starts nothing;
//! opens the certificates, keys, modules and files that the configuration names.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path as FilePath, PathBuf};
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::X509Version;

use crate::config::{self, Config, Loaded, Path, Problem};
use crate::gateway::Listener;
use crate::route::{ModuleSource, Route, Target};
use crate::sandbox::{self, Files};
use crate::tls::{self, CertificateFiles};
use crate::upstream;

/// A certificate that ends sooner than this is worth a warning.
const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 86_400);

/// Largest certificate or key file read.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// Check a configuration without starting anything
///
/// Reports every problem with its file, line and what to do, opens the certificates, keys,
/// modules and files that the configuration names, and exits with 0 when a start would accept it, else 1.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Args {
    /// The configuration file; without it, the built-in configuration
    #[arg(skip)]
    pub config: Option<PathBuf>,

    /// Print the configuration in effect, with secrets hidden
    #[arg(long)]
    pub print: bool,

    /// Print the JSON Schema of the configuration file
    #[arg(long, hide = true)]
    pub schema: bool,
}

/// Whether these bytes are a module that a sandbox with these settings would run; if not, why.
pub type ModuleProbe<'a> = dyn Fn(&[u8], &sandbox::Settings) -> Result<(), String> + 'a;

/// Whether routes make a table: those that can never match, or else those that are wrong.
pub type TableProbe<'a> = dyn Fn(&[Route]) -> Result<Vec<RouteFinding>, Vec<RouteFinding>> + 'a;

/// What only other parts of the program can tell.
pub struct Probes<'a> {
    pub module: &'a ModuleProbe<'a>,
    pub table: &'a TableProbe<'a>,
    /// The time certificates are held against.
    pub now: SystemTime,
}

/// Something about one route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteFinding {
    /// The route's name.
    pub route: String,
    pub message: String,
}

/// Checks, reports to `out`, and returns the exit code: 0 for a configuration that can be used, 1
/// for one that can't, or when `out` can't be written.
pub fn run(
    args: &Args,
    variables: &BTreeMap<String, String>,
    probes: &Probes<'_>,
    out: &mut impl Write,
) -> u8 {
    match report(args, variables, probes, out) {
        Ok(true) => 0,
        Ok(false) | Err(_) => 1,
    }
}

fn report(
    args: &Args,
    variables: &BTreeMap<String, String>,
    probes: &Probes<'_>,
    out: &mut impl Write,
) -> io::Result<bool> {
    if args.schema {
        out.write_all(config::json_schema().as_bytes())?;
        return Ok(true);
    }
    let name = args
        .config
        .as_ref()
        .map_or("built-in configuration".to_string(), |path| {
            path.display().to_string()
        });
    let loaded = match Config::load(args.config.as_deref(), variables) {
        Ok(loaded) => loaded,
        Err(problems) => return summary(&name, &problems.0, &[], "", out),
    };
    let mut findings = Findings {
        loaded: &loaded,
        problems: Vec::new(),
        warnings: loaded.warnings.clone(),
    };
    findings.certificates(probes.now);
    findings.modules(probes.module);
    findings.files();
    findings.upstreams();
    findings.table(probes.table);
    let Findings {
        mut problems,
        mut warnings,
        ..
    } = findings;
    problems.sort_by(|a, b| a.origin.cmp(&b.origin));
    warnings.sort_by(|a, b| a.origin.cmp(&b.origin));
    let comment = if args.print { "# " } else { "" };
    if args.print {
        out.write_all(loaded.to_yaml().map_err(io::Error::other)?.as_bytes())?;
    }
    summary(&name, &problems, &warnings, comment, out)
}

/// Lists what was found, ends with one line that counts it, and says whether there is no problem.
fn summary(
    name: &str,
    problems: &[Problem],
    warnings: &[Problem],
    comment: &str,
    out: &mut impl Write,
) -> io::Result<bool> {
    for problem in problems {
        writeln!(out, "{comment}{problem}")?;
    }
    for warning in warnings {
        writeln!(out, "{comment}warning: {warning}")?;
    }
    let counted = |count: usize, noun: &str| match count {
        1 => format!("1 {noun}"),
        count => format!("{count} {noun}s"),
    };
    let verdict = match problems.len() {
        0 => "valid".to_string(),
        count => counted(count, "problem"),
    };
    match warnings.len() {
        0 => writeln!(out, "{comment}{name}: {verdict}")?,
        count => writeln!(
            out,
            "{comment}{name}: {verdict}, {}",
            counted(count, "warning")
        )?,
    }
    Ok(problems.is_empty())
}

struct Findings<'a> {
    loaded: &'a Loaded,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Findings<'_> {
    fn problem(&mut self, path: &Path, message: impl Display, hint: &str) {
        self.problems
            .push(self.loaded.source.problem(path, message, hint));
    }

    fn warning(&mut self, path: &Path, message: impl Display, hint: &str) {
        self.warnings
            .push(self.loaded.source.problem(path, message, hint));
    }

    fn certificates(&mut self, now: SystemTime) {
        let at = Path::from("server.https");
        let https =
            self.loaded
                .config
                .server
                .listeners
                .iter()
                .filter_map(|listener| match listener {
                    Listener::Https { files, .. } => Some(files),
                    Listener::HttpRedirect { .. } | Listener::Http { .. } => None,
                });
        for (index, listener) in https.enumerate() {
            if let Some(clients) = &listener.clients
                && let Err(error) = tls::inspect_clients(clients)
            {
                let path = at.index(index).key("client_certificates").key("ca");
                self.problem(
                    &path,
                    error,
                    "name a PEM file with the authorities' certificates",
                );
            }
            for (number, files) in listener.certificates.iter().enumerate() {
                self.certificate(
                    files,
                    &at.index(index).key("certificates").index(number),
                    now,
                );
            }
        }
    }

    fn certificate(&mut self, files: &CertificateFiles, at: &Path, now: SystemTime) {
        if files.development && !files.cert.exists() && !files.key.exists() {
            return;
        }
        let chain = match certificate_chain(&files.cert) {
            Ok(chain) => Some(chain),
            Err(message) => {
                self.problem(
                    &at.key("cert"),
                    message,
                    "name a PEM file with the certificate, then its issuers",
                );
                None
            }
        };
        let key = match private_key(&files.key) {
            Ok(key) => Some(key),
            Err(message) => {
                self.problem(
                    &at.key("key"),
                    message,
                    "name a PEM file with the private key, unencrypted",
                );
                None
            }
        };
        self.key_permissions(&files.key, &at.key("key"));
        let Some(chain) = chain else {
            return;
        };
        if !self.validity(&files.cert, &chain, &at.key("cert"), now) {
            return;
        }
        let Some(key) = key else {
            return;
        };
        if let Err(error) =
            CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
        {
            let message = match error {
                rustls::Error::InconsistentKeys(_) => {
                    format!(
                        "{} is not the key of {}",
                        files.key.display(),
                        files.cert.display()
                    )
                }
                error => format!("{} can't be used: {error}", files.key.display()),
            };
            self.problem(
                &at.key("key"),
                message,
                "use the key that the certificate was requested with",
            );
        } else if files.ocsp.is_some()
            && let Err(error) = tls::inspect(files)
        {
            let hint = "fetch a new one from the authority, in DER";
            self.problem(&at.key("ocsp"), error, hint);
        }
    }

    fn key_permissions(&mut self, key: &FilePath, path: &Path) {
        if key
            .metadata()
            .is_ok_and(|metadata| metadata.permissions().mode() & 0o007 != 0)
        {
            let message = format!("every user of this machine can read {}", key.display());
            self.warning(path, message, "run chmod 600 on it");
        }
    }

    /// Whether the certificate may be used at all, of its own.
    fn validity(
        &mut self,
        file: &FilePath,
        chain: &[CertificateDer<'_>],
        path: &Path,
        now: SystemTime,
    ) -> bool {
        let file = file.display();
        let Some(leaf) = chain.first() else {
            return false;
        };
        let Ok((_, certificate)) = x509_parser::parse_x509_certificate(leaf) else {
            self.problem(path, format_args!("{file} holds no X.509 certificate"), "");
            return false;
        };
        if certificate.version() != X509Version::V3 {
            self.problem(path, format_args!("{file} {}", tls::NOT_VERSION_3), "");
            return false;
        }
        if !matches!(certificate.subject_alternative_name(), Ok(Some(_))) {
            self.warning(
                path,
                format_args!(
                    "{file} has no subjectAltName: clients do not look for names elsewhere"
                ),
                "request one with the names it is for",
            );
        }
        let validity = certificate.validity();
        let seconds = |time: SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH)
                .ok()
                .and_then(|since| i64::try_from(since.as_secs()).ok())
                .unwrap_or(i64::MAX)
        };
        let (not_before, not_after) = (
            validity.not_before.timestamp(),
            validity.not_after.timestamp(),
        );
        if not_after < seconds(now) {
            self.warning(
                path,
                format_args!("{file} expired on {}", day(not_after)),
                "renew it",
            );
        } else if not_after < seconds(now + EXPIRY_WARNING) {
            self.warning(
                path,
                format_args!("{file} expires on {}", day(not_after)),
                "renew it",
            );
        }
        if not_before > seconds(now) {
            self.warning(
                path,
                format_args!("{file} is not valid before {}", day(not_before)),
                "",
            );
        }
        true
    }

    fn modules(&mut self, check: &ModuleProbe<'_>) {
        let settings = &self.loaded.config.sandbox;
        let size_max = settings.wasm_bytes_max;
        // Routes often share a module, and checking a large one takes time.
        let mut checked: BTreeMap<&FilePath, Result<(), String>> = BTreeMap::new();
        for (index, route) in self.loaded.config.routes.iter().enumerate() {
            let file = match &route.target {
                Target::Execute(execute) => match &execute.module {
                    ModuleSource::File(file) => file,
                    ModuleSource::Stored(_) => continue,
                },
                Target::Proxy(_) | Target::Redirect(_) | Target::Respond(_) => continue,
            };
            let result = checked.entry(file).or_insert_with(|| {
                read_at_most(file, size_max).and_then(|wasm| check(&wasm, settings))
            });
            if let Err(message) = result {
                let message = format!("{}: {message}", file.display());
                let path = Path::from("routes").index(index).key("execute").key("file");
                self.problem(
                    &path,
                    message,
                    "paths are relative to the working directory",
                );
            }
        }
    }

    fn files(&mut self) {
        for (index, route) in self.loaded.config.routes.iter().enumerate() {
            let Target::Execute(execute) = &route.target else {
                continue;
            };
            let Some(directory) = &execute.files else {
                continue;
            };
            if let Err(error) = Files::load(directory) {
                let path = Path::from("routes")
                    .index(index)
                    .key("execute")
                    .key("files");
                let hint = "paths are relative to the working directory";
                self.problem(&path, error, hint);
            }
        }
    }

    /// What `https` upstreams are verified with, and what they are shown.
    fn upstreams(&mut self) {
        for (index, route) in self.loaded.config.routes.iter().enumerate() {
            let Target::Proxy(proxy) = &route.target else {
                continue;
            };
            if let Err(error) = upstream::LoadedTls::load(&proxy.upstreams.tls) {
                let path = Path::from("routes").index(index).key("proxy").key("tls");
                let hint = "paths are relative to the working directory";
                self.problem(&path, error, hint);
            }
        }
    }

    fn table(&mut self, build: &TableProbe<'_>) {
        let routes = &self.loaded.config.routes;
        let (findings, is_table) = match build(routes) {
            Ok(unreachable) => (unreachable, true),
            Err(errors) => (errors, false),
        };
        for finding in findings {
            let index = routes.iter().position(|route| route.name == finding.route);
            let path = index.map_or(Path::from("routes"), |index| {
                Path::from("routes").index(index).key("match")
            });
            if is_table {
                self.warning(&path, finding.message, "");
            } else {
                self.problem(&path, finding.message, "");
            }
        }
    }
}

/// A regular file's bytes. Never waits, as reading a pipe would.
fn read_at_most(path: &FilePath, bytes_max: u64) -> Result<Vec<u8>, String> {
    let metadata = path.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("is not a file".to_string());
    }
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("has more than {bytes_max} bytes"));
    }
    Ok(bytes)
}

fn certificate_chain(path: &FilePath) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read_at_most(path, PEM_BYTES_MAX)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    let chain = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("{} is not PEM: {error}", path.display()))?;
    if chain.is_empty() {
        return Err(format!("{} holds no certificate", path.display()));
    }
    Ok(chain)
}

fn private_key(path: &FilePath) -> Result<PrivateKeyDer<'static>, String> {
    let pem = read_at_most(path, PEM_BYTES_MAX)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    // The error's own text is not shown: it can quote the file.
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| format!("{} holds no private key", path.display()))
}

fn day(timestamp: i64) -> String {
    chrono::DateTime::from_timestamp(timestamp, 0).map_or_else(
        || timestamp.to_string(),
        |time| time.format("%Y-%m-%d").to_string(),
    )
}

#[cfg(test)]
mod tests;
