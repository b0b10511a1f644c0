//! `ephor completion` and `ephor man`: made from the command lines that the three binaries parse,
//! so they cannot say anything else.

use std::path::Path;
use std::process::ExitCode;

use clap::{Command, CommandFactory};

use crate::args::{self, Cli, Program};
use crate::exit::{Failure, Outcome};
use crate::show;

/// The command line of a binary.
fn command(program: Program) -> Command {
    match program {
        Program::Ephor => Cli::command(),
        Program::EphorBroker => ephor_broker::cli::command(),
        Program::EphorAgent => ephor_agent::cli::command(),
    }
}

/// Prints a shell's completions.
pub fn completion(args: &args::Completion) -> Outcome {
    let mut command = command(args.program);
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    let script = String::from_utf8_lossy(&script);
    show::to_stdout(&script).map(|()| ExitCode::SUCCESS)
}

/// Prints the page of `ephor`, or writes the pages of all three binaries and of each verb.
pub fn man(args: &args::Man) -> Outcome {
    match &args.dir {
        Some(dir) => write_pages(dir)?,
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command(Program::Ephor))
                .render(&mut page)
                .map_err(|why| Failure::local("the page cannot be made", why))?;
            show::to_stdout(&String::from_utf8_lossy(&page))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn write_pages(dir: &Path) -> Result<(), Failure> {
    let failed = |why| Failure::local(dir.display(), why);
    std::fs::create_dir_all(dir).map_err(failed)?;
    for program in [Program::Ephor, Program::EphorBroker, Program::EphorAgent] {
        clap_mangen::generate_to(command(program), dir).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pages_tell_every_verb_and_no_internal_one() {
        let dir = tempfile::tempdir().unwrap();
        write_pages(dir.path()).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        for name in [
            "ephor.1",
            "ephor-broker.1",
            "ephor-agent.1",
            "ephor-run.1",
            "ephor-host-invite.1",
        ] {
            assert!(read(name).contains(".TH"), "{name}");
        }
        assert!(read("ephor-broker-run.1").contains("ready\\-file"));
        let names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(names.iter().all(|name| !name.contains("__")), "{names:?}");
        assert!(!read("ephor.1").contains("__clean"));
    }
}
