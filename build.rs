//! Compiles `bpf/` through its Makefile when the `ebpf` feature is on.
use std::{env, path::PathBuf, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=bpf");
    if env::var_os("CARGO_FEATURE_EBPF").is_none() {
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let status = Command::new("make")
        .args(["--silent", "-C", "bpf"])
        .arg(format!("OUT={}", out.display()))
        .status()
        .expect("make is needed to compile bpf/: apt-get install make clang-19 libbpf-dev");
    assert!(
        status.success(),
        "compiling bpf/ failed; see the compiler's message above"
    );
}
