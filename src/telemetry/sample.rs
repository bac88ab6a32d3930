//! Shares of all there is.

/// Whether something with this number, of which all are as likely, is in the share: 0 is none, 1 is all.
/// Whoever decides by the same share and the same numbers takes the same ones.
pub(super) fn is_in(share: f64, number: u64) -> bool {
    // 53 bits, which a float holds exactly.
    let bits = number >> 11;
    (bits as f64) < share * (1_u64 << 53) as f64
}

/// A number for a text (FNV-1a, and what spreads it over all bits).
pub(super) fn number_of(text: &str) -> u64 {
    let mut number = 0xcbf2_9ce4_8422_2325_u64;
    for byte in text.bytes() {
        number = (number ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    number ^= number >> 32;
    number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    number ^ (number >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_kept_whatever_the_texts_are_like() {
        for share in [0.0, 0.01, 0.25, 0.5, 1.0] {
            for texts in [
                |n: u32| n.to_string(),
                |n: u32| format!("request-{n}"),
                |_: u32| uuid::Uuid::now_v7().simple().to_string(),
            ] {
                let taken = (0..20_000)
                    .filter(|n| is_in(share, number_of(&texts(*n))))
                    .count() as f64;
                let off = (taken / 20_000.0 - share).abs();
                assert!(off < 0.02, "{share}: {taken}");
                assert!(
                    off == 0.0 || (share > 0.0 && share < 1.0),
                    "{share}: {taken}"
                );
            }
        }
    }
}
