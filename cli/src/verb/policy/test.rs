//! `ephor policy test`: cases asked of a policy, without asking a broker to decide anything.

use std::path::Path;
use std::process::ExitCode;

use ephor_broker::policy::{CaseResult, Cases};

use super::snapshot;
use crate::args::{Listing, Output};
use crate::exit::{CHECK_FAILED, Failure, Outcome};
use crate::show::{self, Column};
use crate::words::plural;

/// Largest file of cases, in bytes.
const FILE_MAX: u64 = 8 << 20;

/// 1 when a case does not hold.
pub(super) async fn test(file: &Path, policy: Option<&Path>, listing: Listing) -> Outcome {
    let shown = show::value(&file.display().to_string()).into_owned();
    let text = read(file).map_err(|why| Failure::config(format!("{shown}: {why}")))?;
    let cases = Cases::parse(&text).map_err(|why| Failure::config(format!("{shown}: {why}")))?;
    let (policy, place) = snapshot(policy).await?;
    let results = cases.run(&policy);
    let failed: Vec<&CaseResult> = results.iter().filter(|result| !result.holds).collect();
    let version = policy.short_version();
    match listing.output {
        Output::Table => show::to_stdout(&told(
            results.len(),
            &failed,
            &format!("policy {version}, {place}"),
        ))?,
        Output::Json | Output::Csv => show::listing(listing.output, &results, &[], &columns(), "")?,
    }
    Ok(match failed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(CHECK_FAILED),
    })
}

fn read(file: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(file)?
        .take(FILE_MAX + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > FILE_MAX {
        return Err(std::io::Error::other(format!(
            "larger than {FILE_MAX} bytes"
        )));
    }
    Ok(text)
}

fn told(all: usize, failed: &[&CaseResult], policy: &str) -> String {
    if failed.is_empty() {
        let hold = if all == 1 { "holds" } else { "hold" };
        return format!("ok: {} {hold} ({policy})\n", plural(all, "case"));
    }
    let mut text = format!(
        "{} of {} not as expected ({policy})\n",
        failed.len(),
        plural(all, "case")
    );
    for result in failed {
        text.push_str(&format!(
            "\n{}\n  {}\n  found {}\n",
            show::value(&result.name),
            show::value(&result.why),
            show::value(&result.found)
        ));
    }
    text
}

fn columns() -> [Column<CaseResult>; 4] {
    [
        Column::new("case", |result: &CaseResult| result.name.clone()),
        Column::new("holds", |result: &CaseResult| result.holds.to_string()),
        Column::new("why", |result: &CaseResult| result.why.clone()),
        Column::new("found", |result: &CaseResult| result.found.clone()),
    ]
}
