//! Deterministic simulation driver: runs the same `Hub`, `Agent` and `Session`
//! objects as production over a virtual network, clock and registry.
//!
//! The simulator itself comes with its own issue; this crate exists so that the
//! workspace, its lints and the purity tests cover it from the first day.

pub mod registry;
