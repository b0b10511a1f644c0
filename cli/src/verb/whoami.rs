//! `ephor whoami`: who the process that called us is to the agent, and what was attested. As
//! `ephor token` it speaks for its caller (`--bind`), so that both tell of the same one.

use std::process::ExitCode;

use ephor_proto::http::agent::{Evidence, Whoami};

use crate::args::{self, WhoamiOutput};
use crate::client::Peer;
use crate::exit::{Failure, Outcome};
use crate::show::to_stdout;

/// Asks and prints.
pub async fn whoami(args: args::Whoami) -> Outcome {
    let target = format!("/v1/whoami?bind={}", args.bind);
    let known: Whoami = Peer::agent().read(&target).await?;
    let text = match args.output {
        WhoamiOutput::Json => {
            serde_json::to_string_pretty(&known)
                .map_err(|why| Failure::local("cannot be printed", why))?
                + "\n"
        }
        WhoamiOutput::Text => lines(&known),
    };
    to_stdout(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn lines(known: &Whoami) -> String {
    let subject = match known.subjects.as_slice() {
        [] => "none: no workload of the policy matches this process".to_owned(),
        several => several.join("\n          "),
    };
    let task = match &known.task {
        Some(task) => format!("{} ({})", task.short(), known.task_rule),
        None => format!(
            "none yet; the first credential opens one ({})",
            known.task_rule
        ),
    };
    format!(
        "subject   {subject}\nhost      {}\ntask      {task}\nattested  {}\n",
        known.host,
        attested(&known.evidence)
    )
}

fn attested(evidence: &Evidence) -> String {
    let sha256 = evidence.exe_sha256.as_deref().and_then(|hex| hex.get(..8));
    let sha256 = sha256.map_or_else(String::new, |hex| format!(" sha256:{hex}"));
    let unit = evidence
        .unit
        .as_ref()
        .map_or_else(String::new, |unit| format!(", unit {unit}"));
    format!(
        "pid {}, uid {} ({}), {}{sha256}{unit}, held by {}",
        evidence.pid, evidence.uid, evidence.user, evidence.exe, evidence.held_by
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_not_known() {
        let evidence = Evidence {
            uid: 1000,
            user: "bo".into(),
            pid: 42,
            exe: "/usr/bin/curl".into(),
            held_by: "pidfd".into(),
            ..Evidence::default()
        };
        let known = Whoami {
            subjects: vec![],
            host: "laptop".into(),
            trust_domain: "dev.ephor".into(),
            evidence,
            task_rule: "peer".into(),
            task: None,
        };
        let text = lines(&known);
        assert!(text.contains("no workload of the policy matches"), "{text}");
        assert!(
            text.contains("attested  pid 42, uid 1000 (bo), /usr/bin/curl, held by pidfd\n"),
            "{text}"
        );
    }
}
