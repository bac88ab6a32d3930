//! Networks in CIDR notation.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network in CIDR notation (RFC 4632 section 3.1, RFC 4291 section 2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    pub address: IpAddr,
    pub prefix_len: u8,
}

/// Why a text is not a network, and what to write instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    #[error("write an address with or without a prefix length, as in `10.0.0.0/8`")]
    Address,
    #[error("the prefix length must be a number from 0 to {max}")]
    PrefixLen { max: u8 },
    #[error(
        "the address has bits set beyond the prefix length; write {network}, or the address alone"
    )]
    HostBits { network: Network },
}

impl Network {
    /// Reads `10.0.0.0/8`, `2001:db8::/32`, or a single address. IPv4-mapped networks
    /// (`::ffff:10.0.0.0/104`) become the IPv4 network they stand for.
    ///
    /// # Errors
    /// [`NetworkError`], which says what to write instead.
    pub fn parse(text: &str) -> Result<Network, NetworkError> {
        let (address, prefix_len) = match text.split_once('/') {
            Some((address, prefix_len)) => (address, Some(prefix_len)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NetworkError::Address)?;
        let max = bits(address);
        let prefix_len = match prefix_len {
            None => max,
            Some(digits) => digits
                .parse()
                .ok()
                .filter(|&len| len <= max && digits.bytes().all(|byte| byte.is_ascii_digit()))
                .ok_or(NetworkError::PrefixLen { max })?,
        };
        let network = Network {
            address: masked(address, prefix_len),
            prefix_len,
        }
        .canonical();
        if masked(address, prefix_len) != address {
            return Err(NetworkError::HostBits { network });
        }
        Ok(network)
    }

    /// Whether an address lies in the network. An IPv4-mapped IPv6 address is the IPv4 address; it
    /// lies in no IPv6 network, `::/0` included.
    pub fn contains(&self, address: IpAddr) -> bool {
        let network = self.canonical();
        let address = address.to_canonical();
        address.is_ipv4() == network.address.is_ipv4()
            && masked(address, network.prefix_len) == masked(network.address, network.prefix_len)
    }

    fn canonical(self) -> Network {
        const MAPPED_BITS: u8 = 96;
        match self.address.to_canonical() {
            IpAddr::V4(address) if self.address.is_ipv6() && self.prefix_len >= MAPPED_BITS => {
                Network {
                    address: IpAddr::V4(address),
                    prefix_len: self.prefix_len - MAPPED_BITS,
                }
            }
            IpAddr::V4(_) | IpAddr::V6(_) => self,
        }
    }
}

fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The address with everything beyond the prefix cleared; a prefix that is too long clears nothing.
fn masked(address: IpAddr, prefix_len: u8) -> IpAddr {
    let host_bits = u32::from(bits(address).saturating_sub(prefix_len));
    match address {
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(
            v4.to_bits() & u32::MAX.checked_shl(host_bits).unwrap_or(0),
        )),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(
            v6.to_bits() & u128::MAX.checked_shl(host_bits).unwrap_or(0),
        )),
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Network, NetworkError> {
        Network::parse(text)
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Network {
        Network {
            address,
            prefix_len: bits(address),
        }
        .canonical()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn contains(network: &str, address: &str) -> bool {
        Network::parse(network)
            .unwrap()
            .contains(address.parse().unwrap())
    }

    #[test]
    fn networks_are_read_and_written_back() {
        for (text, expected) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::1", "::1/128"),
            ("::/0", "::/0"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ] {
            let network = Network::parse(text).unwrap();
            assert_eq!(network.to_string(), expected);
            assert_eq!(expected.parse(), Ok(network));
        }
    }

    #[test]
    fn a_bad_network_is_refused_with_what_to_do() {
        for (text, hint) in [
            ("", "write an address"),
            ("/8", "write an address"),
            ("10.0.0/8", "write an address"),
            ("example.com", "write an address"),
            ("10.0.0.0/", "from 0 to 32"),
            ("10.0.0.0/33", "from 0 to 32"),
            ("10.0.0.0/+8", "from 0 to 32"),
            ("10.0.0.0/-1", "from 0 to 32"),
            ("10.0.0.0/8/8", "from 0 to 32"),
            ("10.0.0.0/99999999999", "from 0 to 32"),
            ("::/129", "from 0 to 128"),
            ("10.1.2.3/8", "write 10.0.0.0/8"),
            ("2001:db8::1/32", "write 2001:db8::/32"),
        ] {
            let error = Network::parse(text).expect_err(text).to_string();
            assert!(error.contains(hint), "{text:?}: {error}");
        }
    }

    #[test]
    fn edges_of_networks() {
        assert!(contains("10.0.0.0/8", "10.255.255.255"));
        assert!(!contains("10.0.0.0/8", "11.0.0.0"));
        assert!(contains("0.0.0.0/0", "255.255.255.255"));
        assert!(!contains("0.0.0.0/0", "::1"));
        assert!(contains("192.0.2.1", "192.0.2.1"));
        assert!(!contains("192.0.2.1", "192.0.2.2"));
        assert!(contains("2001:db8::/32", "2001:db8:ffff::1"));
        assert!(!contains("2001:db8::/32", "2001:db9::"));
    }

    #[test]
    fn an_ipv4_mapped_address_is_the_ipv4_address() {
        assert!(contains("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(contains("::ffff:10.0.0.0/104", "10.1.2.3"));
        assert!(!contains("::/0", "::ffff:10.1.2.3"));
    }

    #[test]
    fn a_network_made_by_hand_never_panics() {
        for prefix_len in [0, 32, 33, 128, 255] {
            for address in ["10.0.0.1", "::1", "::ffff:10.0.0.1"] {
                let network = Network {
                    address: address.parse().unwrap(),
                    prefix_len,
                };
                assert!(network.contains(network.address) || prefix_len < 96);
            }
        }
    }

    proptest! {
        #[test]
        fn contains_is_equality_of_leading_bits(network: u32, address: u32, prefix_len in 0u8..=32) {
            let bits = |value: u32| format!("{value:032b}")[..usize::from(prefix_len)].to_owned();
            let parsed = Network { address: Ipv4Addr::from_bits(network).into(), prefix_len };
            let expected = bits(network) == bits(address);
            prop_assert_eq!(parsed.contains(Ipv4Addr::from_bits(address).into()), expected);
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = Network::parse(&text);
        }
    }
}
