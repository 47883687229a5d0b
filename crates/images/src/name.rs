//! The names that images may bear.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;

/// The longest name in bytes.
const MAX_LEN: usize = 63;

/// A valid image name: 1 to 63 characters from `a-z`, `0-9`, `.`, `_` and `-`,
/// the first a letter or digit.
///
/// Such a name is one path component that is never hidden, never `..`, and
/// needs no quoting in a shell. The store keeps what is not an image under
/// names that begin with a dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

impl ImageName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let starts_well = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        let all_allowed = text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
        if starts_well && all_allowed && text.len() <= MAX_LEN {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::InvalidName { name: text.to_owned() })
        }
    }
}

impl TryFrom<String> for ImageName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_names_of_images() {
        let longest = "a".repeat(MAX_LEN);
        for name in ["tiny", "debian-12", "0", "a.b_c-d", longest.as_str()] {
            assert_eq!(name.parse::<ImageName>().expect("valid").as_str(), name);
        }
    }

    #[test]
    fn refuses_what_could_leave_the_store_or_hide_in_it() {
        let too_long = "a".repeat(MAX_LEN + 1);
        for name in ["", ".", "..", ".x", "-x", "_x", "A", "a/b", "a b", "é", "a\0", &too_long] {
            let error = name.parse::<ImageName>().expect_err(name);
            assert!(error.to_string().contains("image name"), "{error}");
        }
    }

    #[test]
    fn a_manifest_cannot_bear_a_bad_name() {
        assert!(serde_json::from_str::<ImageName>("\"../x\"").is_err());
        assert!(serde_json::from_str::<ImageName>("\"x\"").is_ok());
    }
}
