//! Access tokens that are not what they say.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use ring::signature::Ed25519KeyPair;
use serde_json::{Value, json};
use sha2::Sha256;

use super::keys::Key;
use super::*;

const SECRET: &str = "2f8a61c09d3be4475a1c6e0b97d2483f";
const OTHER: &str = "3f8a61c09d3be4475a1c6e0b97d2483f";

fn settings(secrets: &[&str]) -> Settings {
    Settings {
        secrets: secrets.iter().map(|s| TokenSecret::new(*s)).collect(),
        issuer: "https://gateway.example".into(),
        audience: "wasm-wizard".into(),
        access_ttl: Duration::from_secs(600),
        refresh_ttl: Duration::from_secs(3_600),
        family_ttl: Duration::from_secs(7_200),
    }
}

fn keyring(secrets: &[&str]) -> Keyring {
    Keyring::new(settings(secrets)).unwrap()
}

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_900_000_000, 0).unwrap()
}

fn token(keyring: &Keyring) -> String {
    let new = NewToken {
        family_id: Uuid::from_u128(1),
        key_id: Uuid::from_u128(2),
        user_id: Uuid::from_u128(3),
        now: now(),
        expires_at: now() + TimeDelta::seconds(600),
        scopes: "execute keys".parse().unwrap(),
    };
    keyring.sign(&new).unwrap()
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn decoded(part: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// Header and claims of a token, to be changed and signed again.
fn opened(token: &str) -> (Value, Value) {
    let parts: Vec<&str> = token.split('.').collect();
    (decoded(parts[0]), decoded(parts[1]))
}

/// Signs whatever it is given with the Ed25519 key of a secret.
fn signed(header: &str, claims: &str, secret: &str) -> String {
    let message = format!("{header}.{claims}");
    let key = TokenSecret::new(secret).key().unwrap();
    let pair = Ed25519KeyPair::from_seed_unchecked(key.encoding.inner()).unwrap();
    let signature = URL_SAFE_NO_PAD.encode(pair.sign(message.as_bytes()));
    format!("{message}.{signature}")
}

#[test]
fn a_token_says_what_was_put_in_and_holds_for_its_time() {
    let keyring = keyring(&[SECRET]);
    let token = token(&keyring);
    assert!(token.len() < ACCESS_TOKEN_BYTES_MAX / 2, "{}", token.len());
    for _ in 0..2 {
        let verified = keyring.verify(&token, now()).unwrap();
        assert_eq!(
            (verified.family_id, verified.key_id, verified.user_id),
            (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3))
        );
        assert_eq!(verified.scopes.to_string(), "execute keys");
    }
    let at = |seconds| {
        keyring
            .verify(&token, now() + TimeDelta::seconds(seconds))
            .map(|_| ())
    };
    assert_eq!(at(599), Ok(()));
    assert_eq!(
        at(600),
        Err(Refusal::Expired),
        "there is no leeway at the end"
    );
    assert_eq!(at(-10), Ok(()));
    assert_eq!(at(-11), Err(Refusal::Invalid), "it is from the future");
    let (header, claims) = opened(&token);
    assert_eq!(header["alg"], "EdDSA");
    assert_eq!(header["typ"], "at+jwt");
    for claim in [
        "iss",
        "aud",
        "sub",
        "client_id",
        "sid",
        "jti",
        "iat",
        "nbf",
        "exp",
        "scope",
    ] {
        assert!(!claims[claim].is_null(), "{claim}");
    }
}

/// A table of what an attacker may send: each is one change to a good token.
#[test]
fn hostile_tokens_are_refused() {
    let keyring = keyring(&[SECRET]);
    let good = token(&keyring);
    let (header, claims) = opened(&good);
    let parts: Vec<&str> = good.split('.').collect();
    let x = decoded_x(&keyring);
    let head = |change: &dyn Fn(&mut Value)| {
        let mut header = header.clone();
        change(&mut header);
        signed(&part(&header), &part(&claims), SECRET)
    };
    let body = |change: &dyn Fn(&mut Value)| {
        let mut claims = claims.clone();
        change(&mut claims);
        signed(&part(&header), &part(&claims), SECRET)
    };
    let set = |name: &'static str, value: Value| body(&move |c| c[name] = value.clone());
    let without = |name: &'static str| {
        body(&move |c| {
            c.as_object_mut().unwrap().remove(name);
        })
    };
    // Signed as HS256 under the public key, in the forms it is published in (RFC 8725 section 2.1).
    let confused = |secret: &[u8]| {
        let mut header = header.clone();
        header["alg"] = "HS256".into();
        let message = format!("{}.{}", part(&header), parts[1]);
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
        mac.update(message.as_bytes());
        let tag = URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
        format!("{message}.{tag}")
    };
    let none = |alg: &str| {
        let mut header = header.clone();
        header["alg"] = alg.into();
        format!("{}.{}.", part(&header), parts[1])
    };
    let duplicate = format!(
        r#"{{"exp":1,{}"#,
        claims.to_string().strip_prefix('{').unwrap()
    );
    let hostile: Vec<(&str, String)> = vec![
        (
            "another key, the same kid",
            signed(parts[0], parts[1], OTHER),
        ),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("two parts", format!("{}.{}", parts[0], parts[1])),
        ("four parts", format!("{good}.x")),
        ("alg none", none("none")),
        ("alg None", none("None")),
        ("alg none, signed", head(&|h| h["alg"] = "none".into())),
        (
            "alg HS256, signed by Ed25519",
            head(&|h| h["alg"] = "HS256".into()),
        ),
        (
            "alg RS256, signed by Ed25519",
            head(&|h| h["alg"] = "RS256".into()),
        ),
        ("HS256 under the public key", confused(&x)),
        (
            "HS256 under its base64url",
            confused(URL_SAFE_NO_PAD.encode(&x).as_bytes()),
        ),
        ("HS256 under the JWKS", confused(keyring.jwks.as_bytes())),
        (
            "no alg",
            head(&|h| {
                h.as_object_mut().unwrap().remove("alg");
            }),
        ),
        ("alg eddsa", head(&|h| h["alg"] = "eddsa".into())),
        ("alg a number", head(&|h| h["alg"] = 1.into())),
        ("typ JWT", head(&|h| h["typ"] = "JWT".into())),
        (
            "no typ",
            head(&|h| {
                h.as_object_mut().unwrap().remove("typ");
            }),
        ),
        ("kid unknown", head(&|h| h["kid"] = "x".into())),
        ("kid a path", head(&|h| h["kid"] = "../../dev/null".into())),
        ("kid SQL", head(&|h| h["kid"] = "' OR '1'='1".into())),
        (
            "no kid",
            head(&|h| {
                h.as_object_mut().unwrap().remove("kid");
            }),
        ),
        (
            "crit",
            head(&|h| {
                h["crit"] = json!(["exp"]);
            }),
        ),
        (
            "crit b64",
            head(&|h| {
                h["crit"] = json!(["b64"]);
                h["b64"] = false.into();
            }),
        ),
        ("own key in the header", {
            let key = TokenSecret::new(OTHER).key().unwrap();
            let mut header = header.clone();
            header["jwk"] = json!({ "kty": "OKP", "crv": "Ed25519", "x": decoded_x_of(&key) });
            header["jku"] = "https://evil.example/jwks.json".into();
            signed(&part(&header), parts[1], OTHER)
        }),
        (
            "header no object",
            signed(&URL_SAFE_NO_PAD.encode("[]"), parts[1], SECRET),
        ),
        ("header no JSON", signed("AAAA", parts[1], SECRET)),
        ("claims no JSON", signed(parts[0], "AAAA", SECRET)),
        (
            "claims an array",
            signed(parts[0], &URL_SAFE_NO_PAD.encode("[]"), SECRET),
        ),
        (
            "claim given twice",
            signed(parts[0], &URL_SAFE_NO_PAD.encode(duplicate), SECRET),
        ),
        (
            "deep claims",
            signed(parts[0], &URL_SAFE_NO_PAD.encode("[".repeat(700)), SECRET),
        ),
        ("other issuer", set("iss", "https://evil.example".into())),
        (
            "issuers",
            set(
                "iss",
                json!(["https://gateway.example", "https://evil.example"]),
            ),
        ),
        ("no issuer", without("iss")),
        ("other audience", set("aud", "other".into())),
        ("audiences", set("aud", json!(["wasm-wizard"]))),
        ("no audience", without("aud")),
        ("no subject", without("sub")),
        ("subject no user", set("sub", "admin".into())),
        ("no key", without("client_id")),
        ("no family", without("sid")),
        ("no expiry", without("exp")),
        ("expiry null", set("exp", Value::Null)),
        ("expiry a text", set("exp", "9999999999".into())),
        ("expiry a fraction", set("exp", json!(1.9e9))),
        ("expiry endless", set("exp", json!(i64::MAX))),
        ("expiry beyond numbers", set("exp", json!(u64::MAX))),
        ("expiry negative", set("exp", json!(i64::MIN))),
        ("no nbf", without("nbf")),
        ("nbf far off", set("nbf", json!(now().timestamp() + 60))),
        ("iat far off", set("iat", json!(now().timestamp() + 60))),
        ("scope a list", set("scope", json!(["execute"]))),
        ("padded", format!("{good}=")),
        ("white space", format!("{} ", good)),
        ("a line end", good.replacen('.', ".\n", 1)),
        ("empty", String::new()),
        ("dots", "..".to_owned()),
        (
            "too long",
            set("jti", "x".repeat(ACCESS_TOKEN_BYTES_MAX).into()),
        ),
        ("standard base64", {
            let claims = STANDARD.encode(
                claims
                    .to_string()
                    .replace("wasm-wizard", "wasm-wizard???>>>"),
            );
            signed(parts[0], claims.trim_end_matches('='), SECRET)
        }),
    ];
    for (what, token) in hostile {
        assert!(keyring.verify(&token, now()).is_err(), "{what}: {token}");
    }
    // One signature has one spelling: the last character holds four bits that must be zero.
    let last = good.chars().last().unwrap();
    for other in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".chars() {
        let changed = format!("{}{other}", &good[..good.len() - 1]);
        assert_eq!(
            keyring.verify(&changed, now()).is_ok(),
            other == last,
            "{other}"
        );
    }
    // Claims that are not ours to know are passed over (RFC 7519 section 4).
    assert!(
        keyring
            .verify(&set("new", json!({ "a": [1] })), now())
            .is_ok()
    );
    assert!(keyring.verify(&good, now()).is_ok());
    // So are scopes, which then let nobody do anything.
    let other = keyring.verify(&set("scope", "keys root EXECUTE  admin,x".into()), now());
    assert_eq!(other.unwrap().scopes.to_string(), "keys");
}

/// No byte of a token can be another.
#[test]
fn every_changed_byte_is_noticed() {
    let keyring = keyring(&[SECRET]);
    let good = token(&keyring);
    for at in 0..good.len() {
        let mut bytes = good.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'Q' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        assert!(keyring.verify(&changed, now()).is_err(), "at {at}");
    }
}

#[test]
fn a_key_that_no_longer_signs_still_verifies_until_it_goes() {
    let old = keyring(&[SECRET]);
    let of_old = token(&old);
    let both = keyring(&[OTHER, SECRET]);
    assert!(both.verify(&of_old, now()).is_ok());
    let of_new = token(&both);
    assert!(old.verify(&of_new, now()).is_err());
    assert!(both.verify(&of_new, now()).is_ok());
    let new = keyring(&[OTHER]);
    assert!(new.verify(&of_old, now()).is_err());
    assert!(new.verify(&of_new, now()).is_ok());
    let page: Value = serde_json::from_str(&both.jwks).unwrap();
    assert_eq!(page["keys"].as_array().unwrap().len(), 2);
}

#[test]
fn a_keyring_has_a_key() {
    assert!(Keyring::new(settings(&[])).is_err());
}

/// The public key of the keyring's only key.
fn decoded_x(keyring: &Keyring) -> Vec<u8> {
    let page: Value = serde_json::from_str(&keyring.jwks).unwrap();
    URL_SAFE_NO_PAD
        .decode(page["keys"][0]["x"].as_str().unwrap())
        .unwrap()
}

fn decoded_x_of(key: &Key) -> String {
    let page: Value = serde_json::from_str(&super::keys::jwks(std::slice::from_ref(key))).unwrap();
    page["keys"][0]["x"].as_str().unwrap().to_owned()
}
