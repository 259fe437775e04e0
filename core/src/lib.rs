//! The pure state machines of nowconnect.
//!
//! Nothing in this crate reads a clock, opens a socket, knows a runtime or
//! draws global randomness: time and seeds are arguments, outputs go into a
//! vector the caller owns. The tokio driver and the simulator run the very
//! same objects.

pub mod agent;
pub mod config;
pub mod credit;
pub mod dedup;
mod due;
pub mod error;
pub mod hash;
pub mod hub;
pub mod id;
pub mod link;
pub mod mux;
pub mod observed;
pub mod principal;
pub mod registry;
pub mod rng;
pub mod route;
pub mod session;
pub mod shard;
pub mod slots;
pub mod stream;
pub mod time;
pub mod wire;
