//! `import`: users, keys and modules of the service that ran before.
//!
//! One JSON object a line, as scripts/import_legacy.sh writes them: `{"user": …}` before the keys and modules
//! that are theirs. What is there already stays; running it again adds nothing.

use std::collections::HashMap;
use std::io::{BufRead, Read, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use uuid::Uuid;

use crate::auth::Authenticator;
use crate::limits::Tier;
use crate::sandbox::ModuleHash;
use crate::store::import::{Imported, ImportedKey, ImportedModule};
use crate::store::{Store, StoreError};

/// Longest line: the largest module in base64, and what stands around it.
const LINE_BYTES_MAX: u64 = 512 << 20;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file, one JSON object a line; standard input without it
    pub file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Line {
    User(User),
    Key(Key),
    Module(Box<Module>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct User {
    id: Uuid,
    email: String,
    created_at: DateTime<Utc>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    id: Uuid,
    user_id: Uuid,
    /// SHA-256 of the key, in hexadecimal.
    sha256: String,
    tier: String,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
    /// When a key that is not active was last changed.
    revoked_at: Option<DateTime<Utc>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Module {
    id: Uuid,
    user_id: Uuid,
    name: String,
    description: Option<String>,
    /// In base64; line breaks do not matter.
    wasm: String,
    /// Of the bytes, in hexadecimal.
    sha256: String,
    is_public: bool,
    uploaded_at: DateTime<Utc>,
    last_executed_at: Option<DateTime<Utc>>,
    execution_count: u64,
}

/// What became of the rows of one kind.
#[derive(Default)]
struct Count {
    new: u64,
    known: u64,
    skipped: u64,
}

struct Import<'a> {
    store: &'a Store,
    auth: &'a Authenticator,
    /// Whom we know under which id.
    users: HashMap<Uuid, Uuid>,
    counts: [Count; 3],
}

const KINDS: [&str; 3] = ["users", "keys", "modules"];

/// Returns 0, or 1 where rows were skipped; each is named on standard error.
pub async fn run(
    args: Args,
    store: &Store,
    auth: &Authenticator,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let input: Box<dyn Read> = match &args.file {
        Some(path) => {
            Box::new(std::fs::File::open(path).with_context(|| path.display().to_string())?)
        }
        None => Box::new(std::io::stdin()),
    };
    let mut input = std::io::BufReader::new(input);
    let mut import = Import {
        store,
        auth,
        users: HashMap::new(),
        counts: Default::default(),
    };
    let (mut line, mut number) = (Vec::new(), 0_u64);
    loop {
        line.clear();
        number += 1;
        let read = (&mut input)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
            .context("reading")?;
        if read == 0 {
            break;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let parsed = serde_json::from_slice(&line).with_context(|| format!("line {number}"))?;
        let (kind, done) = import.line(parsed).await;
        let count = &mut import.counts[kind];
        match done {
            Ok(Imported::New) => count.new += 1,
            Ok(Imported::Known) => count.known += 1,
            Err(Skipped::Row(reason)) => {
                count.skipped += 1;
                eprintln!("line {number}: skipped: {reason}");
            }
            Err(Skipped::Failed(error)) => {
                return Err(error).with_context(|| format!("line {number}"));
            }
        }
    }
    for (kind, count) in KINDS.iter().zip(&import.counts) {
        writeln!(
            out,
            "{kind}: {} new, {} there already, {} skipped",
            count.new, count.known, count.skipped
        )?;
    }
    if import.counts.iter().any(|count| count.skipped > 0) {
        bail!("not everything was taken over");
    }
    Ok(())
}

/// Why a row was not taken.
enum Skipped {
    /// Because of what it is: the others go on.
    Row(String),
    /// Nothing more will go through.
    Failed(StoreError),
}

impl From<StoreError> for Skipped {
    fn from(error: StoreError) -> Skipped {
        match error {
            StoreError::Unavailable(_) | StoreError::Internal(_) => Skipped::Failed(error),
            StoreError::NotFound(_)
            | StoreError::Conflict(_)
            | StoreError::Invalid(_)
            | StoreError::LastAdmin => Skipped::Row(error.to_string()),
        }
    }
}

impl Import<'_> {
    async fn line(&mut self, line: Line) -> (usize, Result<Imported, Skipped>) {
        match line {
            Line::User(user) => (0, self.user(user).await),
            Line::Key(key) => (1, self.key(key).await),
            Line::Module(module) => (2, self.module(*module).await),
        }
    }

    async fn user(&mut self, user: User) -> Result<Imported, Skipped> {
        let imported = self
            .store
            .user_import(user.id, &user.email, user.created_at)
            .await?;
        self.users.insert(user.id, imported.0);
        Ok(imported.1)
    }

    async fn key(&self, key: Key) -> Result<Imported, Skipped> {
        let digest = digest(&key.sha256)
            .ok_or_else(|| Skipped::Row(format!("key {}: its hash is no SHA-256", key.id)))?;
        let tier: Tier = key
            .tier
            .to_lowercase()
            .parse()
            .map_err(|error| Skipped::Row(format!("key {}: {error}", key.id)))?;
        let prefix = format!("sha256:{}", &key.sha256[..8]);
        let imported = self.store.key_import(ImportedKey {
            id: key.id,
            user_id: self.owner(key.user_id)?,
            name: "imported",
            prefix: &prefix,
            hash: self.auth.legacy_hash(&digest),
            tier,
            created_at: key.created_at,
            expires_at: key.expires_at,
            revoked_at: key.revoked_at,
        });
        Ok(imported.await?)
    }

    async fn module(&self, module: Module) -> Result<Imported, Skipped> {
        let refuse = |why: &str| Skipped::Row(format!("module {}: {why}", module.id));
        let text: String = module.wasm.split_ascii_whitespace().collect();
        let wasm = STANDARD
            .decode(text)
            .map_err(|_| refuse("its bytes are no base64"))?;
        if !ModuleHash::of(&wasm)
            .to_string()
            .eq_ignore_ascii_case(&module.sha256)
        {
            return Err(refuse("its bytes are not those of its SHA-256"));
        }
        let imported = self.store.module_import(ImportedModule {
            id: module.id,
            owner_id: self.owner(module.user_id)?,
            name: &module.name,
            description: module.description.as_deref().unwrap_or_default(),
            wasm: &wasm,
            is_public: module.is_public,
            uploaded_at: module.uploaded_at,
            last_executed_at: module.last_executed_at,
            execution_count: module.execution_count,
        });
        Ok(imported.await?)
    }

    fn owner(&self, id: Uuid) -> Result<Uuid, Skipped> {
        let known = self.users.get(&id).copied();
        known.ok_or_else(|| Skipped::Row(format!("its user {id} was not imported")))
    }
}

/// The bytes of 64 hexadecimal digits.
fn digest(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}
