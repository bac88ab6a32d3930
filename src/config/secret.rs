//! Secrets: which salts are too well known, where the development salt is kept, and how what is
//! printed hides them.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::ser::SerializeMap;
use serde::{Serializer, ser};

use super::values::Secret;
use crate::auth::{Salt, TokenSecret};

/// Fewest characters of a salt.
pub const SALT_CHARS_MIN: usize = 32;

/// Most bytes of a salt, and of a file that holds a secret.
pub const SECRET_BYTES_MAX: usize = 64 << 10;

const HIDDEN: &str = "(hidden)";

/// Where the salt comes from. Reading the configuration touches no file; the start does.
#[derive(Clone, PartialEq)]
pub enum SaltSource {
    /// From the configuration.
    Given(Salt),
    /// From this file, which the first start makes. Development only.
    File(PathBuf),
}

impl fmt::Debug for SaltSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SaltSource::Given(_) => write!(f, "Given{HIDDEN}"),
            SaltSource::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// Where the secrets of access tokens come from, in the same way.
#[derive(Clone, PartialEq)]
pub enum TokenSecretSource {
    /// From the configuration: the first signs, the others still verify.
    Given(Vec<TokenSecret>),
    /// From this file, which the first start makes. Development only.
    File(PathBuf),
}

impl fmt::Debug for TokenSecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenSecretSource::Given(secrets) => write!(f, "Given({} {HIDDEN})", secrets.len()),
            TokenSecretSource::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl SaltSource {
    /// The salt; makes the file on the first start. Concurrent first starts agree on one salt.
    ///
    /// # Errors
    /// When the file can't be read or made, holds no salt, or can be read by others.
    pub fn read_or_create(&self) -> io::Result<Salt> {
        match self {
            SaltSource::Given(salt) => Ok(salt.clone()),
            SaltSource::File(path) => {
                let text = read_or_create(path, "salt", "all API keys made with it are void")?;
                Salt::new(text).map_err(|error| refused(path, &format!("holds no salt: {error}")))
            }
        }
    }
}

impl TokenSecretSource {
    /// The secrets; makes the file on the first start, as for the salt.
    ///
    /// # Errors
    /// When the file can't be read or made, holds no secret, or can be read by others.
    pub fn read_or_create(&self) -> io::Result<Vec<TokenSecret>> {
        match self {
            TokenSecretSource::Given(secrets) => Ok(secrets.clone()),
            TokenSecretSource::File(path) => {
                let text =
                    read_or_create(path, "secret", "all access tokens made with it are void")?;
                Ok(vec![TokenSecret::new(text)])
            }
        }
    }
}

/// The secret in a file, which is made if it is not there. `what` it is, and what its loss means, are
/// for people.
fn read_or_create(path: &Path, what: &str, loss: &str) -> io::Result<String> {
    match read_secret(path, what, loss) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_secret(path).map_err(|error| named(path, &error))?;
            read_secret(path, what, loss)
        }
        result => result,
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn refused(path: &Path, message: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{}: {message}", path.display()),
    )
}

fn read_secret(path: &Path, what: &str, loss: &str) -> io::Result<String> {
    let file = File::open(path).map_err(|error| named(path, &error))?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        return Err(refused(
            path,
            "others can read this secret; run chmod 600, or remove it if it is known",
        ));
    }
    let mut text = String::new();
    file.take(SECRET_BYTES_MAX as u64)
        .read_to_string(&mut text)
        .map_err(|error| named(path, &error))?;
    let text = text.trim_end_matches(['\n', '\r']);
    if text.chars().count() < SALT_CHARS_MIN {
        let message = format!("holds no {what}; remove it, and {loss}");
        return Err(refused(path, &message));
    }
    Ok(text.to_owned())
}

/// Writes a new secret aside and links it into place, which fails where another start was faster: its
/// secret is the one then.
fn create_secret(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let random = random_hex()?;
    let (secret, suffix) = random.split_at(64);
    let aside = directory.join(format!(".secret.{suffix}"));
    let linked = write_aside(&aside, secret).and_then(|()| match fs::hard_link(&aside, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    });
    let removed = fs::remove_file(&aside);
    linked.and(removed)
}

fn write_aside(path: &Path, secret: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(secret.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

/// 64 digits for the secret and 16 for a file name.
fn random_hex() -> io::Result<String> {
    let mut random = [0_u8; 40];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(random
        .iter()
        .fold(String::with_capacity(80), |mut hex, byte| {
            // Writing to a String can't fail.
            let _infallible = write!(hex, "{byte:02x}");
            hex
        }))
}

/// Why a salt that is long enough is still none.
pub fn salt_weakness(salt: &str) -> Option<&'static str> {
    const WELL_KNOWN: [&str; 16] = [
        "change-me",
        "changeme",
        "change_me",
        "change-this",
        "change_this",
        "changethis",
        "default",
        "example",
        "your-",
        "your_",
        "placeholder",
        "password",
        "secret",
        "insecure",
        "development",
        "replace",
    ];
    let lower = salt.to_lowercase();
    if WELL_KNOWN.iter().any(|known| lower.contains(known)) {
        return Some("is a well-known default");
    }
    let chars: Vec<char> = salt.chars().collect();
    let repeats = |period: usize| {
        chars
            .iter()
            .skip(period)
            .zip(&chars)
            .all(|(later, earlier)| later == earlier)
    };
    if (1..=16).any(repeats) {
        return Some("only repeats a few characters");
    }
    let steps = |by: i64| {
        chars
            .windows(2)
            .all(|pair| i64::from(u32::from(pair[1])) - i64::from(u32::from(pair[0])) == by)
    };
    if steps(1) || steps(-1) {
        return Some("is a sequence");
    }
    None
}

/// A URL with its password hidden, whatever else may be wrong with it.
pub fn redacted_url(url: &str) -> String {
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    let mut shown = match (address.split_once("://"), address.rfind('@')) {
        (Some((scheme, rest)), Some(_)) => {
            let (credentials, host) = rest.rsplit_once('@').unwrap_or(("", rest));
            match credentials.split_once(':') {
                Some((user, _)) => format!("{scheme}://{user}:{HIDDEN}@{host}"),
                None => format!("{scheme}://{credentials}@{host}"),
            }
        }
        // A '@' without a scheme: the rest may be anything.
        (None, Some(_)) => HIDDEN.to_string(),
        (_, None) => address.to_string(),
    };
    for (index, pair) in query.split('&').filter(|pair| !pair.is_empty()).enumerate() {
        shown.push(if index == 0 { '?' } else { '&' });
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        shown.push_str(name);
        shown.push('=');
        shown.push_str(if is_sensitive(name) || value.contains('@') {
            HIDDEN
        } else {
            value
        });
    }
    shown
}

/// Whether what has this name is likely a secret: a header, a guest's variable, a parameter.
pub fn is_sensitive(name: &str) -> bool {
    const PARTS: [&str; 11] = [
        "secret",
        "token",
        "passw",
        "pwd",
        "apikey",
        "authorization",
        "cookie",
        "credential",
        "private",
        "salt",
        "signature",
    ];
    let plain: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    plain == "auth" || plain.ends_with("key") || PARTS.iter().any(|part| plain.contains(part))
}

/// Prints a database URL without its password.
pub fn serialize_url<S: Serializer>(url: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&redacted_url(url.reveal()))
}

/// The same of a URL that may be missing.
pub fn serialize_optional_url<S: Serializer>(
    url: &Option<Secret>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match url {
        Some(url) => serializer.serialize_some(&redacted_url(url.reveal())),
        None => serializer.serialize_none(),
    }
}

/// Prints named values without those that are likely secrets.
pub fn serialize_pairs<S: Serializer>(
    pairs: &BTreeMap<String, String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut map: S::SerializeMap = serializer.serialize_map(Some(pairs.len()))?;
    for (name, value) in pairs {
        if is_sensitive(name) {
            ser::SerializeMap::serialize_entry(&mut map, name, HIDDEN)?;
        } else if value.contains("://") {
            map.serialize_entry(name, &redacted_url(value))?;
        } else {
            map.serialize_entry(name, value)?;
        }
    }
    map.end()
}
