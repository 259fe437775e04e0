//! nowconnect on tokio: the production driver of `nowconnect-core`.

pub mod agent;
pub mod auth;
pub mod cert;
pub mod cli;
pub mod clock;
pub mod config;
pub mod conn;
pub mod demo;
pub mod dial;
pub mod http;
pub mod hub;
pub mod metrics;
pub mod net;
pub mod node;
pub mod registry;
pub mod socket;
pub mod tls;
pub mod ws;
