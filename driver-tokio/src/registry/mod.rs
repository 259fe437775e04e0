//! The registries a hub can run on: the in-memory one of the core (one
//! process: a single hub, `demo`, tests) and Redis. Both take the same steps
//! (`tests/registry_contract.rs` runs them against each other).
//!
//! Keeps: an operation is executed at most once per call, with no retry hidden
//! inside; its outcome is `Ok`, `Definite` or `Unknown` and nothing is guessed
//! (R2).
//!
//! Must not know: what the hub does with a reply.

mod advice;
mod cluster;
mod connection;
mod memory;
mod nodes;
mod place;
mod record;
mod redis;
mod slots;

use nowconnect_core::registry::{RegistryOp, RegistryResult};

pub use self::redis::{RedisHealth, RedisRegistry};
pub use connection::RedisTimeouts;
pub use memory::SharedMemory;
pub(crate) use place::check_place;
pub use place::{RedisPlace, RedisUrlError, check_url};

/// A registry the driver executes the core's operations on.
#[derive(Debug)]
pub enum Registry {
    /// In this process; clones of the handle share it.
    Memory(SharedMemory),
    /// Redis, one server or a cluster (boxed: it is an order of magnitude larger).
    Redis(Box<RedisRegistry>),
}

impl Registry {
    /// Takes one step and reports what became of it.
    ///
    /// # Errors
    /// `Definite` when it certainly did not happen, `Unknown` when it may have.
    pub async fn execute(&self, op: &RegistryOp) -> RegistryResult {
        match self {
            Self::Memory(registry) => registry.execute(op),
            Self::Redis(registry) => registry.execute(op).await,
        }
    }
}
