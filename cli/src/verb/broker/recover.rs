//! `ephor broker recover`

use std::process::ExitCode;

use ephor_proto::http::admin::{Host, Recover, Recovered};

use crate::client::Peer;
use crate::clock;
use crate::exit::{Failure, Outcome};
use crate::show::{self, brief, moment};
use crate::words::plural;

/// Begins a new epoch; without a word on who may come back, lists the hosts and refuses.
pub async fn recover(broker: &Peer, reason: String, admit: Vec<String>, force: bool) -> Outcome {
    if admit.is_empty() {
        let hosts: Vec<Host> = broker.read("/v1/hosts").await?;
        show::to_stderr(&who(&hosts));
        return Err(Failure::usage(
            "say which hosts may come back: --admit all, or their names",
        ));
    }
    let all = admit.iter().any(|name| name == "all");
    if all && admit.len() > 1 {
        return Err(Failure::usage("--admit: either all, or names"));
    }
    let ask = Recover {
        reason,
        admit: (!all).then_some(admit),
        force,
    };
    let begun: Recovered = broker.post("/v1/recover", &ask).await?;
    show::to_stdout(&format!(
        "Epoch {} began.  The log goes on as {}.\n\
         Every token and certificate issued before is refused; {} that the store knew of {} being revoked.\n\
         {} may come back with the certificate they have until {}; the others need a new join token.\n\
         Verifiers need the new log key:  ephor broker status\n\
         Servers that let logins in by certificate need the new CA in place of the old:  ephor target ca\n",
        begun.epoch,
        begun.origin,
        begun.credentials,
        if begun.credentials == 1 { "is" } else { "are" },
        if all { "All hosts" } else { "The hosts named" },
        moment(begun.readmission_until, clock::wall()),
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Whom the store knows. What it cannot know is said first.
fn who(hosts: &[Host]) -> String {
    let now = clock::wall();
    let mut text = format!(
        "ephor: a host that was banned after the copy was made is not banned in it.\n\
         {} known here, as of the copy; hosts that joined later are not among them:\n",
        plural(hosts.len(), "host")
    );
    for host in hosts {
        let heard = host.last_heard.map_or_else(
            || "never heard".to_owned(),
            |at| format!("heard {}", brief(at, now)),
        );
        text.push_str(&format!("  {}  {}  {heard}\n", host.name, host.state));
    }
    text
}
