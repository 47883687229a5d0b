//! One component's saved state.

use serde::{Serialize, de::DeserializeOwned};

use crate::StateError;

/// A payload type: what one kind of component saves.
///
/// `VERSION` goes up when the meaning of a field changes or a field is added that old files lack;
/// the component then keeps reading the old form in [`Saved::upgrade`].
pub trait Saved: Serialize + DeserializeOwned {
    /// Kind of the section, such as `"pit"`; unique in the project.
    const KIND: &'static str;
    /// Version that is written, from 1.
    const VERSION: u32;

    /// Reads a payload of an older `version` (`1..VERSION`).
    ///
    /// # Errors
    /// [`StateError::Decode`] when there never was such a version, which is the default.
    fn upgrade(version: u32, section: &Section) -> Result<Self, StateError> {
        Err(section.damaged(format!("unknown old version {version}")))
    }
}

/// One component's saved state: kind, instance, version and encoded payload.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use state::{Saved, Section};
///
/// #[derive(Serialize, Deserialize, PartialEq, Debug)]
/// struct Counter { value: u64 }
/// impl Saved for Counter {
///     const KIND: &'static str = "counter";
///     const VERSION: u32 = 1;
/// }
///
/// let section = Section::encode("0", &Counter { value: 7 })?;
/// assert_eq!(section.decode::<Counter>()?, Counter { value: 7 });
/// # Ok::<(), state::StateError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Kind of component, [`Saved::KIND`].
    pub kind: String,
    /// Which one of its kind, such as `"0"` or `"com1"`.
    pub instance: String,
    /// Version of the payload's format.
    pub version: u32,
    /// Named-map MessagePack.
    pub payload: Vec<u8>,
}

impl Section {
    /// Encodes `saved` as the section of `instance`.
    ///
    /// # Errors
    /// [`StateError::Encode`] when the type cannot be represented.
    pub fn encode<T: Saved>(instance: &str, saved: &T) -> Result<Self, StateError> {
        let payload = rmp_serde::to_vec_named(saved).map_err(|e| StateError::Encode {
            section: format!("{}/{instance}", T::KIND),
            cause: e.to_string(),
        })?;
        Ok(Self {
            kind: T::KIND.to_owned(),
            instance: instance.to_owned(),
            version: T::VERSION,
            payload,
        })
    }

    /// Decodes the payload, upgrading older versions.
    ///
    /// # Errors
    /// [`StateError::WrongKind`], [`StateError::NewerVersion`] or [`StateError::Decode`].
    pub fn decode<T: Saved>(&self) -> Result<T, StateError> {
        if self.kind != T::KIND {
            return Err(StateError::WrongKind { section: self.name(), expected: T::KIND });
        }
        if self.version > T::VERSION {
            return Err(StateError::NewerVersion {
                section: self.name(),
                found: self.version,
                known: T::VERSION,
            });
        }
        if self.version < T::VERSION {
            return T::upgrade(self.version, self);
        }
        rmp_serde::from_slice(&self.payload).map_err(|e| self.damaged(e.to_string()))
    }

    /// `kind/instance`, as messages name it.
    pub fn name(&self) -> String {
        format!("{}/{}", self.kind, self.instance)
    }

    /// The error for a payload that does not decode.
    pub fn damaged(&self, cause: impl Into<String>) -> StateError {
        StateError::Decode { section: self.name(), cause: cause.into() }
    }

    /// The error for a payload that decodes to something that cannot be.
    pub fn invalid(&self, cause: impl Into<String>) -> StateError {
        StateError::Invalid { section: self.name(), cause: cause.into() }
    }
}

/// A component that saves and restores itself.
///
/// `save` then `restore` into a fresh component of the same construction gives a component that
/// behaves the same and saves the same bytes; [`crate::conformance!`] tests it. A failed `restore`
/// leaves the component unusable until it is reset: it must not panic later.
pub trait Persist {
    /// The kind of section that this component writes, [`Saved::KIND`].
    fn kind(&self) -> &'static str;

    /// Saves the component's whole state as section `instance`.
    ///
    /// # Errors
    /// [`StateError::Encode`].
    fn save(&self, instance: &str) -> Result<Section, StateError>;

    /// Replaces the component's state. Values that no such component can hold are refused.
    ///
    /// # Errors
    /// Any [`StateError`] about the section.
    fn restore(&self, section: &Section) -> Result<(), StateError>;
}
