//! Names of VMs and snapshots: they are names of files, and typed by people.

use crate::{Error, Result};

/// What a name is, for messages.
pub const NAME_RULE: &str =
    "a name has 1 to 63 letters, digits, '.', '_' or '-', and begins with a letter or digit";

/// Whether `name` can be the name of a VM or snapshot. Such a name never leaves its folder: it has
/// no slash and does not begin with a dot.
///
/// # Errors
/// [`Error::BadName`].
pub fn check_name(name: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let starts_well = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if starts_well && name.len() <= 63 && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(Error::BadName { name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_folder() {
        assert!(check_name("web-1.A_").is_ok());
        for name in ["", "-x", ".x", "..", "a/b", "a b", "ä", "a\n", &"a".repeat(64)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
