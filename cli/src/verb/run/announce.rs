//! What `ephor run` says before the command starts: who it is, what it gets, what goes stale.

use ephor_proto::cred::As;
use ephor_proto::http::agent::Whoami;
use ephor_proto::id::TaskId;

use crate::client::Peer;
use crate::cred::{Wanted, Wants};
use crate::words::plural;

/// Who this is, to the broker and here.
pub(super) async fn header(agent: &Peer, task: TaskId, wants: &Wants) -> String {
    // Only wording: a command runs as well when nobody can say who it is.
    let who = match agent.read::<Whoami>("/v1/whoami").await {
        Ok(known) => format!("{} on {}, ", subjects(&known), known.host),
        Err(_) => String::new(),
    };
    let names = plural(wants.list.len(), "name");
    let from = match (&wants.file, wants.list.len()) {
        (Some(file), _) => format!(" ({}, {names})", file.display()),
        (None, 0) => String::new(),
        (None, _) => format!(" ({names})"),
    };
    format!("ephor: {who}task {}{from}\n", task.short())
}

fn subjects(known: &Whoami) -> String {
    let prefix = format!("spiffe://{}/", known.trust_domain);
    let short = |id: &String| id.strip_prefix(&prefix).unwrap_or(id).to_owned();
    match known.subjects.as_slice() {
        [] => format!("{}, who matches no workload,", known.evidence.user),
        several => several.iter().map(short).collect::<Vec<_>>().join(" or "),
    }
}

/// Widths that align the lines about names.
pub(super) struct Columns {
    name: usize,
    what: usize,
}

impl Columns {
    /// Of these.
    pub(super) fn of(list: &[Wanted]) -> Self {
        let widest = |text: fn(&Wanted) -> String| {
            list.iter()
                .map(|w| text(w).chars().count())
                .max()
                .unwrap_or(0)
        };
        Self {
            name: widest(|w| w.name.clone()),
            what: widest(Wanted::what),
        }
    }

    /// One name, and how it is delivered.
    pub(super) fn line(&self, wanted: &Wanted, how: &str) -> String {
        format!(
            "ephor: {:name$}  {:what$}  {how}\n",
            wanted.name,
            wanted.what(),
            name = self.name,
            what = self.what
        )
    }
}

/// Which names will not follow a renewal.
pub(super) fn stale_warning<'a>(renewed: impl Iterator<Item = &'a Wanted>) -> String {
    let stale = |wanted: &&Wanted| wanted.delivery() != As::File;
    let names: Vec<&str> = renewed
        .filter(stale)
        .map(|wanted| wanted.name.as_str())
        .collect();
    match names.as_slice() {
        [] => String::new(),
        names => format!(
            "ephor: {} goes stale: it is renewed, but a running program keeps what it was started with.\n       \
             A program that runs longer takes ?as=file, or asks at EPHOR_SOCKET.\n",
            names.join(", ")
        ),
    }
}
