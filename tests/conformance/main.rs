//! The conformance cases of the keyspace protocol, each a test that carries its number: C1 to C14
//! (cluster configuration), S1 to S19 (synchronisation), R1 to R24 (records), P1 to P15 (producer
//! and reflector). `table.rs` checks that none is missing.
//!
//! A case drives the shipped stack over gRPC and mutual TLS against a real etcd that runs as
//! Cilium's does, with the client's common name as its user and Cilium's roles: peer files in a
//! directory, sessions, the members' loop, the mesh, its cache. It looks at what left the mesh (each
//! delta and each event of the cache is recorded, so that a flap shows) and at the status as
//! `tombolo status -o json` prints it.
//!
//! What an etcd cannot be brought to do:
//! - S18, a reply of another cluster or without header: a relay in front of the etcd changes it.
//! - P1 to P8 and P12 to P15 are about our own face, which is what answers there.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod addresses;
mod canaries;
mod config;
mod etcd;
mod exporter;
mod exports;
mod files;
mod hostile;
mod identities;
mod lists;
mod liveness;
mod logs;
mod nodes;
mod peer;
mod pki;
mod producer;
mod proxy;
mod recorder;
mod records;
mod reflector;
mod relay;
mod roles;
mod services;
mod table;
mod wait;
mod world;
