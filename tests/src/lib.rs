//! Harness for end-to-end tests: real processes, ports from the OS, TCP
//! proxies and load actors.
//!
//! Nothing here links the product except for the frame encoder that the
//! hostile peers use; the system under test is the `nowconnect` binary, driven
//! through its command line, its configuration files, its sockets and its
//! metrics, as an operator would. Setup failures panic and say what was
//! missing; what a test asserts about is returned as a value. Waiting for
//! another process is polling with a deadline ([`wait::eventually`]); nothing
//! asserts on elapsed time.

#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::wildcard_enum_match_arm,
    reason = "a harness that cannot set up its scene must fail the test on the spot; everything unexpected is one case"
)]

pub mod actors;
pub mod agents;
pub mod balancer;
pub mod certs;
pub mod cluster;
pub mod cpu;
pub mod failover;
pub mod hostile;
pub mod http;
pub mod ingress;
pub mod metrics;
pub mod ownership;
pub mod payload;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod redis;
pub mod redis_cluster;
pub mod slapd;
pub mod sources;
pub mod stamps;
pub mod target;
pub mod token;
pub mod wait;
