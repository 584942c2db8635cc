//! Tests against the running kernel: need root, eBPF and `ip`. They fail without; they never skip.
//! Each test runs on a host of the lab (namespaces held by keepers), so nothing is left behind.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

mod cleanup;
mod cluster;
mod egress;
mod enforcer;
mod lab;
mod lifecycle;
mod mesh;
mod packets;
mod policy;
mod story;
