//! `wasm-wizard users`: users from the operator's side.

use std::io::Write;

use anyhow::{Context, bail};
use chrono::Utc;
use serde_json::json;
use uuid::Uuid;

use super::table;
use crate::auth::Role;
use crate::limits::Tier;
use crate::store::users::{User, UserChange, UsersFilter};
use crate::store::{Store, StoreError};

/// Users fetched at a time.
const PAGE: u32 = 500;

/// List, make, stop and change users.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List users, newest first.
    #[command(after_help = LIST_EXAMPLES)]
    List(List),
    /// Make a user and print its id. A key for it comes from `keys create`.
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Create),
    /// Let a user do nothing any more. Its keys stop working everywhere within a second, and what runs for them
    /// ends.
    #[command(after_help = DISABLE_EXAMPLES)]
    Disable { user: String },
    /// Let a user that was disabled do again what it could.
    Enable { user: String },
    /// Give a user another role.
    ///
    /// Its keys act in the new role if they have the scope `admin`, which keys that were made for a mere user
    /// have not: make a new one.
    #[command(after_help = ROLE_EXAMPLES)]
    SetRole {
        /// Email or id of the user.
        user: String,
        #[arg(value_enum)]
        role: Role,
    },
    /// Give a user another tier, and with it those of its keys that had the user's old tier or have a higher one
    /// than the new.
    #[command(after_help = TIER_EXAMPLES)]
    SetTier {
        /// Email or id of the user.
        user: String,
        #[arg(value_enum)]
        tier: Tier,
    },
}

/// What `users list` takes.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Only users whose email has this part.
    #[arg(long, value_name = "PART")]
    pub email: Option<String>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// What `users create` takes.
#[derive(Debug, clap::Args)]
pub struct Create {
    pub email: String,
    #[arg(long, value_enum, default_value = "user")]
    pub role: Role,
    /// The tier of the user's keys.
    #[arg(long, value_enum, default_value = "free")]
    pub tier: Tier,
}

const LIST_EXAMPLES: &str = "\
Examples:
  wasm-wizard users list
  wasm-wizard users list --email @example.org --json | jq -r '.[].id'";

const CREATE_EXAMPLES: &str = "\
Examples:
  wasm-wizard users create me@example.org --tier pro
  wasm-wizard keys create --user me@example.org";

const DISABLE_EXAMPLES: &str = "\
Examples:
  wasm-wizard users disable me@example.org
  wasm-wizard users disable 01890a5d-ac96-774b-bcce-b302099a8057";

const ROLE_EXAMPLES: &str = "\
Examples:
  wasm-wizard users set-role me@example.org support";

const TIER_EXAMPLES: &str = "\
Examples:
  wasm-wizard users set-tier me@example.org enterprise";

pub async fn run(command: Command, store: &Store, out: &mut impl Write) -> anyhow::Result<()> {
    match command {
        Command::List(list) => self::list(&list, store, out).await,
        Command::Create(Create { email, role, tier }) => {
            match store.user_create_on(&email, role, tier).await {
                Ok(user) => Ok(writeln!(out, "{}", user.id)?),
                Err(StoreError::Conflict(_)) => bail!("{email} is there already"),
                Err(error) => Err(error.into()),
            }
        }
        Command::Disable { user } => {
            let disabled = Some(true);
            let change = UserChange {
                disabled,
                ..UserChange::default()
            };
            let user = self::change(&user, change, store).await?;
            Ok(writeln!(out, "disabled {}", user.email)?)
        }
        Command::Enable { user } => {
            let disabled = Some(false);
            let change = UserChange {
                disabled,
                ..UserChange::default()
            };
            let user = self::change(&user, change, store).await?;
            Ok(writeln!(out, "enabled {}", user.email)?)
        }
        Command::SetRole { user, role } => {
            let change = UserChange {
                role: Some(role),
                ..UserChange::default()
            };
            let user = self::change(&user, change, store).await?;
            Ok(writeln!(
                out,
                "{} has the role {}",
                user.email,
                word(&user.role)
            )?)
        }
        Command::SetTier { user, tier } => {
            let change = UserChange {
                tier: Some(tier),
                ..UserChange::default()
            };
            let user = self::change(&user, change, store).await?;
            Ok(writeln!(out, "{} has the tier {}", user.email, user.tier)?)
        }
    }
}

async fn change(name: &str, change: UserChange, store: &Store) -> anyhow::Result<User> {
    let user = found(name, store).await?;
    match store.user_change(user.id, change, Utc::now()).await {
        Ok(user) => Ok(user),
        Err(StoreError::LastAdmin) => {
            bail!(
                "{} is the last admin that is not disabled: make another one first",
                user.email
            )
        }
        Err(error) => Err(error.into()),
    }
}

/// The user of this email or id.
async fn found(name: &str, store: &Store) -> anyhow::Result<User> {
    let user = match Uuid::try_parse(name) {
        Ok(id) => store.user(id).await?,
        Err(_) => store.user_by_email(name).await?,
    };
    user.with_context(|| format!("there is no user {name}"))
}

async fn list(list: &List, store: &Store, out: &mut impl Write) -> anyhow::Result<()> {
    let filter = UsersFilter {
        email: list.email.as_deref(),
        ..UsersFilter::default()
    };
    let mut users = Vec::new();
    for page in 1.. {
        let found = store.users_page(filter, page, PAGE).await?;
        let is_last = found.users.len() < PAGE as usize;
        users.extend(found.users);
        if is_last {
            break;
        }
    }
    if list.json {
        let users: Vec<_> = users.iter().map(in_json).collect();
        serde_json::to_writer_pretty(&mut *out, &users)?;
        return Ok(writeln!(out)?);
    }
    let rows: Vec<[String; 6]> = users
        .into_iter()
        .map(|user| {
            [
                user.id.to_string(),
                user.email,
                word(&user.role),
                user.tier.to_string(),
                state(user.disabled_at.is_some()).to_owned(),
                table::time(Some(user.created_at)),
            ]
        })
        .collect();
    let headings = ["ID", "EMAIL", "ROLE", "TIER", "STATE", "CREATED"];
    Ok(table::write(out, headings, &rows)?)
}

fn in_json(user: &User) -> serde_json::Value {
    json!({
        "id": user.id,
        "email": user.email,
        "role": user.role,
        "tier": user.tier,
        "state": state(user.disabled_at.is_some()),
        "created_at": user.created_at,
        "disabled_at": user.disabled_at,
    })
}

fn state(disabled: bool) -> &'static str {
    if disabled { "disabled" } else { "active" }
}

fn word(role: &Role) -> String {
    clap::ValueEnum::to_possible_value(role)
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;
    use crate::store;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    async fn run_line(store: &Store, line: &[&str]) -> anyhow::Result<String> {
        let line = Line::try_parse_from(std::iter::once(&"users").chain(line))?;
        let mut out = Vec::new();
        run(line.command, store, &mut out).await?;
        Ok(String::from_utf8(out)?)
    }

    #[tokio::test]
    async fn a_user_from_create_to_disable() {
        let directory = tempfile::tempdir().unwrap();
        let settings = store::Settings {
            url: format!("sqlite://{}/test.db", directory.path().display()),
            connections_max: 2,
            acquire_timeout: Duration::from_secs(5),
        };
        let store = Store::connect(&settings).await.unwrap();
        store.migrate().await.unwrap();
        let run = async |line: &[&str]| run_line(&store, line).await;
        let id = run(&["create", "A@b.c", "--tier", "pro"]).await.unwrap();
        assert!(run(&["create", "a@B.c"]).await.is_err());
        run(&["create", "admin@b.c", "--role", "admin"])
            .await
            .unwrap();
        let told = run(&["set-tier", "a@b.c", "basic"]).await.unwrap();
        assert_eq!(told, "A@b.c has the tier basic\n");
        run(&["set-role", id.trim(), "support"]).await.unwrap();
        run(&["disable", "a@b.c"]).await.unwrap();
        let listed = run(&["list"]).await.unwrap();
        assert!(
            listed.contains("disabled") && listed.contains("support"),
            "{listed}"
        );
        run(&["enable", "a@b.c"]).await.unwrap();
        let json = run(&["list", "--json", "--email", "A@B"]).await.unwrap();
        let users: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(users.as_array().unwrap().len(), 1);
        assert_eq!(users[0]["state"], "active");
        for line in [
            &["disable", "admin@b.c"][..],
            &["set-role", "admin@b.c", "user"],
        ] {
            let refused = run(line).await.unwrap_err().to_string();
            assert!(refused.contains("the last admin"), "{refused}");
        }
        for line in [
            &["disable", "nobody@b.c"][..],
            &["set-role", "a@b.c", "root"],
            &["set-tier", "a@b.c", "gold"],
            &["create", "nobody"],
        ] {
            assert!(run(line).await.is_err(), "{line:?}");
        }
    }
}
