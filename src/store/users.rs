//! Users.

use chrono::{DateTime, Utc};
use serde_json::json;
use uuid::Uuid;

use super::audit::{Change, note};
use super::keys::{self, Key, NewKeyRow};
use super::pool::{in_transaction, on_connection};
use super::values::{Stamp, check_text};
use super::{Store, StoreError};
use crate::account::{Role, Scopes, Tier};

/// RFC 5321 §4.5.3.1.3 leaves 254 bytes for an address.
const EMAIL_BYTES_MAX: usize = 254;

const INSERT: &str = "INSERT INTO users (id, email, email_key, role, tier, created_at) VALUES ($1, $2, $3, $4, $5, $6)";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub id: Uuid,
    pub email: String,
    pub role: Role,
    /// What new keys of the user get, and no key that is made through the API passes.
    pub tier: Tier,
    pub created_at: DateTime<Utc>,
    /// Since when the user may do nothing; `None` is the usual case.
    pub disabled_at: Option<DateTime<Utc>>,
}

/// Which users are asked for; what is `None` does not matter.
#[derive(Debug, Clone, Copy, Default)]
pub struct UsersFilter<'a> {
    /// A part of the email, without case.
    pub email: Option<&'a str>,
    pub role: Option<Role>,
    pub tier: Option<Tier>,
    pub disabled: Option<bool>,
}

/// One page of users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsersPage {
    pub users: Vec<User>,
    /// Rows in all, over all pages.
    pub total: u64,
}

/// What is to change of a user; what is `None` stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct UserChange {
    pub role: Option<Role>,
    pub tier: Option<Tier>,
    pub disabled: Option<bool>,
}

#[derive(sqlx::FromRow)]
struct UserRow {
    id: Uuid,
    email: String,
    role: Role,
    tier: Tier,
    created_at: Stamp,
    disabled_at: Option<Stamp>,
}

/// The key of a first user: all but what the store decides.
pub struct FirstKey<'a> {
    pub name: &'a str,
    pub prefix: &'a str,
    pub hash: [u8; 32],
    pub tier: Tier,
}

impl Store {
    pub async fn users_count(&self) -> Result<u64, StoreError> {
        on_connection!(self, |conn| {
            let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM users")
                .fetch_one(&mut *conn)
                .await?;
            Ok(count.unsigned_abs())
        })
    }

    /// Conflict when the email is taken (compared without case). Invalid when it is not of the form
    /// `name@domain`, has white space or control characters, or more than 254 bytes.
    pub async fn user_create(&self, email: &str, role: Role) -> Result<User, StoreError> {
        self.user_create_on(email, role, Tier::Free).await
    }

    /// [`Store::user_create`] with another tier than Free.
    pub async fn user_create_on(
        &self,
        email: &str,
        role: Role,
        tier: Tier,
    ) -> Result<User, StoreError> {
        let user = new_user(email, role, tier)?;
        in_transaction!(self, |tx| {
            sqlx::query(INSERT)
                .bind(user.id)
                .bind(&user.email)
                .bind(email_key(email))
                .bind(user.role)
                .bind(user.tier)
                .bind(user.created_at)
                .execute(&mut *tx)
                .await
                .map_err(|error| StoreError::of_write(error, "user", "user"))?;
            note!(self, tx, created(&user))
        })?;
        Ok(User::from(user))
    }

    pub async fn user_by_email(&self, email: &str) -> Result<Option<User>, StoreError> {
        if check_email(email).is_err() {
            return Ok(None);
        }
        on_connection!(self, |conn| {
            let row: Option<UserRow> = sqlx::query_as(
                "SELECT id, email, role, tier, created_at, disabled_at FROM users \
                 WHERE email_key = $1",
            )
            .bind(email_key(email))
            .fetch_optional(&mut *conn)
            .await?;
            Ok(row.map(User::from))
        })
    }

    pub async fn user(&self, id: Uuid) -> Result<Option<User>, StoreError> {
        on_connection!(self, |conn| {
            let row: Option<UserRow> = sqlx::query_as(
                "SELECT id, email, role, tier, created_at, disabled_at FROM users WHERE id = $1",
            )
            .bind(id)
            .fetch_optional(&mut *conn)
            .await?;
            Ok(row.map(User::from))
        })
    }

    /// Users, newest first. `page` is from 1 (0 is read as 1).
    pub async fn users_page(
        &self,
        filter: UsersFilter<'_>,
        page: u32,
        limit: u32,
    ) -> Result<UsersPage, StoreError> {
        let offset = i64::from(page.saturating_sub(1)) * i64::from(limit);
        let part = filter.email.map(like);
        on_connection!(self, |conn| {
            let total: i64 = sqlx::query_scalar(
                "SELECT COUNT(*) FROM users WHERE ($1 IS NULL OR email_key LIKE $1 ESCAPE '\\') \
                 AND ($2 IS NULL OR role = $2) AND ($3 IS NULL OR tier = $3) \
                 AND ($4 IS NULL OR (disabled_at IS NOT NULL) = $4)",
            )
            // Planned for what is asked for.
            .persistent(false)
            .bind(&part)
            .bind(filter.role)
            .bind(filter.tier)
            .bind(filter.disabled)
            .fetch_one(&mut *conn)
            .await?;
            let rows: Vec<UserRow> = sqlx::query_as(
                "SELECT id, email, role, tier, created_at, disabled_at FROM users \
                 WHERE ($1 IS NULL OR email_key LIKE $1 ESCAPE '\\') \
                 AND ($2 IS NULL OR role = $2) AND ($3 IS NULL OR tier = $3) \
                 AND ($4 IS NULL OR (disabled_at IS NOT NULL) = $4) \
                 ORDER BY id DESC LIMIT $5 OFFSET $6",
            )
            // Planned for what is asked for.
            .persistent(false)
            .bind(&part)
            .bind(filter.role)
            .bind(filter.tier)
            .bind(filter.disabled)
            .bind(i64::from(limit))
            .bind(offset)
            .fetch_all(&mut *conn)
            .await?;
            Ok(UsersPage {
                users: rows.into_iter().map(User::from).collect(),
                total: total.unsigned_abs(),
            })
        })
    }

    /// Changes a user. With another tier go those of its live keys that had the user's old tier, or have
    /// a higher one than the new.
    ///
    /// # Errors
    /// NotFound when there is no such user; LastAdmin when no admin that is not disabled would be left.
    pub async fn user_change(
        &self,
        id: Uuid,
        change: UserChange,
        now: DateTime<Utc>,
    ) -> Result<User, StoreError> {
        // SQLite's transaction is alone already. In PostgreSQL whoever may take an admin away first locks
        // all admins, in one order, so that two can't each take the other for the one who stays.
        let lock_admins = self.pool().text(
            "SELECT id FROM users WHERE role = 'admin' AND disabled_at IS NULL ORDER BY id",
            "SELECT id FROM users WHERE role = 'admin' AND disabled_at IS NULL ORDER BY id \
             FOR UPDATE",
        );
        let lock_user = self.pool().text(
            "SELECT id, email, role, tier, created_at, disabled_at FROM users WHERE id = $1",
            "SELECT id, email, role, tier, created_at, disabled_at FROM users WHERE id = $1 \
             FOR UPDATE",
        );
        let may_take_admin =
            change.role.is_some_and(|role| role != Role::Admin) || change.disabled == Some(true);
        in_transaction!(self, |tx| {
            let admins: Vec<Uuid> = if may_take_admin {
                sqlx::query_scalar(lock_admins).fetch_all(&mut *tx).await?
            } else {
                Vec::new()
            };
            let row: Option<UserRow> = sqlx::query_as(lock_user)
                .bind(id)
                .fetch_optional(&mut *tx)
                .await?;
            let old = row.map(User::from).ok_or(StoreError::NotFound("user"))?;
            if may_take_admin && admins == [id] {
                return Err(StoreError::LastAdmin);
            }
            let new = changed(&old, change, now);
            sqlx::query("UPDATE users SET role = $2, tier = $3, disabled_at = $4 WHERE id = $1")
                .bind(id)
                .bind(new.role)
                .bind(new.tier)
                .bind(new.disabled_at.map(Stamp::from))
                .execute(&mut *tx)
                .await?;
            let keys: Vec<Uuid> = if new.tier == old.tier {
                Vec::new()
            } else {
                sqlx::query_scalar(
                    "UPDATE api_keys SET tier = $2 WHERE user_id = $1 AND revoked_at IS NULL \
                     AND tier <> $2 AND (tier = $3 OR CASE tier WHEN 'free' THEN 0 \
                     WHEN 'basic' THEN 1 WHEN 'pro' THEN 2 ELSE 3 END > $4) RETURNING id",
                )
                .bind(id)
                .bind(new.tier)
                .bind(old.tier)
                .bind(new.tier as i32)
                .fetch_all(&mut *tx)
                .await?
            };
            if new != old {
                note!(self, tx, updated(&old, &new, &keys))?;
            }
            Ok(new)
        })
    }

    /// Makes the first user, an admin, and its key in one transaction. `None`, and nothing is
    /// written, when there is any user; of several programs that start at once one succeeds.
    pub async fn user_create_first(
        &self,
        email: &str,
        first: FirstKey<'_>,
    ) -> Result<Option<(User, Key)>, StoreError> {
        // On a database in use, asking first keeps the lock below off it.
        if self.users_count().await? > 0 {
            return Ok(None);
        }
        let user = new_user(email, Role::Admin, first.tier)?;
        let FirstKey {
            name,
            prefix,
            hash,
            tier,
        } = first;
        let row = NewKeyRow {
            user_id: user.id,
            name,
            prefix,
            hash,
            tier,
            scopes: Scopes::of_role(Role::Admin),
            expires_at: None,
        };
        let key = keys::new_key(&row)?;
        // SQLite's transaction holds the only write lock already. PostgreSQL's must keep others
        // from inserting between the count and the insert.
        let lock = self
            .pool()
            .text("SELECT 1", "LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE");
        let made = in_transaction!(self, |tx| {
            sqlx::query(lock).execute(&mut *tx).await?;
            let others: Option<i32> = sqlx::query_scalar("SELECT 1 FROM users LIMIT 1")
                .fetch_optional(&mut *tx)
                .await?;
            if others.is_some() {
                Ok(false)
            } else {
                sqlx::query(INSERT)
                    .bind(user.id)
                    .bind(&user.email)
                    .bind(email_key(email))
                    .bind(user.role)
                    .bind(user.tier)
                    .bind(user.created_at)
                    .execute(&mut *tx)
                    .await?;
                keys::insert!(tx, key, row.hash)
                    .map_err(|error| StoreError::of_write(error, "API key", "user"))?;
                note!(self, tx, created(&user))?;
                note!(self, tx, keys::created(&key))?;
                Ok(true)
            }
        })?;
        Ok(made.then(|| (User::from(user), Key::from(key))))
    }
}

impl From<UserRow> for User {
    fn from(row: UserRow) -> User {
        let UserRow {
            id,
            email,
            role,
            tier,
            created_at,
            disabled_at,
        } = row;
        User {
            id,
            email,
            role,
            tier,
            created_at: created_at.into(),
            disabled_at: disabled_at.map(DateTime::from),
        }
    }
}

fn changed(old: &User, change: UserChange, now: DateTime<Utc>) -> User {
    let disabled_at = match change.disabled {
        Some(true) => old.disabled_at.or(Some(Stamp::from(now).into())),
        Some(false) => None,
        None => old.disabled_at,
    };
    User {
        role: change.role.unwrap_or(old.role),
        tier: change.tier.unwrap_or(old.tier),
        disabled_at,
        ..old.clone()
    }
}

/// What the audit tells of a change: only what is another, and which keys' tiers went with it.
fn updated(old: &User, new: &User, keys: &[Uuid]) -> Change {
    let mut facts = [serde_json::Map::new(), serde_json::Map::new()];
    for (facts, user) in facts.iter_mut().zip([old, new]) {
        if old.role != new.role {
            facts.insert("role".into(), json!(user.role));
        }
        if old.tier != new.tier {
            facts.insert("tier".into(), json!(user.tier));
        }
        if old.disabled_at != new.disabled_at {
            facts.insert("disabled_at".into(), json!(user.disabled_at));
        }
    }
    let [before, mut after] = facts;
    if !keys.is_empty() {
        after.insert("keys_of_that_tier".into(), json!(keys));
    }
    Change {
        action: "user.update",
        subject_id: Some(new.id),
        before: Some(before.into()),
        after: Some(after.into()),
    }
}

fn new_user(email: &str, role: Role, tier: Tier) -> Result<UserRow, StoreError> {
    check_email(email)?;
    Ok(UserRow {
        id: Uuid::now_v7(),
        email: email.to_owned(),
        role,
        tier,
        created_at: Stamp::now(),
        disabled_at: None,
    })
}

/// What the audit tells of a new user.
fn created(user: &UserRow) -> Change {
    Change {
        action: "user.create",
        subject_id: Some(user.id),
        before: None,
        after: Some(json!({ "email": user.email, "role": user.role, "tier": user.tier })),
    }
}

/// A part of an email as a pattern of `LIKE … ESCAPE '\\'`.
fn like(part: &str) -> String {
    let mut pattern = String::from("%");
    for c in email_key(part).chars() {
        // No email has either; PostgreSQL takes no text with the first.
        let c = if c == '\0' { '\n' } else { c };
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

/// What is unique about an email. Lower case is made here and not by the database, because
/// `lower()` of SQLite knows ASCII alone and that of PostgreSQL depends on the locale.
pub(super) fn email_key(email: &str) -> String {
    email.to_lowercase()
}

pub(super) fn check_email(email: &str) -> Result<(), StoreError> {
    const OTHERWISE: &str = "an email address is name@domain, at most 254 bytes, without spaces";
    check_text(email, 3..=EMAIL_BYTES_MAX, OTHERWISE)?;
    let plain = !email.chars().any(|c| c.is_whitespace() || c.is_control());
    let parts = email
        .rsplit_once('@')
        .is_some_and(|(name, domain)| !name.is_empty() && !domain.is_empty());
    if plain && parts {
        Ok(())
    } else {
        Err(StoreError::Invalid(OTHERWISE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emails() {
        let longest = format!("{}@b", "a".repeat(252));
        for email in [
            "a@b",
            "admin@localhost",
            "ünï+çøde@例え.jp",
            "\"a@b\"@c",
            longest.as_str(),
        ] {
            assert!(check_email(email).is_ok(), "{email}");
        }
        let too_long = format!("a{longest}");
        for email in [
            "",
            "a",
            "@",
            "a@",
            "@b",
            "a b@c",
            "a\n@b",
            "a\0@b",
            "a@b\u{7f}",
            "a\u{a0}b@c",
            too_long.as_str(),
        ] {
            assert!(
                matches!(check_email(email), Err(StoreError::Invalid(_))),
                "{email:?}"
            );
        }
    }

    #[test]
    fn case_is_folded_beyond_ascii() {
        assert_eq!(email_key("ÜNÏ@Example.ORG"), email_key("ünï@example.org"));
        assert_ne!(email_key("uni@example.org"), email_key("ünï@example.org"));
    }
}
