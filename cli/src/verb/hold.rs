//! `ephor hold NAME`: a database login for a program that we do not start, such as a database GUI. It
//! lives until Ctrl-C.

use std::ffi::OsString;
use std::process::ExitCode;

use serde::Deserialize;
use zeroize::{Zeroize, Zeroizing};

use super::db::reference;
use super::run;
use crate::args::{self, HoldOutput};
use crate::exit::{Failure, Outcome};
use crate::process::{SELF, end_with};
use crate::show::to_stdout;
use crate::signals::Signals;
use ephor_proto::postgres::short_login;

/// Names the descriptor with the login; its end gives the form, and the rest says how to print it.
const VARIABLES: [(HoldOutput, &str); 3] = [
    (HoldOutput::Table, "EPHOR_HOLD_TABLE_JSON"),
    (HoldOutput::Url, "EPHOR_HOLD_URL_JSON"),
    (HoldOutput::Json, "EPHOR_HOLD_OBJECT_JSON"),
];

/// Runs ourselves as the command of a task, which shows the login and waits.
pub async fn hold(args: args::Hold) -> Outcome {
    let reference = reference(&args.entitlement)?;
    let of = |(output, _): &&(HoldOutput, &str)| *output == args.output;
    let variable = VARIABLES
        .iter()
        .find(of)
        .map_or("EPHOR_HOLD_JSON", |(_, name)| name);
    let with = args::Run {
        env: vec![format!("{variable}={reference}?as=fd")],
        reason: args.reason,
        command: [SELF, "__hold", variable, &std::process::id().to_string()]
            .map(OsString::from)
            .to_vec(),
        ..args::Run::default()
    };
    run::run(with.alone().called("Ctrl-C")).await
}

/// What a dialog asks for.
#[derive(Deserialize)]
struct Held {
    url: String,
    host: String,
    port: u16,
    database: String,
    user: String,
    password: Option<String>,
    sslmode: String,
    sslrootcert: Option<String>,
    sslcert: Option<String>,
    sslkey: Option<String>,
    role: String,
    options: String,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.url.zeroize();
        self.password.zeroize();
    }
}

/// The command: shows it, and waits to be ended.
pub async fn holding(variable: &str, parent: u32) -> Outcome {
    // Killed, `ephor hold` could not end it, and the password would stay in its memory.
    end_with(parent).map_err(|why| Failure::local("nothing is held", why))?;
    let signals = Signals::take()?;
    let failed = |why: &dyn std::fmt::Display| Failure::local("cannot read the login", why);
    let path = std::env::var_os(variable).ok_or_else(|| failed(&"it is not there"))?;
    let text = Zeroizing::new(std::fs::read(path).map_err(|why| failed(&why))?);
    to_stdout(&shown(variable, &text)?)?;
    let ended = signals.next_ending().await;
    ended.map_err(|why| Failure::local("cannot read signals", why))?;
    Ok(ExitCode::SUCCESS)
}

fn shown(variable: &str, json: &[u8]) -> Result<Zeroizing<String>, Failure> {
    let held: Held =
        serde_json::from_slice(json).map_err(|why| Failure::local("cannot read the login", why))?;
    let output = VARIABLES.iter().find(|(_, name)| *name == variable);
    let text = match output.map_or(HoldOutput::Table, |(output, _)| *output) {
        HoldOutput::Url => format!("{}\n", held.url),
        HoldOutput::Json => format!("{}\n", String::from_utf8_lossy(json)),
        HoldOutput::Table => table(&held),
    };
    Ok(Zeroizing::new(text))
}

/// What a dialog asks for, one a line.
fn table(held: &Held) -> String {
    let port = held.port.to_string();
    let lines = [
        ("host", Some(&held.host)),
        ("port", Some(&port)),
        ("database", Some(&held.database)),
        ("user", Some(&held.user)),
        ("password", held.password.as_ref()),
        ("sslmode", Some(&held.sslmode)),
        ("sslrootcert", held.sslrootcert.as_ref()),
        ("sslcert", held.sslcert.as_ref()),
        ("sslkey", held.sslkey.as_ref()),
        ("options", Some(&held.options)),
    ];
    let mut text = String::with_capacity(4096);
    for (name, value) in lines {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            let wide = 10.max(name.len() + 2);
            text.push_str(&format!("{name:<wide$}{value}\n"));
        }
    }
    let login = short_login(&held.user);
    // A role that is lent works as itself.
    text.push_str(&match held.role.as_str() {
        "" => format!("{login} is held until Ctrl-C.\n"),
        role => format!("{login} works as {role}. Held until Ctrl-C.\n"),
    });
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_the_server_is_checked_with() {
        let json = |ca: &str| {
            format!(
                "{{\"url\":\"u\",\"host\":\"db1\",\"port\":5432,\"database\":\"d\",\"user\":\"eph_o_a_b\",\
                 \"password\":\"p\",\"sslmode\":\"verify-full\",\"sslrootcert\":{ca},\"role\":\"r\",\"options\":\"-c role=r\"}}"
            )
        };
        let with = shown("EPHOR_HOLD_TABLE_JSON", json("\"/run/ca.pem\"").as_bytes()).unwrap();
        assert!(
            with.contains(
                "\nsslmode   verify-full\nsslrootcert  /run/ca.pem\noptions   -c role=r\n"
            ),
            "{}",
            *with
        );
        let lent = json("null")
            .replace("-c role=r", "")
            .replace("\"role\":\"r\"", "\"role\":\"\"");
        let lent = shown("EPHOR_HOLD_TABLE_JSON", lent.as_bytes()).unwrap();
        assert!(lent.ends_with(" is held until Ctrl-C.\n"), "{}", *lent);
        let without = shown("EPHOR_HOLD_TABLE_JSON", json("null").as_bytes()).unwrap();
        assert!(
            without.contains("\nsslmode   verify-full\noptions   -c role=r\n"),
            "{}",
            *without
        );
    }
}
