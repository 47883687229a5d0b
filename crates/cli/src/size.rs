//! Sizes on the command line.

/// Parses SIZE: a number with K, M, G or T (binary), or a bare number of MiB. In bytes.
pub fn parse(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        Some((at, 'T' | 't')) => (&text[..at], 40),
        _ => (text, 20),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err("a size is a number with K, M, G or T, or a number of MiB: 512M, 2G".into());
    }
    let too_large = || "no machine has that much memory; use 16T or less".to_owned();
    let number: u64 = digits.parse().map_err(|_| too_large())?;
    number.checked_mul(1 << shift).ok_or_else(too_large)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn units_are_binary_and_mib_is_the_default() {
        for (text, bytes) in [
            ("512", 512 << 20),
            ("512M", 512 << 20),
            ("64m", 64 << 20),
            ("2G", 2 << 30),
            ("1T", 1 << 40),
            ("131072K", 128 << 20),
            ("0", 0),
            ("007", 7 << 20),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in
            ["", "M", "-1", "+1", "1.5G", "0x10", "1 G", " 1", "1GB", "1Gi", "one", "1é", "é", "٣"]
        {
            assert!(parse(text).unwrap_err().contains("512M"), "{text}");
        }
    }

    #[test]
    fn overflow_is_refused() {
        for text in ["16777216T", "18446744073709551616", "99999999999999999999K"] {
            assert!(parse(text).unwrap_err().contains("16T"), "{text}");
        }
        assert_eq!(parse("16777215T"), Ok(16_777_215 << 40));
    }
}
