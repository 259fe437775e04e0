//! nowconnect on tokio: the production driver of `nowconnect-core`, and the
//! `nowconnect` binary.
//!
//! [`node`] owns one machine and is the only way into it; [`conn`] and [`socket`]
//! are the pumps of its connections and sockets; [`hub`], [`agent`] and [`demo`]
//! are the processes around it. Sockets, TLS, HTTP, tokens, Redis, clocks and
//! configuration files end here: the core hears of them as inputs.

pub mod admin;
pub mod agent;
pub mod answers;
mod ask;
pub mod auth;
pub mod cert;
mod certs;
pub mod cli;
pub mod clock;
pub mod config;
pub mod conn;
pub mod demo;
pub mod dial;
pub mod dialer;
mod drain;
mod files;
pub mod http;
pub mod hub;
pub mod identity;
#[cfg(test)]
mod journal;
pub mod jwks;
pub mod limiter;
pub mod listener;
pub mod metrics;
pub mod net;
pub mod node;
pub mod observe;
pub mod registry;
mod reload;
mod secret;
pub mod signals;
mod snapshot;
pub mod socket;
mod status;
pub mod target;
pub mod tls;
pub mod ws;
