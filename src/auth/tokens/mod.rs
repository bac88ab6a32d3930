//! Access and refresh tokens: short-lived credentials that a key is exchanged for.
//!
//! An access token is verified without the database; whose key it belongs to, and what that may do
//! now, is looked up in memory as for the key itself, so a token dies with its key. A refresh token
//! is good for one refresh. When it is shown again somebody has a copy of it, and since nobody can
//! tell the thief from the owner, the whole family ends (RFC 9700 section 4.14.2): the owner can
//! begin another with the key.

mod access;
mod keys;
mod provider;
mod refresh;
mod revoked;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{AuthError, Authenticator, KeyPrincipal, NoRandomness, Principal};
use crate::account::{Role, Scope, Scopes};
use crate::store::StoreError;
use crate::store::audit::Actor;
use crate::store::tokens::{NewFamily, Refresh, Refreshed};
use access::{Keyring, NewToken};
use revoked::Revoked;

pub use access::ACCESS_TOKEN_BYTES_MAX;
pub(in crate::auth) use access::{Refusal, Verified};
pub use keys::{NoTokenKey, TOKEN_SECRETS_MAX, TokenSecret};
pub use refresh::{REFRESH_TOKEN_BYTES, REFRESH_TOKEN_MARK};

/// Longest life of an access token.
pub const ACCESS_TTL_MAX: Duration = Duration::from_secs(3_600);

/// Families of one key that are alive at the same time; the oldest of more end.
const FAMILIES_PER_KEY_MAX: u32 = 100;

/// What ended this long ago is deleted. Until then its access tokens may be alive, and other gateways
/// may not have heard of it.
const PURGE_AFTER: TimeDelta = TimeDelta::hours(2);

/// Settings of access and refresh tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// One to [`TOKEN_SECRETS_MAX`]: the first one's key signs, the others' still verify.
    pub secrets: Vec<TokenSecret>,
    /// `iss`: who signs.
    pub issuer: String,
    /// `aud`: whom the tokens are for.
    pub audience: String,
    /// Life of an access token, at most [`ACCESS_TTL_MAX`].
    pub access_ttl: Duration,
    /// Life of a refresh token that is not used, at least `access_ttl`.
    pub refresh_ttl: Duration,
    /// Life of a family, however often it is refreshed.
    pub family_ttl: Duration,
}

/// Keys that were derived, and can be begun to be used.
pub struct TokenKeyring(Option<Arc<Keyring>>);

impl TokenKeyring {
    /// `None` makes a keyring without keys: no tokens are issued or accepted.
    pub fn prepare(settings: Option<Settings>) -> Result<TokenKeyring, NoTokenKey> {
        let keyring = settings.map(Keyring::new).transpose()?;
        Ok(TokenKeyring(keyring.map(Arc::new)))
    }
}

/// A pair of tokens just made. The only answer that ever holds them.
#[derive(Clone)]
pub struct TokenPair {
    pub access_token: String,
    pub access_expires_at: DateTime<Utc>,
    pub refresh_token: String,
    pub refresh_expires_at: DateTime<Utc>,
    pub scopes: Scopes,
}

/// Why there are no tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("access tokens are not enabled")]
    Disabled,
    /// Made up, ended, revoked, or of a key or user that may do nothing now.
    #[error("the refresh token is not valid")]
    Refused,
    /// Shown before: its family has just been revoked.
    #[error("the refresh token was used before")]
    Reused { key_id: Uuid },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    #[error("the access token could not be signed")]
    Unsigned,
}

/// The keys in use, and the families that ended.
#[derive(Default)]
pub(super) struct Tokens {
    keyring: ArcSwapOption<Keyring>,
    revoked: Revoked,
}

impl Tokens {
    /// What an access token says, if it holds now.
    pub(super) fn verify(&self, token: &str, now: DateTime<Utc>) -> Result<Arc<Verified>, Refusal> {
        let keyring = self.keyring.load();
        let keyring = keyring.as_ref().ok_or(Refusal::Invalid)?;
        let verified = keyring.verify(token, now)?;
        if self.revoked.contains(verified.family_id) {
            return Err(Refusal::Invalid);
        }
        Ok(verified)
    }
}

impl Verified {
    /// The key's principal, as far as the token reaches.
    pub(super) fn principal(&self, key: &KeyPrincipal) -> Result<Principal, AuthError> {
        if key.user_id != self.user_id {
            return Err(AuthError::Invalid);
        }
        let ends = [Some(self.expires_at), key.expires_at];
        let scopes = self.scopes.and(key.scopes);
        Ok(Principal::Key(Arc::new(KeyPrincipal {
            role: if scopes.has(Scope::Admin) {
                key.role
            } else {
                Role::User
            },
            scopes,
            expires_at: ends.into_iter().flatten().min(),
            token_family: Some(self.family_id),
            ..key.clone()
        })))
    }
}

impl Authenticator {
    /// Begins to use these keys and rules. Tokens that were signed with a key that is still there stay
    /// good.
    pub fn install_tokens(&self, keyring: TokenKeyring) {
        let in_use = self.inner.tokens.keyring.load();
        let settings =
            |keyring: &Option<Arc<Keyring>>| keyring.as_ref().map(|k| k.settings.clone());
        // The same ones keep what they have verified.
        if settings(&in_use) != settings(&keyring.0) {
            self.inner.tokens.keyring.store(keyring.0);
        }
    }

    /// The public keys as a JWK Set, where there are any.
    pub fn jwks(&self) -> Option<Arc<str>> {
        let keyring = self.inner.tokens.keyring.load();
        keyring.as_ref().map(|keyring| Arc::clone(&keyring.jwks))
    }

    /// Begins a family of tokens for a key, with those of its scopes that are asked for.
    pub async fn issue_tokens(
        &self,
        key: &KeyPrincipal,
        scopes: Scopes,
        by: Actor,
        now: DateTime<Utc>,
    ) -> Result<TokenPair, TokenError> {
        let keyring = self.keyring()?;
        let scopes = scopes.and(key.scopes);
        let family_id = Uuid::now_v7();
        let refresh = refresh::generate(family_id, &self.inner.salt)?;
        let until = |life: Duration| earlier(now + life, key.expires_at);
        let ends_at = until(keyring.settings.family_ttl);
        let expires_at = until(keyring.settings.refresh_ttl).min(ends_at);
        let access_expires_at = until(keyring.settings.access_ttl).min(ends_at);
        let new = NewFamily {
            id: family_id,
            key_id: key.key_id,
            hash: refresh.hash,
            scopes,
            now,
            expires_at,
            ends_at,
            families_max: FAMILIES_PER_KEY_MAX,
        };
        match self.inner.store.acting(by).token_family_create(new).await {
            Ok(()) => {}
            Err(StoreError::NotFound(_)) => return Err(TokenError::Refused),
            Err(error) => return Err(error.into()),
        }
        let access = NewToken {
            family_id,
            key_id: key.key_id,
            user_id: key.user_id,
            now,
            expires_at: access_expires_at,
            scopes,
        };
        Ok(TokenPair {
            access_token: keyring.sign(&access).ok_or(TokenError::Unsigned)?,
            access_expires_at,
            refresh_token: refresh.secret,
            refresh_expires_at: expires_at,
            scopes,
        })
    }

    /// A new pair for a refresh token, which is of no use afterwards. One that was used before ends
    /// its family, here at once and elsewhere within a second or two.
    pub async fn refresh_tokens(
        &self,
        token: &str,
        by: Actor,
        now: DateTime<Utc>,
    ) -> Result<TokenPair, TokenError> {
        let keyring = self.keyring()?;
        let shown = refresh::read(token, &self.inner.salt).ok_or(TokenError::Refused)?;
        let family_id = shown.family_id;
        let next = refresh::generate(family_id, &self.inner.salt)?;
        let refresh = Refresh {
            family_id,
            shown: shown.hash,
            next: next.hash,
            now,
            expires_at: now + keyring.settings.refresh_ttl,
        };
        let family = match self.inner.store.acting(by).token_refresh(&refresh).await? {
            Refreshed::Rotated(family) => family,
            Refreshed::Reused { key_id } => {
                self.inner.tokens.revoked.note(family_id, now);
                return Err(TokenError::Reused { key_id });
            }
            Refreshed::Refused => return Err(TokenError::Refused),
        };
        let access_expires_at =
            earlier(now + keyring.settings.access_ttl, family.key_expires_at).min(family.ends_at);
        let access = NewToken {
            family_id,
            key_id: family.key_id,
            user_id: family.user_id,
            now,
            expires_at: access_expires_at,
            scopes: family.scopes,
        };
        Ok(TokenPair {
            access_token: keyring.sign(&access).ok_or(TokenError::Unsigned)?,
            access_expires_at,
            refresh_token: next.secret,
            refresh_expires_at: family.expires_at,
            scopes: family.scopes,
        })
    }

    /// Ends the family of a token of either kind, its access tokens included. One that was never
    /// issued, or has ended, is as good as revoked (RFC 7009 section 2.2).
    pub async fn revoke_tokens(
        &self,
        token: &str,
        by: Actor,
        now: DateTime<Utc>,
    ) -> Result<(), TokenError> {
        let keyring = self.keyring()?;
        let refresh = refresh::read(token, &self.inner.salt).map(|shown| shown.family_id);
        let family_id = refresh.or_else(|| {
            let verified = keyring.verify_signature(token)?;
            Some(verified.family_id)
        });
        if let Some(family_id) = family_id {
            let store = self.inner.store.acting(by);
            store.token_family_revoke(family_id, now).await?;
            self.inner.tokens.revoked.note(family_id, now);
        }
        Ok(())
    }

    /// Hears of the families that other gateways revoked. To be called every second.
    pub async fn learn_revocations(&self, now: DateTime<Utc>) -> Result<(), StoreError> {
        let revoked = &self.inner.tokens.revoked;
        let since = revoked.since(now);
        let found = self.inner.store.token_families_revoked(since).await?;
        revoked.learn(found, now);
        Ok(())
    }

    /// Deletes what ended long ago.
    pub async fn purge_tokens(&self, now: DateTime<Utc>) -> Result<(), StoreError> {
        while self
            .inner
            .store
            .token_families_purge(now - PURGE_AFTER)
            .await?
        {}
        Ok(())
    }

    fn keyring(&self) -> Result<Arc<Keyring>, TokenError> {
        let keyring = self.inner.tokens.keyring.load_full();
        keyring.ok_or(TokenError::Disabled)
    }
}

fn earlier(at: DateTime<Utc>, bound: Option<DateTime<Utc>>) -> DateTime<Utc> {
    bound.map_or(at, |bound| at.min(bound))
}
