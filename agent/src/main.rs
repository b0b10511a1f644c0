//! `ephor-agent`: everything is in the library, so that `ephor` can be it too.

fn main() -> std::process::ExitCode {
    ephor_agent::cli::main(std::env::args_os().skip(1))
}
