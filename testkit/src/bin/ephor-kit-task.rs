//! A task of the load under `chaos`: see `ephor_testkit::chaos::task`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let socket = std::env::args_os().nth(1).unwrap_or_default();
    match ephor_testkit::chaos::task::serve(socket.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
