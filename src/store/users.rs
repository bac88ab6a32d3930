//! Users.

use chrono::{DateTime, Utc};
use uuid::Uuid;

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
}

#[derive(sqlx::FromRow)]
struct UserRow {
    id: Uuid,
    email: String,
    role: Role,
    tier: Tier,
    created_at: Stamp,
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
            Ok(())
        })?;
        Ok(User::from(user))
    }

    pub async fn user_by_email(&self, email: &str) -> Result<Option<User>, StoreError> {
        if check_email(email).is_err() {
            return Ok(None);
        }
        on_connection!(self, |conn| {
            let row: Option<UserRow> = sqlx::query_as(
                "SELECT id, email, role, tier, created_at FROM users WHERE email_key = $1",
            )
            .bind(email_key(email))
            .fetch_optional(&mut *conn)
            .await?;
            Ok(row.map(User::from))
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
        } = row;
        User {
            id,
            email,
            role,
            tier,
            created_at: created_at.into(),
        }
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
    })
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
