//! The servers behind `ha.redis_url`, as one place to take commands to: a single
//! server (named, or found by Sentinels) or the masters of a cluster.
//!
//! Keeps: read commands on many keys go to each server in one pipeline, and
//! their replies come back in the order asked; only replies that say "not here"
//! send a command elsewhere.
//!
//! Must not know: operations, records, what a reply means otherwise.

use nowconnect_core::registry::RegistryError;
use redis::RedisError;

use super::cluster::{Cluster, Redirect};
use super::connection::{Borrowed, Connection, RedisTimeouts};
use super::place::{RedisPlace, RedisUrlError, Servers};

/// Times a command follows redirections.
pub(super) const HOPS_MAX: usize = 3;

/// Where commands go.
#[derive(Debug)]
pub(super) enum Nodes {
    One(Connection),
    Cluster(Cluster),
}

/// Where one command goes next.
pub(super) struct Way {
    pub(super) node: Borrowed,
    /// It has to follow an ASKING.
    pub(super) ask: bool,
}

impl Nodes {
    pub(super) async fn open(place: RedisPlace, timeouts: RedisTimeouts) -> Result<Self, RedisUrlError> {
        let servers = Servers::new(place)?;
        Ok(if servers.nodes().is_empty() {
            Self::One(Connection::open(servers, timeouts, None).await)
        } else {
            Self::Cluster(Cluster::open(servers, timeouts).await)
        })
    }

    /// Every server that is needed is connected.
    pub(super) fn is_up(&self) -> bool {
        match self {
            Self::One(connection) => connection.is_up(),
            Self::Cluster(cluster) => cluster.is_up(),
        }
    }

    /// Connections established so far.
    pub(super) fn connects(&self) -> u64 {
        match self {
            Self::One(connection) => connection.connects(),
            Self::Cluster(cluster) => cluster.connects(),
        }
    }

    /// Where a command on `key` goes first.
    pub(super) fn way(&self, key: &str) -> Result<Way, RegistryError> {
        let node = match self {
            Self::One(connection) => connection.borrow()?,
            Self::Cluster(cluster) => cluster.holder(key)?,
        };
        Ok(Way { node, ask: false })
    }

    /// Whether `error`, from `node`, sends a command elsewhere.
    pub(super) fn redirect(&self, node: &Borrowed, error: &RedisError) -> Option<Redirect> {
        match self {
            Self::One(_) => None,
            Self::Cluster(_) => Cluster::redirect(node, error),
        }
    }

    /// Where a redirection leads.
    pub(super) async fn follow(&self, redirect: &Redirect) -> Result<Way, RegistryError> {
        match self {
            Self::One(_) => Err(RegistryError::Definite("redirected, but this is no cluster".to_owned())),
            Self::Cluster(cluster) => Ok(Way { node: cluster.follow(redirect).await?, ask: redirect.ask }),
        }
    }

    /// `node` failed with `error`: what that means for the operation.
    pub(super) fn failed(&self, node: &Borrowed, error: &RedisError) -> RegistryError {
        if let Self::Cluster(cluster) = self {
            cluster.doubt();
        }
        node.failed(error)
    }
}
