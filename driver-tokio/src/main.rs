//! The `nowconnect` binary; everything it does is in `nowconnect::cli`.

fn main() -> std::process::ExitCode {
    nowconnect::cli::main()
}
