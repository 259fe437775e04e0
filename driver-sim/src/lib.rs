//! Deterministic simulation driver: runs the same `Hub`, `Agent` and `Session`
//! objects as production over a virtual network, clock and registry, breaks
//! what can break, and checks what must hold.
//!
//! A seed becomes a [`tape`], the tape a [`plan`], the plan a [`run`]. Nothing
//! here reads a clock, opens a socket or draws outside the tape, so a seed is a
//! run, for ever (D1).

mod actor;
pub mod campaign;
mod check;
pub mod diff;
pub mod edit;
pub mod emit;
mod event;
pub mod explain;
pub mod faults;
mod flip;
mod hostile;
mod inject;
pub mod marks;
mod net;
mod node;
pub mod panics;
mod payload;
pub mod plan;
pub mod profile;
mod proof;
pub mod registry;
mod reload;
pub mod repeat;
pub mod rogue;
pub mod run;
mod scenario;
pub mod share;
pub mod shrink;
mod sock;
mod story;
pub mod table;
pub mod tape;
pub mod trace;
mod trust;
mod world;

pub use world::Violation;
