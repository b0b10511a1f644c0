//! `ephor token`: one token for the process that called us, alone on standard output.
//!
//! A helper exits at once, so the token joins the task of its caller (`--bind`), never one of
//! its own; it is never on a command line.

use std::process::ExitCode;

use ephor_proto::cred::CredRef;
use ephor_proto::http::agent::{CredentialRequest, Credentials, Parameters, Token};
use ephor_proto::ttl::Ttl;
use zeroize::Zeroizing;

use crate::args::{self, TokenOutput};
use crate::client::Peer;
use crate::exit::{Failure, Outcome};
use crate::show::to_stdout;
use crate::words::query_escaped;

/// Fetches and prints it.
pub async fn token(args: args::Token) -> Outcome {
    let ttl = args.ttl.as_deref().map(ttl_seconds).transpose()?;
    let wanted = wanted(&args)?;
    let agent = Peer::agent();
    let text = match (wanted.item(), wanted.is_identity(), &args.reason) {
        (Some(audience), true, None) => {
            let answer: Token = agent.read(&target(audience, &args, ttl)).await?;
            shown(&args, &answer, answer.credential.token.as_deref())?
        }
        (item, identity, _) => {
            let audience = item.filter(|_| identity).map(str::to_owned);
            let request = CredentialRequest {
                entitlement: wanted.entitlement().to_owned(),
                reason: args.reason.clone(),
                parameters: audience.map(|audience| Parameters {
                    audience: Some(audience),
                }),
                ttl_seconds: ttl.map(i128::from),
                bind: Some(args.bind),
                ..CredentialRequest::default()
            };
            let answer: Credentials = agent.post("/v1/credentials", &request).await?;
            shown(&args, &answer, only(&wanted, &answer)?)?
        }
    };
    to_stdout(&text).map_err(|failure| {
        failure.although_issued("What was issued is revoked when its task ends.".to_owned())
    })?;
    Ok(ExitCode::SUCCESS)
}

fn wanted(args: &args::Token) -> Result<CredRef, Failure> {
    let reference = match (&args.audience, &args.entitlement) {
        (Some(audience), _) => return CredRef::identity(audience).map_err(Failure::usage),
        (None, Some(name)) if name.starts_with("cred://") => name.clone(),
        (None, Some(name)) => format!("cred://{name}"),
        (None, None) => return Err(Failure::usage("name an entitlement, or --audience.")),
    };
    let wanted: CredRef = reference.parse().map_err(Failure::usage)?;
    if reference.contains('?') {
        return Err(Failure::usage(format!(
            "{reference}: ?as= is for `ephor run`; here the token is printed."
        )));
    }
    if wanted.is_identity() && wanted.item().is_none() {
        return Err(Failure::usage(
            "identity needs an audience: ephor token --audience AUDIENCE (its certificate: ephor cert)",
        ));
    }
    Ok(wanted)
}

pub(super) fn ttl_seconds(text: &str) -> Result<u64, Failure> {
    let ttl: Ttl = text
        .parse()
        .map_err(|why| Failure::usage(format!("--ttl: {why}")))?;
    Ok(ttl.as_seconds())
}

fn target(audience: &str, args: &args::Token, ttl: Option<u64>) -> String {
    let ttl = ttl.map_or_else(String::new, |ttl| format!("&ttl_seconds={ttl}"));
    format!(
        "/v1/token?audience={}&bind={}{ttl}",
        query_escaped(audience),
        args.bind
    )
}

fn only<'a>(wanted: &CredRef, answer: &'a Credentials) -> Result<Option<&'a str>, Failure> {
    let fits = |audience: Option<&str>| wanted.item().is_none_or(|item| audience == Some(item));
    let mut fitting = answer
        .credentials
        .iter()
        .filter(|one| fits(one.audience.as_deref()));
    match (fitting.next(), fitting.next()) {
        (Some(one), None) => Ok(one.token.as_deref()),
        (None, _) => Ok(None),
        (Some(_), Some(_)) => {
            let names: Vec<&str> = answer
                .credentials
                .iter()
                .filter_map(|one| one.audience.as_deref())
                .collect();
            let name = wanted.entitlement();
            Err(Failure::usage(format!(
                "{name} gives {}; say which: {name}/AUDIENCE",
                names.join(" and ")
            )))
        }
    }
}

fn shown(
    args: &args::Token,
    answer: &impl serde::Serialize,
    token: Option<&str>,
) -> Result<Zeroizing<String>, Failure> {
    match (args.output, token) {
        (TokenOutput::Json, _) => {
            let text = serde_json::to_string_pretty(answer)
                .map_err(|why| Failure::local("cannot be printed", why))?;
            Ok(Zeroizing::new(text + "\n"))
        }
        (TokenOutput::Token, Some(token)) => Ok(Zeroizing::new(format!("{token}\n"))),
        (TokenOutput::Token, None) => Err(Failure::usage("this gives no token.")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::Parser;

    fn parsed(line: &[&str]) -> args::Token {
        let argv = ["ephor", "token"].into_iter().chain(line.iter().copied());
        match crate::args::Cli::try_parse_from(argv).unwrap().verb {
            crate::args::Verb::Token(token) => token,
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn a_credential_is_named_one_way() {
        for (line, expected) in [
            (&["--audience", "billing"][..], "cred://identity/billing"),
            (
                &["--audience", "https://b/x"],
                "cred://identity/https:%2F%2Fb%2Fx",
            ),
            (&["billing-api"], "cred://billing-api"),
            (&["billing-api/ledger"], "cred://billing-api/ledger"),
            (&["cred://identity/billing"], "cred://identity/billing"),
        ] {
            assert_eq!(wanted(&parsed(line)).unwrap().to_string(), expected);
        }
        for line in [["identity"], ["cred://x?as=file"], ["Bad"]] {
            assert_eq!(wanted(&parsed(&line)).unwrap_err().code, crate::exit::USAGE);
        }
    }

    #[test]
    fn the_query_is_escaped() {
        let args = parsed(&["--audience", "a&bind=1 b", "--bind", "77", "--ttl", "90s"]);
        let ttl = args.ttl.as_deref().map(|ttl| ttl_seconds(ttl).unwrap());
        assert_eq!(
            target("a&bind=1 b", &args, ttl),
            "/v1/token?audience=a%26bind%3D1%20b&bind=77&ttl_seconds=90"
        );
        assert!(ttl_seconds("0s").is_err());
    }
}
