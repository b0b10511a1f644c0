//! `ephor-broker`: everything it does is in the library.

fn main() -> std::process::ExitCode {
    ephor_broker::cli::main(std::env::args_os().skip(1))
}
