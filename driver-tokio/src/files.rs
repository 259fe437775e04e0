//! The files that a configuration names: what is wrong with them, by key, before
//! anything listens. Errors at start, warnings in `check-config`, which may run
//! on another machine. Must not keep what it reads.

use nowconnect_core::config::Mode;

use crate::admin;
use crate::auth::TunnelAuth;
use crate::certs::Set;
use crate::config::{AdminSetup, AgentSetup, HubSetup};
use crate::identity::MeshIdentity;
use crate::registry::{self, RedisPlace};
use crate::{hub, tls};

/// What is wrong with a hub's.
pub(crate) fn of_hub(setup: &HubSetup) -> Vec<String> {
    let mut problems = Vec::new();
    problems.extend(TunnelAuth::from_setup(&setup.auth).err().map(|e| e.to_string()));
    if let Some(files) = &setup.mesh_tls {
        problems.extend(tls::mesh_server(files).err().map(|e| e.to_string()));
    }
    for problem in Set::problems_of_hub(setup).iter().map(ToString::to_string) {
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }
    problems.extend(of_redis(setup));
    problems.extend(of_admin(&setup.admin));
    problems
}

fn of_redis(setup: &HubSetup) -> Option<String> {
    // In `off` nobody is asked.
    let place: RedisPlace = hub::redis_place(setup).filter(|_| setup.core.mode != Mode::Off)?;
    registry::check_place(place).err().map(|e| e.to_string())
}

fn of_admin(setup: &AdminSetup) -> Option<String> {
    admin::check_token(setup).err()
}

/// What is wrong with an agent's.
pub(crate) fn of_agent(setup: &AgentSetup) -> Vec<String> {
    let mut problems = Vec::new();
    if let Err(e) = std::fs::metadata(&setup.token_file) {
        problems.push(format!("token_file: {}: {e}", setup.token_file.display()));
    }
    if setup.core.hubs.iter().any(|url| url.starts_with("wss:")) {
        problems.extend(tls::tunnel_client(setup.tls_ca_bundle.as_deref()).err().map(|e| e.to_string()));
    }
    problems.extend(of_admin(&setup.admin));
    problems
}

/// What peers may find wrong with a hub's certificate.
pub(crate) fn mesh_doubts(setup: &HubSetup, now_unix: u64) -> Vec<String> {
    let Some(files) = &setup.mesh_tls else { return Vec::new() };
    // A file that cannot be read is told already.
    let Ok(identity) = MeshIdentity::load(files) else { return Vec::new() };
    identity.doubts(&setup.core.replica_id, now_unix, &files.cert_file)
}
