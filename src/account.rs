//! The words for what an account may do: its role and its tier. They stand in the database, the
//! configuration and the API alike, so they are a leaf of their own.

use std::fmt;
use std::str::FromStr;

/// What a user may do in the control plane.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    User,
    Support,
    Admin,
}

/// A named set of limits.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    Free,
    Basic,
    Pro,
    Enterprise,
}

/// Not the name of a tier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a tier: use free, basic, pro or enterprise")]
pub struct UnknownTier(pub String);

impl Tier {
    /// The name as it stands in configuration, the API and the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Tier::Free => "free",
            Tier::Basic => "basic",
            Tier::Pro => "pro",
            Tier::Enterprise => "enterprise",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Tier {
    type Err = UnknownTier;

    fn from_str(name: &str) -> Result<Tier, UnknownTier> {
        [Tier::Free, Tier::Basic, Tier::Pro, Tier::Enterprise]
            .into_iter()
            .find(|tier| tier.as_str() == name)
            .ok_or_else(|| UnknownTier(name.to_owned()))
    }
}

/// One thing that a key may be used for.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
    clap::ValueEnum,
)]
pub enum Scope {
    /// Use routes and run modules.
    #[serde(rename = "execute")]
    #[value(name = "execute")]
    Execute,
    /// List and look at modules.
    #[serde(rename = "modules:read")]
    #[value(name = "modules:read")]
    ModulesRead,
    /// Upload and delete modules.
    #[serde(rename = "modules:write")]
    #[value(name = "modules:write")]
    ModulesWrite,
    /// List, make, rotate and revoke keys.
    #[serde(rename = "keys")]
    #[value(name = "keys")]
    Keys,
    /// Act in the user's role, where that is more than `user`.
    #[serde(rename = "admin")]
    #[value(name = "admin")]
    Admin,
}

/// What a key may be used for. As text, the names of the scopes with spaces between (RFC 6749 §3.3);
/// in JSON an array of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Scopes(u8);

/// Not the name of a scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a scope: use execute, modules:read, modules:write, keys or admin")]
pub struct UnknownScope(pub String);

impl Scope {
    pub const ALL: [Scope; 5] = [
        Scope::Execute,
        Scope::ModulesRead,
        Scope::ModulesWrite,
        Scope::Keys,
        Scope::Admin,
    ];

    /// The name as it stands in the API and in tokens.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Execute => "execute",
            Scope::ModulesRead => "modules:read",
            Scope::ModulesWrite => "modules:write",
            Scope::Keys => "keys",
            Scope::Admin => "admin",
        }
    }

    /// The number by which the database knows it.
    fn bit(self) -> u8 {
        match self {
            Scope::Execute => 1,
            Scope::ModulesRead => 2,
            Scope::ModulesWrite => 4,
            Scope::Keys => 8,
            Scope::Admin => 16,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Scopes {
    pub const NONE: Scopes = Scopes(0);

    /// All that a user of this role can use.
    pub fn of_role(role: Role) -> Scopes {
        let all: Scopes = Scope::ALL.into_iter().collect();
        match role {
            Role::User => all.without(Scope::Admin),
            Role::Support | Role::Admin => all,
        }
    }

    /// By the sum of their numbers; `None` when it holds one we don't know.
    pub fn from_bits(bits: u8) -> Option<Scopes> {
        let known = Scope::ALL.iter().fold(0, |sum, scope| sum | scope.bit());
        (bits & !known == 0).then_some(Scopes(bits))
    }

    /// The sum of their numbers.
    pub fn bits(self) -> u8 {
        self.0
    }

    pub fn has(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    #[must_use]
    pub fn without(self, scope: Scope) -> Scopes {
        Scopes(self.0 & !scope.bit())
    }

    /// Those that are in both.
    #[must_use]
    pub fn and(self, other: Scopes) -> Scopes {
        Scopes(self.0 & other.0)
    }

    /// Whether there is none that `other` has not.
    pub fn is_within(self, other: Scopes) -> bool {
        self.0 & !other.0 == 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |&scope| self.has(scope))
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Scopes {
        Scopes(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, scope) in self.iter().enumerate() {
            let space = if at == 0 { "" } else { " " };
            write!(f, "{space}{scope}")?;
        }
        Ok(())
    }
}

impl FromStr for Scopes {
    type Err = UnknownScope;

    /// Names with any white space or commas between them.
    fn from_str(text: &str) -> Result<Scopes, UnknownScope> {
        text.split(|c: char| c.is_whitespace() || c == ',')
            .filter(|name| !name.is_empty())
            .map(|name| {
                Scope::ALL
                    .into_iter()
                    .find(|scope| scope.as_str() == name)
                    .ok_or_else(|| UnknownScope(name.to_owned()))
            })
            .collect()
    }
}

impl serde::Serialize for Scopes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> serde::Deserialize<'de> for Scopes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Scopes, D::Error> {
        Ok(Vec::<Scope>::deserialize(deserializer)?
            .into_iter()
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_a_set_with_one_spelling() {
        let scopes: Scopes = "keys,execute  keys".parse().unwrap();
        assert_eq!(scopes.to_string(), "execute keys");
        assert_eq!(scopes.bits(), 9);
        assert_eq!(Scopes::from_bits(9), Some(scopes));
        assert_eq!(Scopes::from_bits(32), None);
        assert_eq!(
            serde_json::to_string(&scopes).unwrap(),
            r#"["execute","keys"]"#
        );
        assert_eq!(
            serde_json::from_str::<Scopes>(r#"["keys","execute"]"#).unwrap(),
            scopes
        );
        assert!(serde_json::from_str::<Scopes>(r#"["root"]"#).is_err());
        assert!("execute root".parse::<Scopes>().is_err());
        assert_eq!("".parse(), Ok(Scopes::NONE));
    }

    #[test]
    fn every_scope_has_a_number_and_a_name_of_its_own() {
        let all: Scopes = Scope::ALL.into_iter().collect();
        assert_eq!(all.bits(), 31);
        assert_eq!(all.iter().count(), Scope::ALL.len());
        assert_eq!(all.to_string().parse(), Ok(all));
        for scope in Scope::ALL {
            assert_eq!(
                serde_json::to_value(scope).unwrap(),
                serde_json::json!(scope.as_str())
            );
        }
        assert!(Scopes::of_role(Role::User).is_within(all));
        assert!(!all.is_within(Scopes::of_role(Role::User)));
        assert_eq!(Scopes::of_role(Role::Support), all);
    }
}
