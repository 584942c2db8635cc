//! Tests against the running kernel: need root, eBPF and `ip`. They fail without; they never skip.
//! Each test runs in network and mount namespaces of its own, so nothing is left behind.
mod enforcer;
mod lab;
