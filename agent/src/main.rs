//! `ephor-agent`: everything is in the library, so that `ephor` can be it too.

/// Both daemons allocate much and briefly on many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    ephor_agent::cli::main(std::env::args_os().skip(1))
}
