#![forbid(unsafe_code)]
//! Bytes to requests and responses to bytes.

/// One request type for three dialects.
pub mod request;

/// Keys in base64.
pub mod base64;
