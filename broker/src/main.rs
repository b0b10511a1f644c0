//! `ephor-broker`: everything it does is in the library.

/// Both daemons allocate much and briefly on many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    ephor_broker::cli::main(std::env::args_os().skip(1))
}
