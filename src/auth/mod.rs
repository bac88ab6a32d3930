//! Who is calling: API keys, principals, roles.

mod cache;
mod first_admin;
mod header;
mod key;
mod loads;
mod outage;
#[cfg(test)]
mod tests;
mod uses;

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::limits::Tier;
use crate::store::{Store, StoreError};
use cache::{Cache, Entry, Hash, Loaded, Look};
use loads::Loads;
use outage::Outage;
use uses::Uses;

pub use crate::account::{Role, Scope, Scopes};
pub use first_admin::{FIRST_ADMIN_EMAIL, FirstAdminError, first_admin};
pub use key::{
    KEY_BYTES, KEY_MARK, NewKey, NoRandomness, PREFIX_BYTES, SALT_BYTES_MIN, Salt, SaltTooShort,
};

/// Longest a request waits for the database to say whether a key is good.
const LOAD_TIMEOUT: Duration = Duration::from_secs(2);

/// How often one request asks again because the key was forgotten while it asked.
const LOADS_PER_REQUEST_MAX: usize = 8;

/// Settings of authentication.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Secret key of the HMAC under which API keys are stored.
    pub salt: Salt,
    /// How long a key's record is used without asking the database again.
    pub cache_ttl: Duration,
    /// How long an unknown key is refused without asking the database again.
    pub negative_ttl: Duration,
    /// How long beyond `cache_ttl` a key in memory goes on working while the database can't be
    /// asked.
    pub outage_grace: Duration,
    /// Keys kept in memory.
    pub cache_keys_max: u64,
}

/// Who is calling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    Anonymous,
    Key(Arc<KeyPrincipal>),
}

/// A caller who showed a valid API key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPrincipal {
    pub key_id: Uuid,
    pub user_id: Uuid,
    /// What the key acts in: its user's role, or `user` where the key lacks the scope `admin`.
    pub role: Role,
    pub tier: Tier,
    pub scopes: Scopes,
    pub expires_at: Option<DateTime<Utc>>,
}

/// Why a credential was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The header is there but is not a credential we know how to read, or two differ.
    #[error("the credential is malformed")]
    Malformed,
    /// Unknown, revoked or expired; which of them is not told.
    #[error("the API key is not valid")]
    Invalid,
    /// The database can't be asked now.
    #[error("authentication is unavailable")]
    Unavailable,
}

/// Finds the principal behind a request's headers. Cheap to clone.
///
/// A key is looked up in memory, by its hash. Only a key that is not there, or whose record is
/// older than `cache_ttl`, is looked up in the database, and requests with the same key wait for
/// one look-up together. While the database can't be asked, records in memory serve for
/// `outage_grace` longer, and other keys are [`AuthError::Unavailable`], not invalid.
#[derive(Clone)]
pub struct Authenticator {
    inner: Arc<Inner>,
}

struct Inner {
    salt: Salt,
    store: Store,
    cache: Cache,
    loads: Loads,
    outage: Outage,
    uses: Uses,
}

impl Authenticator {
    pub fn new(settings: Settings, store: Store) -> Authenticator {
        let cache = Cache::new(&settings);
        Authenticator {
            inner: Arc::new(Inner {
                salt: settings.salt,
                store,
                cache,
                loads: Loads::default(),
                outage: Outage::new(),
                uses: Uses::default(),
            }),
        }
    }

    /// The principal of a request, from `Authorization: Bearer ww_…` or `X-API-Key: ww_…`;
    /// anonymous when there is neither.
    pub async fn authenticate(&self, headers: &http::HeaderMap) -> Result<Principal, AuthError> {
        self.authenticate_at(headers, Utc::now()).await
    }

    /// [`Authenticator::authenticate`] at a time of the caller's.
    pub async fn authenticate_at(
        &self,
        headers: &http::HeaderMap,
        now: DateTime<Utc>,
    ) -> Result<Principal, AuthError> {
        let Some(key) = header::api_key(headers)? else {
            return Ok(Principal::Anonymous);
        };
        let hash = self.inner.salt.hash(key);
        for _ in 0..LOADS_PER_REQUEST_MAX {
            if let Some(answer) = self.inner.answer(&hash, now) {
                return answer;
            }
            if !self.inner.outage.may_ask(now) {
                // Another request asks for all of us; meanwhile there is an answer from memory.
                continue;
            }
            let ask = || Arc::clone(&self.inner).ask(hash, now);
            let Some(load) = self.inner.loads.join(hash, ask) else {
                return self.inner.answer_without_database(&hash, now);
            };
            match load.await {
                Ok(Loaded::Known(entry)) if entry.is_forgotten() => {}
                Ok(Loaded::Known(entry)) => return self.inner.accept(&entry, now),
                Ok(Loaded::Refused) => return Err(AuthError::Invalid),
                Err(_) => return self.inner.answer_without_database(&hash, now),
            }
        }
        self.inner.answer_without_database(&hash, now)
    }

    /// The answer of [`Authenticator::authenticate_at`] where it takes no database: never waits.
    /// `None` when the database must be asked.
    pub fn authenticate_cached(
        &self,
        headers: &http::HeaderMap,
        now: DateTime<Utc>,
    ) -> Option<Result<Principal, AuthError>> {
        match header::api_key(headers) {
            Ok(Some(key)) => self.inner.answer(&self.inner.salt.hash(key), now),
            Ok(None) => Some(Ok(Principal::Anonymous)),
            Err(error) => Some(Err(error)),
        }
    }

    /// Makes a key: the secret is in the answer and nowhere else. Fails when the operating system
    /// has no random bytes.
    pub fn new_key(&self) -> Result<NewKey, NoRandomness> {
        NewKey::generate(&self.inner.salt)
    }

    /// Forgets what is cached of a key, so that a change of it holds at once: no request that
    /// starts after this call is answered from what was read before it.
    pub fn forget(&self, key_id: Uuid) {
        self.inner.cache.forget(key_id);
    }

    /// Writes the last uses of keys, noted by the second, to the database. On failure they stay
    /// noted.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.inner.uses.flush(&self.inner.store).await
    }
}

impl Inner {
    /// The answer where it takes no database.
    fn answer(&self, hash: &Hash, now: DateTime<Utc>) -> Option<Result<Principal, AuthError>> {
        match self.cache.look(hash, now) {
            Look::Fresh(entry) => Some(self.accept(&entry, now)),
            Look::Stale(entry) => self.outage.holds(now).then(|| self.accept(&entry, now)),
            Look::Refused => Some(Err(AuthError::Invalid)),
            Look::Missing => self
                .outage
                .holds(now)
                .then_some(Err(AuthError::Unavailable)),
        }
    }

    /// The answer after the database could not be asked.
    fn answer_without_database(
        &self,
        hash: &Hash,
        now: DateTime<Utc>,
    ) -> Result<Principal, AuthError> {
        match self.cache.look(hash, now) {
            Look::Fresh(entry) | Look::Stale(entry) => self.accept(&entry, now),
            Look::Refused => Err(AuthError::Invalid),
            Look::Missing => Err(AuthError::Unavailable),
        }
    }

    fn accept(&self, entry: &Entry, now: DateTime<Utc>) -> Result<Principal, AuthError> {
        let principal = &entry.principal;
        if principal
            .expires_at
            .is_some_and(|expires_at| expires_at <= now)
        {
            return Err(AuthError::Invalid);
        }
        if entry.is_to_note(now) {
            self.uses.note(principal.key_id, now);
        }
        Ok(Principal::Key(Arc::clone(principal)))
    }

    /// Asks the database about a key, again when it was forgotten meanwhile.
    async fn ask(self: Arc<Self>, hash: Hash, now: DateTime<Utc>) -> Result<Loaded, AuthError> {
        let started = Instant::now();
        for _ in 0..LOADS_PER_REQUEST_MAX {
            let epoch = self.cache.epoch();
            let asked = tokio::time::timeout(LOAD_TIMEOUT, self.store.key_by_hash(&hash)).await;
            let slow = || StoreError::Unavailable(format!("no answer within {LOAD_TIMEOUT:?}"));
            let found = match asked.unwrap_or_else(|_| Err(slow())) {
                Ok(found) => found,
                Err(error) => {
                    // The caller's time is from before the wait.
                    self.outage.noted(now + started.elapsed(), &error);
                    return Err(AuthError::Unavailable);
                }
            };
            self.outage.over();
            if let Some(loaded) = self.cache.settle(epoch, &hash, found, now) {
                return Ok(loaded);
            }
        }
        Err(AuthError::Unavailable)
    }
}
