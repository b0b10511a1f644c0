//! Signals reach the command once: from the terminal by the kernel, from others through us.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::support::{Dev, assert_code, end_of, send, wait_for};

#[test]
fn what_is_sent_to_run_alone_is_passed_on() {
    let dev = Dev::start();
    for (signal, name, code) in [
        (Signal::SIGTERM, "TERM", 5),
        (Signal::SIGUSR1, "USR1", 6),
        (Signal::SIGINT, "INT", 7),
        (Signal::SIGHUP, "HUP", 8),
    ] {
        let script = format!("trap 'exit {code}' {name}; echo up; while :; do sleep 0.02; done");
        let mut run = dev
            .ephor()
            .args(["run", "--", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(run.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        send(run.id(), signal);
        assert_eq!(
            end_of(&mut run, "the end of run").code(),
            Some(code),
            "{name}"
        );
    }
}

#[test]
fn the_command_has_the_signal_mask_from_before() {
    let dev = Dev::start();
    let output = dev.run(&["--", "grep", "SigBlk", "/proc/self/status"]);
    assert_code(&output, 0);
    assert_eq!(output.stdout, b"SigBlk:\t0000000000000000\n");
}

#[test]
fn a_terminal_interrupt_reaches_the_command_once() {
    let dev = Dev::start();
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new())
        .unwrap()
        .into_string()
        .unwrap();
    let slave = || {
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&name)
            .unwrap()
    };
    // Waits for a second interrupt as long as a doubled one could take, in the command itself.
    let script = "n=0; trap 'n=$((n+1))' INT; echo up; while [ $n = 0 ]; do sleep 0.02; done
                  i=0; while [ $i -lt 15 ]; do sleep 0.02; i=$((i+1)); done; echo count=$n";
    let mut command = Command::new("setsid");
    command
        .args([
            "--ctty",
            "--wait",
            env!("CARGO_BIN_EXE_ephor"),
            "run",
            "--",
            "sh",
            "-c",
            script,
        ])
        .current_dir("/")
        .envs(&dev.variables)
        .stdin(slave())
        .stdout(slave())
        .stderr(slave());
    let mut run = command.spawn().unwrap();
    drop(command);
    let mut terminal = std::fs::File::from(terminal);
    let mut seen = read_until(&mut terminal, "up\r\n");
    terminal.write_all(b"\x03").unwrap();
    seen.push_str(&read_until(&mut terminal, "count="));
    seen.push_str(&read_until(&mut terminal, "\n"));
    assert!(seen.contains("count=1\r\n"), "{seen}");
    seen.push_str(&read_until(&mut terminal, "nothing is left"));
    assert_eq!(end_of(&mut run, "the end of run").code(), Some(0), "{seen}");
}

fn read_until(from: &mut std::fs::File, mark: &str) -> String {
    let mut seen = Vec::new();
    let mut byte = [0];
    wait_for(mark, || {
        assert!(from.read(&mut byte).unwrap() == 1);
        seen.push(byte[0]);
        seen.ends_with(mark.as_bytes()).then_some(())
    });
    String::from_utf8_lossy(&seen).into_owned()
}
