//! Placeholder head, replaced with the first module.
pub mod store;
