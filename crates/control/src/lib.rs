//! The process of a managed VM and its control API.
#![forbid(unsafe_code)]
