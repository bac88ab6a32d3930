//! Which client addresses may come in.

use std::net::IpAddr;

use super::Network;

/// Client addresses that are let in, and those that are not. What is denied stays out even where it
/// is allowed too; where nothing is allowed by name, whatever is not denied is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    pub allow: Vec<Network>,
    pub deny: Vec<Network>,
}

impl Access {
    /// Whether a client may come in. One whose address is not known passes no list.
    pub fn permits(&self, client: Option<IpAddr>) -> bool {
        if self.allow.is_empty() && self.deny.is_empty() {
            return true;
        }
        let Some(client) = client else {
            return false;
        };
        let is_in = |networks: &[Network]| networks.iter().any(|n| n.contains(client));
        !is_in(&self.deny) && (self.allow.is_empty() || is_in(&self.allow))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(allow: &[&str], deny: &[&str]) -> Access {
        let parse = |texts: &[&str]| texts.iter().map(|t| Network::parse(t).unwrap()).collect();
        Access {
            allow: parse(allow),
            deny: parse(deny),
        }
    }

    #[test]
    fn what_is_denied_stays_out() {
        for (access, client, expected) in [
            (access(&[], &[]), "192.0.2.1", true),
            (access(&["192.0.2.0/24"], &[]), "192.0.2.1", true),
            (access(&["192.0.2.0/24"], &[]), "192.0.3.1", false),
            (access(&["192.0.2.0/24"], &[]), "::ffff:192.0.2.1", true),
            (
                access(&["192.0.2.0/24"], &["192.0.2.1"]),
                "192.0.2.1",
                false,
            ),
            (access(&["192.0.2.0/24"], &["192.0.2.1"]), "192.0.2.2", true),
            (access(&[], &["2001:db8::/32"]), "2001:db8::1", false),
            (access(&[], &["2001:db8::/32"]), "192.0.2.1", true),
            (access(&["::/0"], &[]), "192.0.2.1", false),
        ] {
            let client = client.parse().unwrap();
            assert_eq!(
                access.permits(Some(client)),
                expected,
                "{access:?} {client}"
            );
        }
        assert!(access(&[], &[]).permits(None));
        assert!(!access(&[], &["192.0.2.1"]).permits(None));
        assert!(!access(&["0.0.0.0/0", "::/0"], &[]).permits(None));
    }
}
