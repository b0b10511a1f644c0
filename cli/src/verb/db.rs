//! `ephor db NAME`: a database login for one command. The same as `ephor run` with libpq's variables
//! and `DATABASE_URL`, without having to name them.

use std::ffi::OsString;

use ephor_proto::cred::CredRef;

use super::run;
use crate::args;
use crate::exit::{Failure, Outcome};

/// Without a command.
const CLIENT: &str = "psql";

/// Runs the command as a task with the login.
pub async fn db(args: args::Db) -> Outcome {
    let reference = reference(&args.entitlement)?;
    let command = if args.command.is_empty() {
        vec![OsString::from(CLIENT)]
    } else {
        args.command
    };
    let with = args::Run {
        env: vec![format!("DATABASE_URL={reference}")],
        pg_env: true,
        reason: args.reason,
        report: args.report,
        command,
        ..args::Run::default()
    };
    run::run(with.alone()).await
}

/// `cred://NAME` of an entitlement as people name it.
///
/// # Errors
/// Exit 64.
pub fn reference(name: &str) -> Result<CredRef, Failure> {
    let bare = name.strip_prefix("cred://").unwrap_or(name);
    let reference: CredRef = format!("cred://{bare}").parse().map_err(Failure::usage)?;
    if reference.is_identity() || bare.contains('?') {
        return Err(Failure::usage(format!(
            "{name}: name an entitlement that gives a login, such as orders-db."
        )));
    }
    Ok(reference)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_entitlement_is_named_with_or_without_the_scheme() {
        for good in ["orders-db", "cred://orders-db"] {
            assert_eq!(reference(good).unwrap().to_string(), "cred://orders-db");
        }
        for bad in [
            "identity",
            "identity/x",
            "Orders",
            "a?as=file",
            "",
            "postgres://x",
        ] {
            assert_eq!(
                reference(bad).unwrap_err().code,
                crate::exit::USAGE,
                "{bad}"
            );
        }
    }
}
