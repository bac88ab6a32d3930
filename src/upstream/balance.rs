//! In which order servers are considered. Pure: what is known of them stands elsewhere.

/// Turns by weight, spread out as evenly as they go: with weights 3 and 1, `a a b a` and not `a a a b`.
/// Each entry is an index into the weights.
pub fn schedule(weights: &[u32]) -> Vec<u8> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let weights: Vec<i64> = weights.iter().map(|w| i64::from(w / divisor)).collect();
    let total: i64 = weights.iter().sum();
    let mut current = vec![0_i64; weights.len()];
    let mut turns = Vec::new();
    for _ in 0..total {
        for (now, weight) in current.iter_mut().zip(&weights) {
            *now += weight;
        }
        // The first of the largest, so that equal weights keep the order of the file.
        let best = (0..current.len()).rev().max_by_key(|&i| current[i]);
        let Some(best) = best else {
            break;
        };
        current[best] -= total;
        turns.push(u8::try_from(best).unwrap_or(u8::MAX));
    }
    turns
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A number for a value, the same in every process and version.
pub fn hash(bytes: &[u8]) -> u64 {
    // FNV-1a, then mixed: it is short inputs that are told apart here, not attackers kept out. Who
    // wants one server has only to send the same value again.
    let folded = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(folded)
}

/// How much a server wants a value: the server with the most has it. When one leaves, only its own
/// values move (weighted rendezvous hashing).
pub fn score(server: u64, value: u64, weight: u32) -> f64 {
    // 53 bits, strictly between 0 and 1, so that the logarithm is finite and negative.
    let bits = mix(server ^ value.rotate_left(32)) >> 11;
    let unit = (bits as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(weight) / unit.ln()
}

/// The finaliser of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_follow_the_weights_and_are_spread() {
        assert_eq!(schedule(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(schedule(&[5, 5]), [0, 1]);
        assert_eq!(schedule(&[3, 1]), [0, 0, 1, 0]);
        assert_eq!(schedule(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(schedule(&[]), [0_u8; 0]);
        let long = schedule(&[100; 64].map(|w| w - 1));
        assert_eq!(long.len(), 64);
    }

    fn winner(servers: &[u64], weights: &[u32], value: u64) -> usize {
        (0..servers.len())
            .max_by(|&a, &b| {
                score(servers[a], value, weights[a])
                    .total_cmp(&score(servers[b], value, weights[b]))
            })
            .unwrap()
    }

    #[test]
    fn values_are_spread_by_weight() {
        let servers: Vec<u64> = (0..4).map(|i| hash(format!("s{i}").as_bytes())).collect();
        let weights = [1, 1, 2, 4];
        let mut counts = [0_u32; 4];
        for i in 0..8000 {
            counts[winner(&servers, &weights, hash(format!("user-{i}").as_bytes()))] += 1;
        }
        for (count, weight) in counts.iter().zip(weights) {
            let expected = 1000 * weight;
            assert!(count.abs_diff(expected) < expected / 5, "{counts:?}");
        }
    }

    #[test]
    fn only_the_values_of_a_server_that_leaves_move() {
        let servers: Vec<u64> = (0..5).map(|i| hash(format!("s{i}").as_bytes())).collect();
        let weights = [1; 5];
        for i in 0..2000 {
            let value = hash(format!("user-{i}").as_bytes());
            let before = winner(&servers, &weights, value);
            let after = winner(&servers[..4], &weights[..4], value);
            assert!(before == 4 || before == after);
        }
    }

    #[test]
    fn the_hash_never_changes() {
        // Gateways of different versions must agree on who serves whom.
        assert_eq!(hash(b""), 17_665_956_581_633_026_203);
        assert!(score(1, 2, 1).is_finite() && score(u64::MAX, 0, 100).is_finite());
    }
}
