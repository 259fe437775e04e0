//! The core's in-memory registry behind a handle that hubs of one process
//! share, on this process's wall clock (as Redis uses its own).
//!
//! Must not know: anything of Redis.

use std::sync::{Arc, Mutex, PoisonError};

use nowconnect_core::registry::{MemoryRegistry, RegistryOp, RegistryResult};

use crate::clock::unix_millis;

/// A shared in-memory registry; clones are handles to the same one.
#[derive(Clone, Debug, Default)]
pub struct SharedMemory(Arc<Mutex<MemoryRegistry>>);

impl SharedMemory {
    /// Takes one step now.
    ///
    /// # Errors
    /// See [`MemoryRegistry::execute`].
    pub fn execute(&self, op: &RegistryOp) -> RegistryResult {
        let mut registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        registry.execute(unix_millis(), op)
    }
}
