//! In-memory registry.

/// The registry of one process.
#[derive(Debug, Default)]
pub struct MemoryRegistry {}
