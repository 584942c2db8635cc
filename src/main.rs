//! The `tombolo` binary: arguments in, exit code out.
fn main() -> std::process::ExitCode {
    tombolo::cli::main()
}
