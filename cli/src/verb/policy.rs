//! `ephor policy check|explain|diff|test|apply|show|history`

mod change;
mod test;
mod versions;

use std::path::Path;
use std::process::ExitCode;

use ephor_broker::policy::{Snapshot, check};
use ephor_proto::http::admin::{Explain, Explained, PolicyShown, Way};
use ephor_proto::ttl::Ttl;

use crate::args;
use crate::client::Peer;
use crate::exit::{CONFIG, Failure, Outcome};
use crate::show::{self, Column, path_of};
use crate::words::plural;

/// Does what was asked.
pub async fn policy(verb: args::Policy) -> Outcome {
    match verb {
        args::Policy::Check { dir } => {
            let summary = check(&dir).map_err(|errors| Failure::new(CONFIG, errors.to_string()))?;
            show::to_stdout(&format!("{summary}\n"))?;
        }
        args::Policy::Explain {
            subject,
            host,
            entitlement,
            policy,
            listing,
        } => {
            let ask = Explain {
                subject,
                host,
                entitlement,
            };
            let named = [&ask.subject, &ask.host, &ask.entitlement]
                .into_iter()
                .flatten()
                .count();
            if named != 1 {
                return Err(Failure::usage(
                    "name one of --subject, --host and --entitlement.",
                ));
            }
            let explained = match &policy {
                Some(dir) => offline(dir, &ask)?,
                None => Peer::broker().post("/v1/policy/explain", &ask).await?,
            };
            show::group(
                listing.output,
                &explained,
                &explained.ways,
                &whole(),
                &told(&explained, &ask, policy.as_deref()),
            )?;
        }
        args::Policy::Diff {
            dir,
            policy,
            listing,
        } => return change::diff(&dir, policy.as_deref(), listing).await,
        args::Policy::Test {
            file,
            policy,
            listing,
        } => return test::test(&file, policy.as_deref(), listing).await,
        args::Policy::Apply {
            dir,
            dry_run,
            listing,
        } => return change::apply(&dir, dry_run, listing).await,
        args::Policy::Show { version, listing } => {
            versions::show(version.as_deref(), listing).await?;
        }
        args::Policy::History { listing } => versions::history(listing).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A policy to compare with or to ask, and where it is from in words.
pub(super) async fn snapshot(dir: Option<&Path>) -> Result<(Snapshot, String), Failure> {
    let wrong = |errors: ephor_broker::policy::LoadErrors| Failure::new(CONFIG, errors.to_string());
    match dir {
        Some(dir) => {
            let read = format!("read from {}", show::value(&dir.display().to_string()));
            Ok((Snapshot::load(dir).map_err(wrong)?, read))
        }
        None => {
            let shown: PolicyShown = Peer::broker().read("/v1/policy/versions/current").await?;
            let loaded = Snapshot::from_files(shown.files).map_err(wrong)?;
            Ok((loaded, "in force".to_owned()))
        }
    }
}

/// `6b1e`
fn short_version(version: &str) -> &str {
    version.get(..4).unwrap_or(version)
}

fn offline(dir: &Path, ask: &Explain) -> Result<Explained, Failure> {
    let snapshot =
        Snapshot::load(dir).map_err(|errors| Failure::new(CONFIG, errors.to_string()))?;
    let place = dir.display().to_string();
    let explained = snapshot.explain(ask);
    explained.map_err(|why| Failure::usage(why.read_from(&place)))
}

fn until(way: &Way) -> String {
    format!("{} ({})", Ttl::from_seconds(way.ttl_seconds), way.capped_by)
}

fn short() -> [Column<Way>; 5] {
    [
        Column::new("  ENTITLEMENT", |way: &Way| {
            format!("  {}", way.entitlement)
        }),
        Column::elastic("GIVES", |way: &Way| way.gives.clone()),
        Column::new("UP TO", until),
        Column::elastic("OWNER", |way: &Way| way.owner.clone()),
        Column::new("BY", |way: &Way| way.rule.clone()),
    ]
}

fn whole() -> [Column<Way>; 9] {
    [
        Column::new("subject", |way: &Way| way.subject.clone()),
        Column::new("entitlement", |way: &Way| way.entitlement.clone()),
        Column::new("gives", |way: &Way| way.gives.clone()),
        Column::new("owner", |way: &Way| way.owner.clone()),
        Column::new("purpose", |way: &Way| way.purpose.clone()),
        Column::new("ttl_seconds", |way: &Way| way.ttl_seconds.to_string()),
        Column::new("capped_by", |way: &Way| way.capped_by.clone()),
        Column::new("rule", |way: &Way| way.rule.clone()),
        Column::new("runs", |way: &Way| way.runs.join("; ")),
    ]
}

/// By subject: how a process is recognised as it, then what it can get. `read` is where the policy
/// was read from, when it is not the broker's.
fn told(explained: &Explained, ask: &Explain, read: Option<&Path>) -> String {
    let version = explained
        .policy_version
        .get(..4)
        .unwrap_or(&explained.policy_version);
    let Explain {
        subject,
        host,
        entitlement,
    } = ask;
    let about = match (subject, host, entitlement) {
        (Some(subject), _, _) => path_of(subject).to_owned(),
        (_, Some(host), _) => format!("a compromised host named {host}"),
        (_, _, Some(entitlement)) => format!("entitlement {entitlement}"),
        (None, None, None) => String::new(),
    };
    let number = match explained.ways.len() {
        0 => "no way to a credential".to_owned(),
        ways => format!("{} to a credential", plural(ways, "way")),
    };
    let read = read.map_or_else(String::new, |dir| {
        format!(", read from {}", show::value(&dir.display().to_string()))
    });
    let mut out = format!(
        "policy {version}, {}: {number}{read}\n",
        show::value(&about)
    );
    let mut rest = explained.ways.as_slice();
    while let Some(first) = rest.first() {
        let same = rest
            .iter()
            .take_while(|way| way.subject == first.subject && way.runs == first.runs)
            .count();
        let (group, after) = rest.split_at(same);
        out.push_str(&format!("\n{}\n", show::value(path_of(&first.subject))));
        for run in &first.runs {
            out.push_str(&format!("  runs as {}\n", show::value(run)));
        }
        out.push_str(&show::table(
            group,
            &short(),
            show::to_terminal().then_some(show::WIDTH),
        ));
        rest = after;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(subject: &str, entitlement: &str) -> Way {
        Way {
            subject: format!("spiffe://example.org/{subject}"),
            entitlement: entitlement.to_owned(),
            gives: "token for billing".to_owned(),
            owner: "team:orders".to_owned(),
            purpose: "reads invoices".to_owned(),
            ttl_seconds: 300,
            capped_by: "ttl.kind.jwt".to_owned(),
            rule: "orders.toml:12".to_owned(),
            runs: vec!["user orders, on web-*".to_owned()],
        }
    }

    #[test]
    fn ways_are_grouped_by_who_goes_them() {
        let ways = vec![
            way("orders/web", "identity"),
            way("orders/web", "billing-api"),
            way("x", "identity"),
        ];
        let explained = Explained {
            policy_version: "6b1e0000".to_owned(),
            ways,
        };
        let shown = told(
            &explained,
            &Explain {
                host: Some("web-3".to_owned()),
                ..Explain::default()
            },
            None,
        );
        let expected = "\
policy 6b1e, a compromised host named web-3: 3 ways to a credential

orders/web
  runs as user orders, on web-*
  ENTITLEMENT  GIVES              UP TO              OWNER        BY
  identity     token for billing  5m (ttl.kind.jwt)  team:orders  orders.toml:12
  billing-api  token for billing  5m (ttl.kind.jwt)  team:orders  orders.toml:12

x
  runs as user orders, on web-*
  ENTITLEMENT  GIVES              UP TO              OWNER        BY
  identity     token for billing  5m (ttl.kind.jwt)  team:orders  orders.toml:12
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn nothing_is_said_to_be_nothing() {
        let explained = Explained {
            policy_version: "6b1e".to_owned(),
            ways: vec![],
        };
        let shown = told(
            &explained,
            &Explain {
                subject: Some("orders/web".to_owned()),
                ..Explain::default()
            },
            None,
        );
        assert_eq!(shown, "policy 6b1e, orders/web: no way to a credential\n");
    }
}
