//! Access tokens: JWTs (RFC 7519) in the profile of RFC 9068, signed with Ed25519 (RFC 8037).
//!
//! What a token says is fixed by RFC 8725: its algorithm is the key's and not the header's choice
//! (section 3.1), its type is stated (3.11), issuer and audience are checked (3.8, 3.9), and no key,
//! or place of one, is ever taken from a token (3.10).

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use jsonwebtoken::{Algorithm, Header, Validation};
use moka::sync::Cache;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::keys::{Key, NoTokenKey, jwks};
use super::{Settings, provider};
use crate::account::{Scope, Scopes};

/// Longest token that is looked at. Ours have some 700 bytes.
pub const ACCESS_TOKEN_BYTES_MAX: usize = 2_048;

/// `typ` of an access token (RFC 9068 section 2.1).
const TYPE: &str = "at+jwt";

/// How far the clocks of two gateways may be apart. An expiry is never stretched by it.
const LEEWAY: TimeDelta = TimeDelta::seconds(10);

/// Verified tokens that are remembered: about 30 MB.
const VERIFIED_MAX: u64 = 100_000;

/// The keys and rules of one configuration, and the tokens verified under it.
pub(super) struct Keyring {
    pub(super) settings: Settings,
    /// Never empty; the first signs.
    keys: Vec<Key>,
    validation: Validation,
    /// By SHA-256 of the token.
    verified: Cache<[u8; 32], Arc<Verified>>,
    /// The page at `/.well-known/jwks.json`.
    pub(super) jwks: Arc<str>,
}

/// What a token that we signed says. Whether its key may still be used is another question.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::auth) struct Verified {
    pub(super) family_id: Uuid,
    pub(in crate::auth) key_id: Uuid,
    pub(super) user_id: Uuid,
    not_before: DateTime<Utc>,
    pub(super) expires_at: DateTime<Utc>,
    pub(super) scopes: Scopes,
}

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::auth) enum Refusal {
    Invalid,
    /// It was good once.
    Expired,
}

/// A token to be signed.
pub(super) struct NewToken {
    pub(super) family_id: Uuid,
    pub(super) key_id: Uuid,
    pub(super) user_id: Uuid,
    pub(super) now: DateTime<Utc>,
    pub(super) expires_at: DateTime<Utc>,
    pub(super) scopes: Scopes,
}

/// The claims of RFC 9068 section 2.2, and the family. Times are in whole seconds.
#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    /// The user.
    sub: Uuid,
    /// The API key.
    client_id: Uuid,
    /// The family of refresh tokens.
    sid: Uuid,
    jti: Uuid,
    iat: i64,
    nbf: i64,
    exp: i64,
    /// Names with spaces between.
    scope: String,
}

/// What of a header is looked at before anything is verified.
#[derive(Deserialize)]
struct Head<'a> {
    alg: &'a str,
    typ: &'a str,
    kid: &'a str,
    /// Extensions that must be understood (RFC 7515 section 4.1.11): we have none.
    #[serde(default)]
    crit: Option<IgnoredAny>,
}

impl Keyring {
    pub(super) fn new(settings: Settings) -> Result<Keyring, NoTokenKey> {
        provider::install();
        let keys: Vec<Key> = settings
            .secrets
            .iter()
            .map(super::TokenSecret::key)
            .collect::<Result<_, _>>()?;
        if keys.is_empty() {
            return Err(NoTokenKey);
        }
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
        validation.set_issuer(&[&settings.issuer]);
        validation.set_audience(&[&settings.audience]);
        // Times are judged below, by the caller's clock.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let jwks = jwks(&keys).into();
        Ok(Keyring {
            settings,
            keys,
            validation,
            verified: Cache::new(VERIFIED_MAX),
            jwks,
        })
    }

    pub(super) fn sign(&self, new: &NewToken) -> Option<String> {
        let key = self.keys.first()?;
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(TYPE.to_owned());
        header.kid = Some(key.id.clone());
        let claims = Claims {
            iss: self.settings.issuer.clone(),
            aud: self.settings.audience.clone(),
            sub: new.user_id,
            client_id: new.key_id,
            sid: new.family_id,
            jti: Uuid::new_v4(),
            iat: new.now.timestamp(),
            nbf: new.now.timestamp(),
            exp: new.expires_at.timestamp(),
            scope: new.scopes.to_string(),
        };
        jsonwebtoken::encode(&header, &claims, &key.encoding).ok()
    }

    /// What a token says, if we signed it and it holds now. A token that was verified before costs a
    /// hash; its signature is not checked again.
    pub(super) fn verify(&self, token: &str, now: DateTime<Utc>) -> Result<Arc<Verified>, Refusal> {
        if token.len() > ACCESS_TOKEN_BYTES_MAX {
            return Err(Refusal::Invalid);
        }
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let verified = match self.verified.get(&hash) {
            Some(verified) => verified,
            None => {
                let verified = Arc::new(self.verify_signature(token).ok_or(Refusal::Invalid)?);
                self.verified.insert(hash, Arc::clone(&verified));
                verified
            }
        };
        if verified.not_before > now + LEEWAY {
            return Err(Refusal::Invalid);
        }
        if verified.expires_at <= now {
            self.verified.invalidate(&hash);
            return Err(Refusal::Expired);
        }
        Ok(verified)
    }

    /// What a token says that we signed, whenever that was.
    pub(super) fn verify_signature(&self, token: &str) -> Option<Verified> {
        if token.len() > ACCESS_TOKEN_BYTES_MAX {
            return None;
        }
        let head = URL_SAFE_NO_PAD.decode(token.split('.').next()?).ok()?;
        let head: Head<'_> = serde_json::from_slice(&head).ok()?;
        if head.alg != "EdDSA" || head.typ != TYPE || head.crit.is_some() {
            return None;
        }
        let key = self.keys.iter().find(|key| key.id == head.kid)?;
        let claims = jsonwebtoken::decode::<Claims>(token, &key.decoding, &self.validation).ok()?;
        let claims = claims.claims;
        Some(Verified {
            family_id: claims.sid,
            key_id: claims.client_id,
            user_id: claims.sub,
            not_before: DateTime::from_timestamp(claims.nbf.max(claims.iat), 0)?,
            expires_at: DateTime::from_timestamp(claims.exp, 0)?,
            scopes: scopes(&claims.scope),
        })
    }
}

/// The scopes we know. One that a newer gateway gave is nothing that we could let anybody do.
fn scopes(text: &str) -> Scopes {
    text.split(' ')
        .filter_map(|name| Scope::ALL.into_iter().find(|scope| scope.as_str() == name))
        .collect()
}
