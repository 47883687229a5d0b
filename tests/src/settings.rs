//! Seeds and extents of test runs, from the environment.

/// A number from the environment, decimal or with `0x`, if it is there.
///
/// # Panics
/// When what is there is no number.
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(parsed.unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}
