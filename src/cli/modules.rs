//! `wasm-wizard modules`: stored modules from the operator's side.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;
use chrono::Utc;
use serde_json::json;
use uuid::Uuid;

use super::table;
use crate::sandbox::{self, ModuleHash, Sandbox};
use crate::store::modules::NewModule;
use crate::store::{Store, StoreError};

/// Most bytes read of a file, before the sandbox's own, tighter limit says what is wrong.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// List, add and delete stored modules.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List all modules of all owners, newest first.
    #[command(after_help = LIST_EXAMPLES)]
    List {
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Check a module and store it; prints its id.
    ///
    /// A second upload under a name is a new version of it. A route runs a stored module by its id.
    #[command(after_help = ADD_EXAMPLES)]
    Add(Add),
    /// Let nobody run a module any more. What runs of it ends, on every gateway, within a second.
    #[command(after_help = STOP_EXAMPLES)]
    Stop {
        /// The module's id, from `modules list`.
        id: Uuid,
    },
    /// Let a module that was stopped be run again.
    Resume {
        /// The module's id, from `modules list`.
        id: Uuid,
    },
    /// Delete a module. Its bytes go with the last module that has them.
    #[command(after_help = DELETE_EXAMPLES)]
    Delete {
        /// The module's id, from `modules list`.
        id: Uuid,
    },
}

/// What `modules add` takes.
#[derive(Debug, clap::Args)]
pub struct Add {
    /// WebAssembly, binary (.wasm) or text (.wat).
    pub file: PathBuf,
    /// Email of the owner, who must be there already.
    #[arg(long, value_name = "EMAIL")]
    pub owner: String,
    /// The module's name, 1 to 255 bytes.
    #[arg(long)]
    pub name: String,
    /// What the module does, at most 4,096 bytes.
    #[arg(long, default_value = "")]
    pub description: String,
    /// Let every key run it, not the owner's alone.
    #[arg(long)]
    pub public: bool,
}

const LIST_EXAMPLES: &str = "\
Examples:
  wasm-wizard modules list
  wasm-wizard modules list --json | jq -r '.[] | select(.public) | .id'";

const ADD_EXAMPLES: &str = "\
Examples:
  wasm-wizard modules add hello.wasm --owner me@example.org --name hello
  wasm-wizard modules add sum.wat --owner me@example.org --name sum --public \\
      --description 'adds the numbers on standard input'";

const STOP_EXAMPLES: &str = "\
Examples:
  wasm-wizard modules stop 01890a5d-ac96-774b-bcce-b302099a8057";

const DELETE_EXAMPLES: &str = "\
Examples:
  wasm-wizard modules delete 01890a5d-ac96-774b-bcce-b302099a8057";

pub async fn run(
    command: Command,
    store: &Store,
    sandbox: &Sandbox,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    match command {
        Command::List { json: true } => list_json(store, out).await,
        Command::List { json: false } => list(store, out).await,
        Command::Add(add) => {
            let wasm = sandbox::to_binary(read(&add.file)?)
                .and_then(|wasm| sandbox.check(&wasm).map(|()| wasm))
                .with_context(|| format!("{}: not a module that can run", add.file.display()))?;
            let hash = ModuleHash::of(&wasm);
            let id = store_module(&add, hash, &wasm, store).await?;
            Ok(writeln!(out, "{id}")?)
        }
        Command::Stop { id } => stop(id, true, store, out).await,
        Command::Resume { id } => stop(id, false, store, out).await,
        Command::Delete { id } => delete(id, store, out).await,
    }
}

async fn store_module(
    add: &Add,
    hash: ModuleHash,
    wasm: &[u8],
    store: &Store,
) -> anyhow::Result<Uuid> {
    let owner = store.user_by_email(&add.owner).await?.with_context(|| {
        format!(
            "there is no user {0}; make one: wasm-wizard keys create --user {0}",
            add.owner
        )
    })?;
    let new = NewModule {
        owner_id: owner.id,
        name: &add.name,
        description: &add.description,
        hash,
        wasm,
        is_public: add.public,
    };
    Ok(store.module_create(new).await?.id)
}

async fn stop(id: Uuid, stop: bool, store: &Store, out: &mut impl Write) -> anyhow::Result<()> {
    let done = if stop { "stopped" } else { "resumed" };
    match store.module_stop(id, stop, Utc::now()).await {
        Ok(()) => Ok(writeln!(out, "{done} {id}")?),
        Err(StoreError::NotFound(_)) => bail!("there is no module {id}"),
        Err(error) => Err(error.into()),
    }
}

async fn delete(id: Uuid, store: &Store, out: &mut impl Write) -> anyhow::Result<()> {
    match store.module_delete(id).await {
        Ok(()) => Ok(writeln!(out, "deleted {id}")?),
        Err(StoreError::NotFound(_)) => bail!("there is no module {id}"),
        Err(error) => Err(error.into()),
    }
}

async fn list(store: &Store, out: &mut impl Write) -> anyhow::Result<()> {
    let rows: Vec<[String; 8]> = store
        .modules_all()
        .await?
        .into_iter()
        .map(|(module, email)| {
            [
                module.id.to_string(),
                email,
                module.version.to_string(),
                module.size_bytes.to_string(),
                if module.stopped_at.is_some() {
                    "stopped"
                } else if module.is_public {
                    "public"
                } else {
                    "private"
                }
                .to_owned(),
                table::time(Some(module.uploaded_at)),
                module.execution_count.to_string(),
                module.name,
            ]
        })
        .collect();
    let headings = [
        "ID", "OWNER", "VERSION", "BYTES", "ACCESS", "UPLOADED", "RUNS", "NAME",
    ];
    Ok(table::write(out, headings, &rows)?)
}

async fn list_json(store: &Store, out: &mut impl Write) -> anyhow::Result<()> {
    let modules: Vec<_> = store
        .modules_all()
        .await?
        .into_iter()
        .map(|(module, email)| {
            json!({
                "id": module.id,
                "owner": email,
                "owner_id": module.owner_id,
                "name": module.name,
                "version": module.version,
                "description": module.description,
                "sha256_hash": module.hash.to_string(),
                "size_bytes": module.size_bytes,
                "public": module.is_public,
                "stopped_at": module.stopped_at,
                "uploaded_at": module.uploaded_at,
                "last_executed_at": module.last_executed_at,
                "execution_count": module.execution_count,
            })
        })
        .collect();
    serde_json::to_writer_pretty(&mut *out, &modules)?;
    Ok(writeln!(out)?)
}

fn read(path: &Path) -> anyhow::Result<Bytes> {
    let told = || path.display().to_string();
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(told)?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .with_context(told)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        bail!("{}: larger than {FILE_BYTES_MAX} bytes", told());
    }
    Ok(Bytes::from(bytes))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::auth::Role;
    use crate::store;

    async fn fixture() -> (Store, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let settings = store::Settings {
            url: format!("sqlite://{}/test.db", directory.path().display()),
            connections_max: 2,
            acquire_timeout: Duration::from_secs(5),
        };
        let store = Store::connect(&settings).await.unwrap();
        store.migrate().await.unwrap();
        (store, directory)
    }

    fn add(owner: &str, name: &str) -> Add {
        Add {
            file: PathBuf::from("x.wasm"),
            owner: owner.to_owned(),
            name: name.to_owned(),
            description: "d".to_owned(),
            public: true,
        }
    }

    #[tokio::test]
    async fn a_module_lives_from_add_to_delete() {
        let (store, _directory) = fixture().await;
        store.user_create("a@b.c", Role::User).await.unwrap();
        let id = store_module(&add("A@B.C", "m"), ModuleHash([7; 32]), b"wasm", &store)
            .await
            .unwrap();

        let mut out = Vec::new();
        list_json(&store, &mut out).await.unwrap();
        let modules: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(modules[0]["id"], id.to_string());
        assert_eq!(modules[0]["sha256_hash"], "07".repeat(32));
        let mut out = Vec::new();
        list(&store, &mut out).await.unwrap();
        let table = String::from_utf8(out).unwrap();
        assert!(
            table.contains(&id.to_string()) && table.contains("a@b.c") && table.contains("public")
        );

        delete(id, &store, &mut Vec::new()).await.unwrap();
        assert!(delete(id, &store, &mut Vec::new()).await.is_err());
    }

    #[tokio::test]
    async fn an_unknown_owner_is_told_what_to_do() {
        let (store, _directory) = fixture().await;
        let error = store_module(&add("a@b.c", "m"), ModuleHash([7; 32]), b"wasm", &store).await;
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("keys create --user a@b.c")
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read(Path::new("/nonexistent/x.wasm")).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent/x.wasm"));
    }
}
