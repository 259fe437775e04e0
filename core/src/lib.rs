//! The pure state machines of nowconnect.
//!
//! Nothing in this crate reads a clock, opens a socket, knows a runtime or
//! draws global randomness: time and seeds are arguments, outputs go into a
//! value the caller owns. The tokio driver runs these objects, and so does
//! every test and simulation.
//!
//! # The map
//!
//! - [`hub::Hub`] and [`agent::Agent`] are the whole machines. Each is made of
//!   a control (who may attach, what is dialled), [`mux::Mux`] (sessions, the
//!   connections that carry them, the memory budget) and [`shard::Shard`]
//!   (streams).
//! - [`session`] numbers, acknowledges, replays and schedules messages; [`wire`]
//!   turns frames into bytes and back, in two encodings.
//! - [`stream`], [`credit`] and [`dedup`] are the rules of one stream;
//!   [`link`] is the life of a dial; [`registry`] is ownership as operations
//!   and replies; [`identity`] is what hubs sign to each other.
//!
//! # How to drive it
//!
//! Give the machine one [`mux::Input`] at a time and carry out what it left in
//! [`mux::NodeOut`]; nothing else has to be polled, except that connections
//! named in `out.wake` are asked for messages with `poll_transmit` when their
//! socket can take some, and that `handle_timeout` is due at `poll_timeout`.
//!
//! ```
//! use std::sync::Arc;
//! # use std::time::Duration;
//! # use nowconnect_core::config::{Backoff, DrainTimes, HubConfig, Limits, ListenerConfig, Liveness, Mode, OnExpiry, OpenRule, OpenTimers, RegistryTimers, Selection};
//! use nowconnect_core::error::RstCode;
//! use nowconnect_core::hub::Hub;
//! use nowconnect_core::id::{ListenerIx, Name, SockKey};
//! use nowconnect_core::mux::{Input, NodeOut};
//! use nowconnect_core::rng::Seed;
//! use nowconnect_core::shard::SockOp;
//! use nowconnect_core::slots::Slots;
//! use nowconnect_core::time::Instant;
//!
//! # let name = |s: &str| Name::new(s).expect("a valid name");
//! # let config = HubConfig {
//! #     replica_id: name("hub-a"),
//! #     namespace: name("default"),
//! #     region: None,
//! #     mode: Mode::Off,
//! #     listeners: vec![ListenerConfig {
//! #         name: name("ldap"), connector: name("ldap"), open: OpenRule::Eager, max_connections: 10,
//! #     }],
//! #     peers: Vec::new(),
//! #     limits: Limits::default(),
//! #     liveness: Liveness::default(),
//! #     resume_window: Duration::from_secs(30),
//! #     backoff: Backoff::default(),
//! #     open: OpenTimers::default(),
//! #     selection: Selection::default(),
//! #     registry: RegistryTimers::default(),
//! #     handshake_timeout: Duration::from_secs(5),
//! #     insecure_allow_unscoped: false,
//! #     on_expiry: OnExpiry::Keep,
//! #     insecure_mesh: false,
//! # };
//! // A hub with one listener and no agent. The clock and the seed are ours.
//! let now = Instant::ZERO;
//! let mut out = NodeOut::default();
//! let mut hub = Hub::new(Arc::new(config), Seed([7; 32]), now, &mut out);
//!
//! // A client was accepted on the first listener: its socket gets a key.
//! let mut sockets: Slots<SockKey, &str> = Slots::new();
//! let client = sockets.insert("127.0.0.1:50000");
//! hub.open(now, ListenerIx(0), client, &mut out)?;
//!
//! // No agent exposes the connector, so the hub wants this socket reset.
//! assert_eq!(out.socks, [(client, SockOp::Abort(RstCode::NoRoute))]);
//! out.socks.clear();
//!
//! // Deadlines are asked for, never guessed, and honoured by another call.
//! if let Some(due) = hub.poll_timeout() {
//!     hub.handle_timeout(due.at, &mut out);
//! }
//! hub.handle(now, Input::Drain(DrainTimes::at_once(Duration::ZERO)), &mut out);
//! assert!(out.drained, "no stream is left to wait for");
//! hub.check_invariants();
//! # Ok::<(), RstCode>(())
//! ```
//!
//! The tests in `core/tests` drive whole nodes against each other in this way;
//! the tokio driver's `node.rs` is the same loop with real sockets.

pub mod agent;
pub mod config;
pub mod credit;
pub mod dedup;
mod due;
pub mod error;
pub mod hash;
pub mod hub;
pub mod id;
pub mod identity;
pub mod link;
pub mod mux;
pub mod observed;
pub mod planted;
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
