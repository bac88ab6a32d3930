//! What an operator sets about the database. The URL may hold a password, so nothing here shows it.

use std::fmt;
use std::time::Duration;

use super::StoreError;

/// Settings of the database.
#[derive(Clone, PartialEq)]
pub struct Settings {
    /// `sqlite://PATH` or `postgres://…`. May hold a password: never logged.
    pub url: String,
    pub connections_max: u32,
    /// Longest wait for a connection.
    pub acquire_timeout: Duration,
}

impl Settings {
    /// The URL as it may be shown: the password is `***`, and so is the whole query, where a
    /// password may also stand.
    pub fn url_shown(&self) -> String {
        let Some((scheme, rest)) = self.url.split_once("://") else {
            let (base, query) = self.url.split_once('?').unwrap_or((self.url.as_str(), ""));
            return if query.is_empty() {
                base.to_owned()
            } else {
                format!("{base}?***")
            };
        };
        let query = rest.find('?');
        // The last `@` counts: a password with a `/` or `@` that someone forgot to encode must not
        // be shown either. With a `?` before it, nobody can tell what is what.
        match rest.rfind('@') {
            Some(at) if query.is_some_and(|query| query < at) => format!("{scheme}://***"),
            Some(at) => {
                let user = rest[..at]
                    .split_once(':')
                    .map_or(&rest[..at], |(user, _)| user);
                let hidden = if user.len() < at { ":***" } else { "" };
                format!("{scheme}://{user}{hidden}{}", without_query(&rest[at..]))
            }
            None => format!("{scheme}://{}", without_query(rest)),
        }
    }

    /// Takes the password out of an error's text, should a driver ever put it there.
    pub(super) fn hide_password(&self, error: StoreError) -> StoreError {
        let hide = |text: String| {
            self.passwords()
                .iter()
                .fold(text, |text, password| text.replace(password, "***"))
        };
        match error {
            StoreError::Unavailable(text) => StoreError::Unavailable(hide(text)),
            StoreError::Internal(text) => StoreError::Internal(hide(text)),
            StoreError::NotFound(_)
            | StoreError::Conflict(_)
            | StoreError::LastAdmin
            | StoreError::Invalid(_) => error,
        }
    }

    /// Every password in the URL, as written there and percent-decoded. One of a few characters is
    /// left out: taking it out of every word that holds it would give it away.
    fn passwords(&self) -> Vec<String> {
        const CHARACTERS_MIN: usize = 4;
        let rest = self.url.split_once("://").map_or("", |(_, rest)| rest);
        let user_info = rest.rfind('@').and_then(|at| rest[..at].split_once(':'));
        let query = self.url.split_once('?').map_or("", |(_, query)| query);
        let parameters = query
            .split('&')
            .filter_map(|pair| pair.strip_prefix("password="));
        let written = user_info
            .map(|(_, password)| password)
            .into_iter()
            .chain(parameters);
        written
            .filter(|password| password.len() >= CHARACTERS_MIN)
            .flat_map(|password| [password.to_owned(), percent_decoded(password)])
            .collect()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("url", &self.url_shown())
            .field("connections_max", &self.connections_max)
            .field("acquire_timeout", &self.acquire_timeout)
            .finish()
    }
}

fn without_query(text: &str) -> String {
    text.split_once('?')
        .map_or_else(|| text.to_owned(), |(base, _)| format!("{base}?***"))
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let pair = text
            .get(at + 1..at + 3)
            .and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match pair {
            Some(value) if byte == b'%' => {
                decoded.push(value);
                at += 3;
            }
            Some(_) | None => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Settings {
        Settings {
            url: url.to_owned(),
            connections_max: 1,
            acquire_timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn debug_hides_the_password_wherever_it_stands() {
        for (url, shown) in [
            (
                "postgres://u:hunter2@db:5432/x",
                "postgres://u:***@db:5432/x",
            ),
            (
                "postgres://u:hunter2@db/x?password=hunter2",
                "postgres://u:***@db/x?***",
            ),
            (
                "postgres://u:hun/ter2@hunter2@db/x",
                "postgres://u:***@db/x",
            ),
            ("postgres://:hunter2@db", "postgres://:***@db"),
            ("postgres://u@db/x", "postgres://u@db/x"),
            ("postgres:///x?user=u&password=hunter2", "postgres:///x?***"),
            (
                "postgres:///x?user=u&password=hun@hunter2",
                "postgres://***",
            ),
            ("postgres://u:hun?hunter2@db/x", "postgres://***"),
            ("sqlite:x.db?key=hunter2", "sqlite:x.db?***"),
            ("sqlite://data/a@b.db", "sqlite://data/a@b.db"),
            ("sqlite:data/x.db", "sqlite:data/x.db"),
            ("", ""),
        ] {
            let debug = format!("{:?}", settings(url));
            assert_eq!(settings(url).url_shown(), shown);
            assert!(
                debug.contains(shown) && !debug.contains("hunter2"),
                "{debug}"
            );
        }
    }

    #[test]
    fn an_error_loses_the_password_in_both_spellings() {
        let settings = settings("postgres://u:hunter%402@db/x?password=se%63ret");
        for text in ["hunter%402", "hunter@2", "se%63ret", "secret"] {
            for error in [
                StoreError::Internal(text.into()),
                StoreError::Unavailable(text.into()),
            ] {
                let shown = settings.hide_password(error).to_string();
                assert!(shown.ends_with("***"), "{shown}");
            }
        }
    }
}
