//! Fuzz targets, callable on stable Rust.
