//! `ephor broker status`

use std::process::ExitCode;

use ephor_proto::http::admin::Status;

use crate::args;
use crate::client::Peer;
use crate::exit::{CHECK_FAILED, Outcome};
use crate::show::{self, Column};

/// How the broker stands; 1 when it issues nothing.
pub async fn status(broker: &Peer, listing: args::Listing) -> Outcome {
    let status: Status = broker.read("/v1/status").await?;
    let issuing = status.issuing;
    match listing.output {
        args::Output::Table => show::to_stdout(&told(&status))?,
        args::Output::Json | args::Output::Csv => {
            show::listing(listing.output, &[status], &[], &whole(), "")?;
        }
    }
    Ok(ExitCode::from(if issuing { 0 } else { CHECK_FAILED }))
}

fn told(status: &Status) -> String {
    let issuing = match &status.stopped_because {
        None => "yes".to_owned(),
        Some(why) => format!("NO: {why}"),
    };
    let quarantined = match status.quarantined {
        0 => String::new(),
        some => format!("set aside   {some} rows that could not be read\n"),
    };
    format!(
        "version     {}\ntrust       {}, installation {}, epoch {}\nissuing     {issuing}\npolicy      {}\n\
         log         {} events, {}\n{quarantined}",
        status.version,
        status.trust_domain,
        status.installation,
        status.epoch,
        status.policy_version,
        status.log_size,
        status.log_key,
    )
}

fn whole() -> [Column<Status>; 6] {
    [
        Column::new("version", |status: &Status| status.version.clone()),
        Column::new("installation", |status: &Status| {
            status.installation.clone()
        }),
        Column::new("epoch", |status: &Status| status.epoch.to_string()),
        Column::new("issuing", |status: &Status| status.issuing.to_string()),
        Column::new("stopped_because", |status: &Status| {
            status.stopped_because.clone().unwrap_or_default()
        }),
        Column::new("log_size", |status: &Status| status.log_size.to_string()),
    ]
}
