//! cert.
