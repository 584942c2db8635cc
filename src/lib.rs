//! Tombolo joins clusters: it publishes a cluster's nodes, identities, addresses and services into
//! a normalized etcd keyspace, imports the peers' keyspaces, and programs the kernel from them.
//!
//! ARCHITECTURE.md is the map. Data flows down this list; only status comes back up.
pub mod limits;
pub mod types;

pub mod config;
pub mod keyspace;
pub mod lifecycle;
mod saved;
pub mod socket;
pub mod telemetry;
pub mod tls;

pub mod etcd;
pub mod netdev;
pub mod store;

pub mod journal;

pub mod follower;
pub mod mesh;
pub mod peer;
pub mod publish;
pub mod source;

pub mod policy;

pub mod enforcer;

pub mod admin;
pub mod cli;
pub mod serve;

pub mod app;

#[cfg(feature = "testing")]
pub mod test_support;
