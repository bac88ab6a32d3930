//! `wasm-wizard keys`: API keys from the operator's side.

use std::io::Write;

use anyhow::{Context, bail};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use uuid::Uuid;

use super::table;
use crate::auth::{Authenticator, Role, Scope, Scopes};
use crate::limits::Tier;
use crate::store::keys::{Key, NewKeyRow};
use crate::store::rotations::Rotation;
use crate::store::users::User;
use crate::store::{Store, StoreError};

/// Longest life of a key that has an end.
const EXPIRES_DAYS_MAX: i64 = 3650;

/// Create, list and revoke API keys.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a key and print it, once: it can't be shown again.
    ///
    /// The key is alone on standard output, so that a script can take it. The user is made when
    /// there is none with this email.
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Create),
    /// List all keys, newest first. Secrets are not stored and not shown.
    #[command(after_help = LIST_EXAMPLES)]
    List {
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Make a key that takes the place of another: the same in all but its secret, which is printed once.
    ///
    /// The old key goes on working for the time of the overlap, so that whoever uses it can take up the new one.
    #[command(after_help = ROTATE_EXAMPLES)]
    Rotate {
        /// The old key's id, from `keys list`.
        id: Uuid,
        /// How long the old key goes on working: 30m, 12h, 7d; or 0 to end it at once.
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_overlap)]
        overlap: TimeDelta,
    },
    /// Revoke a key for ever.
    ///
    /// The key's id is in `keys list`. Gateways that run stop accepting the key within a second, and end what runs
    /// for it.
    #[command(after_help = REVOKE_EXAMPLES)]
    Revoke {
        /// The key's id.
        id: Uuid,
    },
}

/// What `keys create` takes.
#[derive(Debug, clap::Args)]
pub struct Create {
    /// Email of the user the key is for.
    #[arg(long, value_name = "EMAIL")]
    pub user: String,
    /// Role of the user, when it is made now [default: user].
    #[arg(long, value_enum)]
    pub role: Option<Role>,
    /// Tier of the key: its rate limits, memory and time [default: its user's; of a user that is made now: free].
    #[arg(long, value_enum)]
    pub tier: Option<Tier>,
    /// What the key may be used for [default: all that the user's role allows].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SCOPE,…")]
    pub scopes: Vec<Scope>,
    /// What the key is for, in your words.
    #[arg(long, default_value = "API key")]
    pub name: String,
    /// After how long the key stops working: 30m, 12h, 90d or 4w. Without it, never.
    #[arg(long, value_name = "TIME", value_parser = parse_expires)]
    pub expires: Option<TimeDelta>,
}

const CREATE_EXAMPLES: &str = "\
Examples:
  wasm-wizard keys create --user me@example.org
  wasm-wizard keys create --user ci@example.org --tier pro --name 'build server' --expires 90d
  wasm-wizard keys create --user ci@example.org --scopes execute,modules:read
  KEY=$(wasm-wizard keys create --user ops@example.org --role admin --tier enterprise)
  curl -H \"Authorization: Bearer $KEY\" https://localhost:8443/api/auth/keys";

const LIST_EXAMPLES: &str = "\
Examples:
  wasm-wizard keys list
  wasm-wizard keys list --json | jq -r '.[] | select(.last_used_at == null) | .id'";

const ROTATE_EXAMPLES: &str = "\
Examples:
  wasm-wizard keys rotate 01890a5d-ac96-774b-bcce-b302099a8057
  wasm-wizard keys rotate 01890a5d-ac96-774b-bcce-b302099a8057 --overlap 0";

const REVOKE_EXAMPLES: &str = "\
Examples:
  wasm-wizard keys revoke 01890a5d-ac96-774b-bcce-b302099a8057";

pub async fn run(
    command: Command,
    store: &Store,
    auth: &Authenticator,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    match command {
        Command::Create(create) => writeln!(out, "{}", make(create, store, auth).await?)?,
        Command::List { json: true } => list_json(store, out).await?,
        Command::List { json: false } => list(store, out).await?,
        Command::Rotate { id, overlap } => {
            writeln!(out, "{}", rotate(id, overlap, store, auth).await?)?;
        }
        Command::Revoke { id } => {
            match store.key_revoke(id, None, Utc::now()).await {
                Ok(()) => auth.forget(id),
                Err(StoreError::NotFound(_)) => {
                    bail!("there is no active key {id}")
                }
                Err(error) => return Err(error.into()),
            }
            writeln!(out, "revoked {id}")?;
        }
    }
    Ok(())
}

async fn make(create: Create, store: &Store, auth: &Authenticator) -> anyhow::Result<String> {
    let user = user(&create, store).await?;
    let tier = create.tier.unwrap_or(user.tier);
    if tier > user.tier {
        bail!(
            "{email} is on the tier {}; raise it first: wasm-wizard users set-tier {email} {tier}",
            user.tier,
            email = user.email,
        );
    }
    let allowed = Scopes::of_role(user.role);
    let scopes = if create.scopes.is_empty() {
        allowed
    } else {
        create.scopes.iter().copied().collect()
    };
    if !scopes.is_within(allowed) {
        bail!("the scope `admin` is for users with the role support or admin");
    }
    let expires_at = match create.expires {
        Some(after) => Some(
            Utc::now()
                .checked_add_signed(after)
                .context("the expiry is too far off")?,
        ),
        None => None,
    };
    let key = auth.new_key()?;
    let row = NewKeyRow {
        user_id: user.id,
        name: &create.name,
        prefix: &key.prefix,
        hash: key.hash,
        tier,
        scopes,
        expires_at,
    };
    store.key_create(row).await?;
    Ok(key.secret)
}

async fn rotate(
    id: Uuid,
    overlap: TimeDelta,
    store: &Store,
    auth: &Authenticator,
) -> anyhow::Result<String> {
    let now = Utc::now();
    let old = store.key(id).await?.filter(|key| key.is_live(now));
    let old = old.with_context(|| format!("there is no active key {id}"))?;
    let new = auth.new_key()?;
    let rotation = Rotation {
        old: &old,
        prefix: &new.prefix,
        hash: new.hash,
        old_ends_at: now + overlap,
    };
    match store.key_rotate(rotation, now).await {
        Ok(_) => Ok(new.secret),
        Err(StoreError::Conflict(_)) => bail!("the key {id} was rotated before"),
        Err(error) => Err(error.into()),
    }
}

/// The user of this email: found, or made now.
async fn user(create: &Create, store: &Store) -> anyhow::Result<User> {
    let email = &create.user;
    let user = match store.user_by_email(email).await? {
        Some(user) => user,
        None => match store
            .user_create_on(
                email,
                create.role.unwrap_or(Role::User),
                create.tier.unwrap_or(Tier::Free),
            )
            .await
        {
            Ok(user) => return Ok(user),
            // Somebody else made it just now.
            Err(StoreError::Conflict(_)) => store
                .user_by_email(email)
                .await?
                .with_context(|| format!("{email} came and went"))?,
            Err(error) => return Err(error.into()),
        },
    };
    match create.role {
        Some(role) if role != user.role => {
            bail!("{email} is there already, with another role; --role is for a new user only")
        }
        Some(_) | None => Ok(user),
    }
}

async fn list(store: &Store, out: &mut impl Write) -> anyhow::Result<()> {
    let now = Utc::now();
    let rows: Vec<[String; 10]> = store
        .keys_all()
        .await?
        .into_iter()
        .map(|(key, email)| {
            [
                key.id.to_string(),
                email,
                key.prefix.clone(),
                text(&key.tier),
                key.scopes.to_string(),
                state(&key, now).to_owned(),
                table::time(Some(key.created_at)),
                table::time(key.expires_at),
                table::time(key.last_used_at),
                key.name,
            ]
        })
        .collect();
    let headings = [
        "ID",
        "USER",
        "PREFIX",
        "TIER",
        "SCOPES",
        "STATE",
        "CREATED",
        "EXPIRES",
        "LAST USED",
        "NAME",
    ];
    Ok(table::write(out, headings, &rows)?)
}

async fn list_json(store: &Store, out: &mut impl Write) -> anyhow::Result<()> {
    let now = Utc::now();
    let keys: Vec<_> = store
        .keys_all()
        .await?
        .into_iter()
        .map(|(key, email)| {
            json!({
                "id": key.id,
                "user": email,
                "user_id": key.user_id,
                "name": key.name,
                "prefix": key.prefix,
                "tier": key.tier,
                "scopes": key.scopes,
                "state": state(&key, now),
                "created_at": key.created_at,
                "expires_at": key.expires_at,
                "revoked_at": key.revoked_at,
                "last_used_at": key.last_used_at,
                "replaced_by": key.replaced_by,
            })
        })
        .collect();
    serde_json::to_writer_pretty(&mut *out, &keys)?;
    Ok(writeln!(out)?)
}

fn state(key: &Key, now: DateTime<Utc>) -> &'static str {
    if key.revoked_at.is_some() {
        "revoked"
    } else if key.expires_at.is_some_and(|expires_at| expires_at <= now) {
        "expired"
    } else if key.replaced_by.is_some() {
        "replaced"
    } else {
        "active"
    }
}

/// The name of a tier as it stands everywhere else.
fn text(tier: &Tier) -> String {
    clap::ValueEnum::to_possible_value(tier)
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

fn parse_overlap(text: &str) -> Result<TimeDelta, String> {
    if text == "0" {
        return Ok(TimeDelta::zero());
    }
    parse_expires(text)
}

fn parse_expires(text: &str) -> Result<TimeDelta, String> {
    const FORM: &str = "write a whole number and a unit: 30m, 12h, 90d or 4w";
    let unit_at = text.char_indices().next_back().map_or(0, |(at, _)| at);
    let (number, unit) = text.split_at(unit_at);
    let minutes_each = match unit {
        "m" => 1,
        "h" => 60,
        "d" => 24 * 60,
        "w" => 7 * 24 * 60,
        _ => return Err(FORM.to_owned()),
    };
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let number: i64 = number.parse().ok().filter(|_| digits).ok_or(FORM)?;
    let minutes = number.saturating_mul(minutes_each);
    match minutes {
        0 => Err("a key must live for a minute at least".to_owned()),
        1.. if minutes <= EXPIRES_DAYS_MAX * 24 * 60 => Ok(TimeDelta::minutes(minutes)),
        _ => Err(format!(
            "a key lives for {EXPIRES_DAYS_MAX} days at most; leave --expires out for no end"
        )),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::auth;
    use crate::store;
    use std::time::Duration;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    struct Fixture {
        store: Store,
        auth: Authenticator,
        _directory: tempfile::TempDir,
    }

    async fn fixture() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let settings = store::Settings {
            url: format!("sqlite://{}/test.db", directory.path().display()),
            connections_max: 2,
            acquire_timeout: Duration::from_secs(5),
        };
        let store = Store::connect(&settings).await.unwrap();
        store.migrate().await.unwrap();
        let settings = auth::Settings {
            salt: auth::Salt::generate().unwrap(),
            cache_ttl: Duration::from_secs(60),
            negative_ttl: Duration::from_secs(5),
            outage_grace: Duration::from_secs(60),
            cache_keys_max: 100,
        };
        Fixture {
            auth: Authenticator::new(settings, store.clone()),
            store,
            _directory: directory,
        }
    }

    impl Fixture {
        async fn run(&self, line: &[&str]) -> anyhow::Result<String> {
            let line = Line::try_parse_from(std::iter::once(&"keys").chain(line))?;
            let mut out = Vec::new();
            run(line.command, &self.store, &self.auth, &mut out).await?;
            Ok(String::from_utf8(out)?)
        }
    }

    #[tokio::test]
    async fn a_key_lives_from_create_to_revoke() {
        let fixture = fixture().await;
        let created = fixture
            .run(&[
                "create",
                "--user",
                "A@b.c",
                "--role",
                "admin",
                "--tier",
                "pro",
                "--expires",
                "90d",
            ])
            .await
            .unwrap();
        let secret = created.strip_suffix('\n').unwrap();
        assert_eq!(
            secret.len(),
            auth::KEY_BYTES,
            "the secret is alone on standard output"
        );
        let mut headers = http::HeaderMap::new();
        headers.insert("x-api-key", secret.parse().unwrap());
        let principal = fixture.auth.authenticate(&headers).await.unwrap();
        let auth::Principal::Key(key) = principal else {
            panic!("no key")
        };
        assert_eq!((key.role, key.tier), (Role::Admin, Tier::Pro));

        let listed = fixture.run(&["list"]).await.unwrap();
        assert!(
            listed.contains("A@b.c") && listed.contains("active") && listed.contains(&secret[..11])
        );
        let json = fixture.run(&["list", "--json"]).await.unwrap();
        let keys: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(keys[0]["tier"], "pro");
        // Whoever does not say has the user's tier, and a new user is free.
        for (email, tier) in [("A@b.c", "pro"), ("new@b.c", "free")] {
            let secret = fixture.run(&["create", "--user", email]).await.unwrap();
            let json = fixture.run(&["list", "--json"]).await.unwrap();
            let keys: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
            let made =
                |key: &&serde_json::Value| secret.starts_with(key["prefix"].as_str().unwrap());
            assert_eq!(keys.iter().find(made).unwrap()["tier"], tier, "{email}");
        }
        assert!(!listed.contains(secret) && !json.contains(secret));

        let id = keys[0]["id"].as_str().unwrap();
        fixture.run(&["revoke", id]).await.unwrap();
        assert_eq!(
            fixture.auth.authenticate(&headers).await,
            Err(auth::AuthError::Invalid)
        );
        assert!(fixture.run(&["revoke", id]).await.is_err());
        assert!(fixture.run(&["list"]).await.unwrap().contains("revoked"));
    }

    #[tokio::test]
    async fn a_second_key_of_a_user_keeps_the_role() {
        let fixture = fixture().await;
        fixture.run(&["create", "--user", "a@b.c"]).await.unwrap();
        fixture
            .run(&["create", "--user", "A@B.C", "--role", "user"])
            .await
            .unwrap();
        let refused = fixture
            .run(&["create", "--user", "a@b.c", "--role", "admin"])
            .await;
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .contains("--role is for a new user only")
        );
        assert_eq!(fixture.store.users_count().await.unwrap(), 1);
        assert_eq!(fixture.store.keys_all().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_key_is_rotated_once_and_both_work_for_a_while() {
        let fixture = fixture().await;
        fixture.run(&["create", "--user", "a@b.c"]).await.unwrap();
        let (old, _) = fixture.store.keys_all().await.unwrap().remove(0);
        let id = old.id.to_string();
        let made = fixture.run(&["rotate", &id]).await.unwrap();
        assert_eq!(made.trim().len(), auth::KEY_BYTES);
        let keys = fixture.store.keys_all().await.unwrap();
        assert_eq!((keys.len(), keys[1].0.replaced_by), (2, Some(keys[0].0.id)));
        let left = keys[1].0.expires_at.unwrap() - Utc::now();
        assert!((23..24).contains(&left.num_hours()), "{left}");
        assert!(fixture.run(&["list"]).await.unwrap().contains("replaced"));
        assert!(fixture.run(&["rotate", &id]).await.is_err());
        let next = keys[0].0.id.to_string();
        fixture
            .run(&["rotate", &next, "--overlap", "0"])
            .await
            .unwrap();
        let ended = fixture.store.key(keys[0].0.id).await.unwrap().unwrap();
        assert!(!ended.is_live(Utc::now()));
        assert!(fixture.run(&["rotate", &next]).await.is_err());
    }

    #[tokio::test]
    async fn mistakes_are_told() {
        let fixture = fixture().await;
        for line in [
            &["create"][..],
            &["create", "--user", "nobody"],
            &["create", "--user", "a@b.c", "--tier", "gold"],
            &["create", "--user", "a@b.c", "--scopes", "root"],
            &["create", "--user", "a@b.c", "--scopes", "admin"],
            &["create", "--user", "a@b.c", "--expires", "soon"],
            &["revoke", "x"],
            &["revoke", "01890a5d-ac96-774b-bcce-b302099a8057"],
        ] {
            assert!(fixture.run(line).await.is_err(), "{line:?}");
        }
        let long = "n".repeat(256);
        assert!(
            fixture
                .run(&["create", "--user", "a@b.c", "--name", &long])
                .await
                .is_err()
        );
        assert!(fixture.store.keys_all().await.unwrap().is_empty());
    }

    #[test]
    fn lives_of_keys() {
        assert_eq!(parse_expires("30m"), Ok(TimeDelta::minutes(30)));
        assert_eq!(parse_expires("12h"), Ok(TimeDelta::hours(12)));
        assert_eq!(parse_expires("90d"), Ok(TimeDelta::days(90)));
        assert_eq!(parse_expires("4w"), Ok(TimeDelta::weeks(4)));
        for bad in [
            "",
            "d",
            "90",
            "-1d",
            "+1d",
            "1.5d",
            "0d",
            "1y",
            "9999w",
            "99999999999999999999d",
            "1µ",
            "1 d",
        ] {
            assert!(parse_expires(bad).is_err(), "{bad}");
        }
    }
}
