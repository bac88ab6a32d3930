//! Who is calling: API keys, principals, roles.

mod cache;
mod first_admin;
mod header;
mod key;
mod loads;
mod outage;
#[cfg(test)]
mod tests;
mod tokens;
mod uses;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::limits::Tier;
use crate::lives::{Ended, Life, Lives};
use crate::store::changes::Changed;
use crate::store::keys::KeyForAuth;
use crate::store::{Store, StoreError};
use crate::telemetry::seldom::Seldom;
use cache::{Cache, Entry, Forgotten, Hash, Loaded, Look};
use header::Credential;
use loads::Loads;
use outage::Outage;
use tokens::{Refusal, Tokens};
use uses::Uses;

pub use crate::account::{Role, Scope, Scopes};
pub use first_admin::{FIRST_ADMIN_EMAIL, FirstAdminError, first_admin};
pub use key::{
    KEY_BYTES, KEY_MARK, NewKey, NoRandomness, PREFIX_BYTES, SALT_BYTES_MIN, Salt, SaltTooShort,
};
pub use tokens::{
    ACCESS_TOKEN_BYTES_MAX, ACCESS_TTL_MAX, NoTokenKey, REFRESH_TOKEN_BYTES, REFRESH_TOKEN_MARK,
    Settings as TokenSettings, TOKEN_SECRETS_MAX, TokenError, TokenKeyring, TokenPair, TokenSecret,
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
    Certificate(Arc<CertificatePrincipal>),
}

/// A caller who showed a valid API key, or an access token of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPrincipal {
    pub key_id: Uuid,
    pub user_id: Uuid,
    /// What the key acts in: its user's role, or `user` where the key lacks the scope `admin`.
    pub role: Role,
    pub tier: Tier,
    pub scopes: Scopes,
    /// When what was shown ends.
    pub expires_at: Option<DateTime<Utc>>,
    /// The family of the access token, if that was shown and not the key itself.
    pub token_family: Option<Uuid>,
}

/// A caller who showed a client certificate that the route takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificatePrincipal {
    /// The certificate's subject, or, where it has none, its first alternative name.
    pub name: String,
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
    /// An access token that was good once; a refresh gives a new one.
    #[error("the access token has expired")]
    TokenExpired,
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
///
/// An access token is verified here, and its key is then looked up in the same way, by its id.
#[derive(Clone)]
pub struct Authenticator {
    inner: Arc<Inner>,
}

struct Inner {
    salt: Salt,
    store: Store,
    by_hash: Known,
    by_id: Known,
    outage: Outage,
    uses: Uses,
    /// What runs for keys, each with its user.
    lives: Arc<Lives<(Uuid, Uuid)>>,
    /// Keys for whom something runs, and which must be looked up again.
    doubtful: Mutex<HashSet<Uuid>>,
    /// Of looking them up again.
    rechecks: Seldom,
    tokens: Tokens,
}

/// What is known of keys under one kind of name.
struct Known {
    cache: Cache,
    loads: Loads,
}

/// The name that a key is looked up by.
#[derive(Clone, Copy)]
enum Wanted {
    /// The key itself was shown.
    Hash(Hash),
    /// An access token of it was shown.
    Id(Uuid),
}

impl Authenticator {
    pub fn new(settings: Settings, store: Store) -> Authenticator {
        let known = || Known {
            cache: Cache::new(&settings),
            loads: Loads::default(),
        };
        Authenticator {
            inner: Arc::new(Inner {
                by_hash: known(),
                by_id: known(),
                salt: settings.salt,
                store,
                outage: Outage::new(),
                uses: Uses::default(),
                lives: Arc::default(),
                doubtful: Mutex::default(),
                rechecks: Seldom::default(),
                tokens: Tokens::default(),
            }),
        }
    }

    /// The principal of a request, from `Authorization: Bearer …`, a key or an access token, or
    /// `X-API-Key: ww_…`; anonymous when there is neither.
    pub async fn authenticate(&self, headers: &http::HeaderMap) -> Result<Principal, AuthError> {
        self.authenticate_at(headers, Utc::now()).await
    }

    /// [`Authenticator::authenticate`] at a time of the caller's.
    pub async fn authenticate_at(
        &self,
        headers: &http::HeaderMap,
        now: DateTime<Utc>,
    ) -> Result<Principal, AuthError> {
        match header::credential(headers)? {
            None => Ok(Principal::Anonymous),
            Some(Credential::Key(key)) => {
                let wanted = Wanted::Hash(self.inner.salt.hash(key));
                Ok(Principal::Key(self.inner.find(wanted, now).await?))
            }
            Some(Credential::Token(token)) => {
                let verified = self.inner.tokens.verify(token, now)?;
                let key = self.inner.find(Wanted::Id(verified.key_id), now).await?;
                verified.principal(&key)
            }
        }
    }

    /// The answer of [`Authenticator::authenticate_at`] where it takes no database: never waits.
    /// `None` when the database must be asked.
    pub fn authenticate_cached(
        &self,
        headers: &http::HeaderMap,
        now: DateTime<Utc>,
    ) -> Option<Result<Principal, AuthError>> {
        match header::credential(headers) {
            Ok(Some(Credential::Key(key))) => {
                let wanted = Wanted::Hash(self.inner.salt.hash(key));
                let found = self.inner.answer(&wanted, now)?;
                Some(found.map(Principal::Key))
            }
            Ok(Some(Credential::Token(token))) => {
                let verified = match self.inner.tokens.verify(token, now) {
                    Ok(verified) => verified,
                    Err(refusal) => return Some(Err(refusal.into())),
                };
                let found = self.inner.answer(&Wanted::Id(verified.key_id), now)?;
                Some(found.and_then(|key| verified.principal(&key)))
            }
            Ok(None) => Some(Ok(Principal::Anonymous)),
            Err(error) => Some(Err(error)),
        }
    }

    /// Makes a key: the secret is in the answer and nowhere else. Fails when the operating system
    /// has no random bytes.
    pub fn new_key(&self) -> Result<NewKey, NoRandomness> {
        NewKey::generate(&self.inner.salt)
    }

    /// The hash under which a key of the earlier service is stored, from its SHA-256.
    pub fn legacy_hash(&self, sha256: &[u8; 32]) -> [u8; 32] {
        self.inner.salt.legacy_hash(sha256)
    }

    /// Forgets what is cached of a key, so that a change of it holds at once: no request that
    /// starts after this call is answered from what was read before it.
    pub fn forget(&self, key_id: Uuid) {
        self.inner.forget(Forgotten::Key(key_id));
    }

    /// Takes in what was changed in the database: what is remembered of it is forgotten, and what runs
    /// for a key that may not be used any more is ended.
    pub async fn changed(&self, changed: Changed) {
        let concerns: Box<dyn Fn(Uuid, Uuid) -> bool + Send> = match changed {
            Changed::Key(id) => {
                self.forget(id);
                Box::new(move |key_id, _| key_id == id)
            }
            Changed::User(id) => {
                self.inner.forget(Forgotten::User(id));
                Box::new(move |_, user_id| user_id == id)
            }
            Changed::Everything => {
                self.inner.by_hash.cache.doubt();
                self.inner.by_id.cache.doubt();
                Box::new(|_, _| true)
            }
            Changed::Module(_) => return,
        };
        let running = self.inner.lives.names();
        let concerned = running
            .into_iter()
            .filter(|&(key, user)| concerns(key, user));
        self.inner.doubtful().extend(concerned.map(|(key, _)| key));
        self.recheck().await;
    }

    /// Looks up the keys for whom something runs and of which it is not sure that they may still be used,
    /// and ends what runs for those that may not. Those that can't be looked up now stay doubtful.
    pub async fn recheck(&self) {
        let doubtful = std::mem::take(&mut *self.inner.doubtful());
        let mut keys = doubtful.iter().copied();
        while let Some(key_id) = keys.next() {
            let usable = self.inner.store.key_is_usable(key_id, Utc::now()).await;
            match usable {
                Ok(true) => {}
                Ok(false) => {
                    for name in self.inner.lives.names() {
                        if name.0 == key_id {
                            self.inner.lives.end(name);
                        }
                    }
                }
                Err(error) => {
                    // The others would not be found now either, each after its time.
                    let missed: Vec<Uuid> = std::iter::once(key_id).chain(keys).collect();
                    if let Some(failures) = self.inner.rechecks.failed(1, Instant::now()) {
                        tracing::warn!(
                            %error,
                            keys = missed.len(),
                            failures,
                            "keys for whom something runs can't be looked up now"
                        );
                    }
                    self.inner.doubtful().extend(missed);
                    return;
                }
            }
        }
        if !doubtful.is_empty() && self.inner.rechecks.went_well() {
            tracing::info!("keys for whom something runs can be looked up again");
        }
    }

    /// Does some work for a key, and ends it when the key or its user is stopped meanwhile.
    pub async fn while_allowed<T>(
        &self,
        principal: &KeyPrincipal,
        work: impl Future<Output = T>,
    ) -> Result<T, Ended> {
        let key_id = principal.key_id;
        let name = (key_id, principal.user_id);
        let noted = || self.inner.noted(key_id);
        self.inner.lives.run(name, noted, work).await
    }

    /// Tells whether the key or its user is stopped, as long as it is held: for what goes on for long.
    pub fn leash(&self, principal: &KeyPrincipal) -> Leash {
        let leash = self.inner.lives.hold((principal.key_id, principal.user_id));
        self.inner.noted(principal.key_id);
        leash
    }

    /// Writes the last uses of keys, noted by the second, to the database. On failure they stay
    /// noted.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.inner.uses.flush(&self.inner.store).await
    }
}

/// By key and user.
pub type Leash = Life<(Uuid, Uuid)>;

impl Inner {
    /// Something was noted for a key, which may have been stopped after it was let in and before that.
    fn noted(&self, key_id: Uuid) {
        let known = [&self.by_hash, &self.by_id];
        if !known.iter().any(|known| known.cache.knows(key_id)) {
            self.doubtful().insert(key_id);
        }
    }

    fn doubtful(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under both kinds of name.
    fn forget(&self, what: Forgotten) {
        self.by_hash.cache.forget(what);
        self.by_id.cache.forget(what);
    }

    fn known(&self, wanted: &Wanted) -> &Known {
        match wanted {
            Wanted::Hash(_) => &self.by_hash,
            Wanted::Id(_) => &self.by_id,
        }
    }

    /// The principal of a key, from memory or the database.
    async fn find(
        self: &Arc<Self>,
        wanted: Wanted,
        now: DateTime<Utc>,
    ) -> Result<Arc<KeyPrincipal>, AuthError> {
        for _ in 0..LOADS_PER_REQUEST_MAX {
            if let Some(answer) = self.answer(&wanted, now) {
                return answer;
            }
            if !self.outage.may_ask(now) {
                // Another request asks for all of us; meanwhile there is an answer from memory.
                continue;
            }
            let ask = || Arc::clone(self).ask(wanted, now);
            let Some(load) = self.known(&wanted).loads.join(wanted.name(), ask) else {
                return self.answer_without_database(&wanted, now);
            };
            match load.await {
                Ok(Loaded::Known(entry)) if entry.is_forgotten() => {}
                Ok(Loaded::Known(entry)) => return self.accept(&entry, now),
                Ok(Loaded::Refused) => return Err(AuthError::Invalid),
                Err(_) => return self.answer_without_database(&wanted, now),
            }
        }
        self.answer_without_database(&wanted, now)
    }

    /// The answer where it takes no database.
    fn answer(
        &self,
        wanted: &Wanted,
        now: DateTime<Utc>,
    ) -> Option<Result<Arc<KeyPrincipal>, AuthError>> {
        match self.known(wanted).cache.look(&wanted.name(), now) {
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
        wanted: &Wanted,
        now: DateTime<Utc>,
    ) -> Result<Arc<KeyPrincipal>, AuthError> {
        match self.known(wanted).cache.look(&wanted.name(), now) {
            Look::Fresh(entry) | Look::Stale(entry) => self.accept(&entry, now),
            Look::Refused => Err(AuthError::Invalid),
            Look::Missing => Err(AuthError::Unavailable),
        }
    }

    fn accept(&self, entry: &Entry, now: DateTime<Utc>) -> Result<Arc<KeyPrincipal>, AuthError> {
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
        Ok(Arc::clone(principal))
    }

    /// Asks the database about a key, again when it was forgotten meanwhile.
    async fn ask(self: Arc<Self>, wanted: Wanted, now: DateTime<Utc>) -> Result<Loaded, AuthError> {
        let started = Instant::now();
        let cache = &self.known(&wanted).cache;
        for _ in 0..LOADS_PER_REQUEST_MAX {
            let epoch = cache.epoch();
            let asked = tokio::time::timeout(LOAD_TIMEOUT, wanted.load(&self.store)).await;
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
            if let Some(loaded) = cache.settle(epoch, &wanted.name(), found, now) {
                return Ok(loaded);
            }
        }
        Err(AuthError::Unavailable)
    }
}

impl Wanted {
    /// What the key is filed under.
    fn name(&self) -> Hash {
        match self {
            Wanted::Hash(hash) => *hash,
            Wanted::Id(id) => {
                let mut name = [0; 32];
                name[..16].copy_from_slice(id.as_bytes());
                name
            }
        }
    }

    async fn load(&self, store: &Store) -> Result<Option<KeyForAuth>, StoreError> {
        match self {
            Wanted::Hash(hash) => store.key_by_hash(hash).await,
            Wanted::Id(id) => {
                let found = store.key_by_id(*id).await?;
                // What it is filed under stands in the place of its hash, which nobody has shown.
                Ok(found.map(|found| KeyForAuth {
                    hash: self.name(),
                    ..found
                }))
            }
        }
    }
}

impl From<Refusal> for AuthError {
    fn from(refusal: Refusal) -> AuthError {
        match refusal {
            Refusal::Invalid => AuthError::Invalid,
            Refusal::Expired => AuthError::TokenExpired,
        }
    }
}
