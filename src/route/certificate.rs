//! Which client certificates may use a route.

use std::fmt;
use std::path::PathBuf;

/// The certificates that a route takes. Without patterns, any that an authority vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CertificateRule {
    /// The file of the authorities that vouch for it: a name is worth as much as who gives it. `None`
    /// where all listeners believe the same.
    pub ca: Option<PathBuf>,
    pub subjects: Vec<SubjectPattern>,
    pub names: Vec<NamePattern>,
}

/// A subject, as the log has it: `O=Example, CN=client`; or its beginning: `O=Example, *`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectPattern {
    text: String,
    is_beginning: bool,
}

/// An alternative name: `DNS:client.example.com`, `email:a@example.com`, `IP:192.0.2.1`; all names below
/// another: `DNS:*.example.com`; or all URIs below one: `URI:spiffe://example.org/ns/*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamePattern {
    Exact(String),
    /// Ends in this, with at least one label before it.
    Below(String),
    BeginsWith(String),
}

/// What is wrong with a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("is no subject, such as 'O=Example, CN=client' or 'O=Example, *'")]
    Subject,
    #[error("is no alternative name: it begins with DNS:, URI:, email: or IP:")]
    Kind,
    #[error("may have a * only as 'DNS:*.example.com' or at the end of a URI, behind a /")]
    Star,
    #[error("is no IP address")]
    Address,
}

impl CertificateRule {
    /// Whether a certificate with this subject and these alternative names is one of them.
    pub fn admits(&self, subject: &str, names: &[String]) -> bool {
        if self.subjects.is_empty() && self.names.is_empty() {
            return true;
        }
        self.subjects.iter().any(|pattern| pattern.matches(subject))
            || names
                .iter()
                .any(|name| self.names.iter().any(|pattern| pattern.matches(name)))
    }
}

impl SubjectPattern {
    /// # Errors
    /// Where the text is neither.
    pub fn parse(text: &str) -> Result<SubjectPattern, PatternError> {
        let (text, is_beginning) = match text.strip_suffix('*') {
            // Only whole attributes: no name may pass for another that begins like it.
            Some(beginning) if beginning.ends_with(", ") => (beginning, true),
            Some(_) => return Err(PatternError::Subject),
            None => (text, false),
        };
        let is_subject = text.contains('=')
            && !text.contains('*')
            && text.bytes().all(|b| (b' '..=b'~').contains(&b));
        match is_subject {
            true => Ok(SubjectPattern {
                text: text.to_owned(),
                is_beginning,
            }),
            false => Err(PatternError::Subject),
        }
    }

    fn matches(&self, subject: &str) -> bool {
        match self.is_beginning {
            true => subject.len() > self.text.len() && subject.starts_with(&self.text),
            false => subject == self.text,
        }
    }
}

impl NamePattern {
    /// # Errors
    /// Where the text is none of them.
    pub fn parse(text: &str) -> Result<NamePattern, PatternError> {
        let (kind, rest) = text.split_once(':').ok_or(PatternError::Kind)?;
        if rest.is_empty() || !rest.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(PatternError::Kind);
        }
        let stars = rest.matches('*').count();
        match kind {
            "DNS" => {
                let name = rest.to_ascii_lowercase();
                match name.strip_prefix("*.") {
                    Some(parent) if stars == 1 && !parent.is_empty() => {
                        Ok(NamePattern::Below(format!(".{parent}")))
                    }
                    None if stars == 0 => Ok(NamePattern::Exact(format!("DNS:{name}"))),
                    Some(_) | None => Err(PatternError::Star),
                }
            }
            "URI" => match rest.strip_suffix('*') {
                Some(beginning) if stars == 1 && beginning.ends_with('/') => {
                    Ok(NamePattern::BeginsWith(format!("URI:{beginning}")))
                }
                None if stars == 0 => Ok(NamePattern::Exact(text.to_owned())),
                Some(_) | None => Err(PatternError::Star),
            },
            "IP" => {
                let address: std::net::IpAddr = rest.parse().map_err(|_| PatternError::Address)?;
                Ok(NamePattern::Exact(format!("IP:{address}")))
            }
            "email" if stars == 0 => Ok(NamePattern::Exact(text.to_owned())),
            "email" => Err(PatternError::Star),
            _ => Err(PatternError::Kind),
        }
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            NamePattern::Exact(exact) => name == exact,
            NamePattern::Below(parent) => {
                let label = name
                    .strip_prefix("DNS:")
                    .and_then(|n| n.strip_suffix(parent.as_str()));
                // A certificate for a wildcard is no client below it.
                label.is_some_and(|label| !label.is_empty() && !label.contains('*'))
            }
            NamePattern::BeginsWith(beginning) => {
                name.len() > beginning.len() && name.starts_with(beginning)
            }
        }
    }
}

impl fmt::Display for SubjectPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.is_beginning { "*" } else { "" };
        write!(f, "{}{star}", self.text)
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NamePattern::Exact(name) => f.write_str(name),
            NamePattern::Below(parent) => write!(f, "DNS:*{parent}"),
            NamePattern::BeginsWith(beginning) => write!(f, "{beginning}*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(subjects: &[&str], names: &[&str]) -> CertificateRule {
        CertificateRule {
            ca: None,
            subjects: subjects
                .iter()
                .map(|text| SubjectPattern::parse(text).unwrap())
                .collect(),
            names: names
                .iter()
                .map(|text| NamePattern::parse(text).unwrap())
                .collect(),
        }
    }

    fn admits(rule: &CertificateRule, subject: &str, names: &[&str]) -> bool {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        rule.admits(subject, &names)
    }

    #[test]
    fn subjects_are_whole_or_begin_with_whole_attributes() {
        let some = rule(&["O=Example, CN=a", "O=Other, OU=x, *"], &[]);
        assert!(admits(&some, "O=Example, CN=a", &[]));
        assert!(admits(&some, "O=Other, OU=x, CN=any", &[]));
        for subject in [
            "",
            "CN=a",
            "O=Example, CN=ab",
            "O=Example, CN=a, CN=b",
            "O=Other, OU=x",
            "O=Other, OU=xy, CN=any",
            "O=Example%2C CN=a",
        ] {
            assert!(!admits(&some, subject, &["DNS:a.example.com"]), "{subject}");
        }
        assert!(admits(&rule(&[], &[]), "CN=anybody", &[]));
    }

    #[test]
    fn names_are_exact_or_below() {
        let some = rule(
            &[],
            &[
                "DNS:A.example.com",
                "DNS:*.b.example.com",
                "URI:spiffe://example.org/ns/*",
                "email:a@example.com",
                "IP:2001:db8:0::1",
            ],
        );
        for name in [
            "DNS:a.example.com",
            "DNS:x.b.example.com",
            "DNS:x.y.b.example.com",
            "URI:spiffe://example.org/ns/a",
            "email:a@example.com",
            "IP:2001:db8::1",
        ] {
            assert!(admits(&some, "CN=x", &["DNS:other", name]), "{name}");
        }
        for name in [
            "DNS:b.example.com",
            "DNS:.b.example.com",
            "DNS:*.b.example.com",
            "DNS:xb.example.com",
            "URI:spiffe://example.org/ns/",
            "URI:spiffe://example.org/nsx/a",
            "URI:DNS:x.b.example.com",
            "email:b@example.com",
            "IP:2001:db8::2",
        ] {
            assert!(!admits(&some, "CN=DNS:a.example.com", &[name]), "{name}");
        }
    }

    #[test]
    fn patterns_that_mean_nothing_are_refused() {
        for text in ["", "*", "client", "CN=a*", "CN=*", "CN=*, O=b", "CN=\u{e4}"] {
            assert!(SubjectPattern::parse(text).is_err(), "{text}");
        }
        for text in [
            "",
            "example.com",
            "dns:example.com",
            "DNS:",
            "DNS:*",
            "DNS:a.*.example.com",
            "DNS:*.*.example.com",
            "URI:spiffe://example.org*",
            "URI:*",
            "email:*@example.com",
            "IP:10.0.0.0/8",
        ] {
            assert!(NamePattern::parse(text).is_err(), "{text}");
        }
        assert_eq!(
            NamePattern::parse("DNS:*.A.test").unwrap().to_string(),
            "DNS:*.a.test"
        );
    }
}
