//! Native oracle.
pub mod case;
pub mod image;
pub mod layout;
pub mod native;
pub mod random;
pub mod values;
