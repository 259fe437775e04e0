//! Fuzz targets, callable on stable Rust: each is a function of bytes that
//! panics when a property is broken. `tests/replay.rs` replays the corpora and
//! seeded mutations of them under plain `cargo test`; `README.md` tells how to
//! let a fuzzer grow them.

mod agent_machine;
mod config_yaml;
mod dedup_lru;
mod hub_machine;
mod jwt;
mod mesh3;
mod pair;
mod peer;
mod stream_window;
mod tape;
mod wire;

pub use agent_machine::agent_machine;
pub use config_yaml::config_yaml;
pub use dedup_lru::dedup_lru;
pub use hub_machine::hub_machine;
pub use jwt::jwt;
pub use mesh3::mesh3;
pub use pair::pair;
pub use stream_window::stream_window;
pub use wire::{differential_v1_v2, frame_decode, frame_split, hello_json};

/// A fuzz target.
pub type Target = fn(&[u8]);

/// All targets by name; the name is also the folder of the corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("frame_decode", frame_decode),
    ("frame_split", frame_split),
    ("hello_json", hello_json),
    ("differential_v1_v2", differential_v1_v2),
    ("hub_machine", hub_machine),
    ("agent_machine", agent_machine),
    ("pair", pair),
    ("stream_window", stream_window),
    ("dedup_lru", dedup_lru),
    ("config_yaml", config_yaml),
    ("jwt", jwt),
    ("mesh3", mesh3),
];
