//! `ephor policy show` and `history`.

use ephor_proto::http::admin::{PolicyFile, PolicyShown, PolicyVersion};
use ephor_proto::time::UnixMillis;

use super::short_version;
use crate::args::Listing;
use crate::client::{Peer, segment};
use crate::clock;
use crate::exit::Failure;
use crate::show::{self, Column, Fields, moment};
use crate::words::plural;

/// One version with its text.
pub(super) async fn show(version: Option<&str>, listing: Listing) -> Result<(), Failure> {
    let version = version.map_or_else(|| "current".to_owned(), segment);
    let target = format!("/v1/policy/versions/{version}");
    let shown: PolicyShown = Peer::broker().read(&target).await?;
    let text = text_of(&shown, clock::wall());
    let columns = [
        Column::new("name", |file: &PolicyFile| file.name.clone()),
        Column::new("text", |file: &PolicyFile| file.text.clone()),
    ];
    show::group(listing.output, &shown, &shown.files, &columns, &text)
}

/// The chain.
pub(super) async fn history(listing: Listing) -> Result<(), Failure> {
    let chain: Vec<PolicyVersion> = Peer::broker().read("/v1/policy/versions").await?;
    let now = clock::wall();
    let short = [
        Column::new("POLICY", |one: &PolicyVersion| {
            short_version(&one.version).to_owned()
        }),
        Column::new("APPLIED", move |one: &PolicyVersion| {
            moment(one.applied_at, now)
        }),
        Column::new("BY", |one: &PolicyVersion| one.applied_by.clone()),
        Column::new("AFTER", |one: &PolicyVersion| after(one)),
        Column::new("", |one: &PolicyVersion| state(one).to_owned()),
    ];
    show::listing(
        listing.output,
        &chain,
        &short,
        &whole(),
        "No policy was ever applied.",
    )
}

fn state(one: &PolicyVersion) -> &'static str {
    if one.in_force { "in force" } else { "" }
}

fn after(one: &PolicyVersion) -> String {
    let previous = one.previous.as_deref().map(short_version);
    previous.unwrap_or("-").to_owned()
}

fn whole() -> [Column<PolicyVersion>; 6] {
    [
        Column::new("number", |one: &PolicyVersion| one.number.to_string()),
        Column::new("version", |one: &PolicyVersion| one.version.clone()),
        Column::new("previous", |one: &PolicyVersion| {
            one.previous.clone().unwrap_or_default()
        }),
        Column::new("applied_at", |one: &PolicyVersion| {
            one.applied_at.to_string()
        }),
        Column::new("applied_by", |one: &PolicyVersion| one.applied_by.clone()),
        Column::new("in_force", |one: &PolicyVersion| one.in_force.to_string()),
    ]
}

fn text_of(shown: &PolicyShown, now: UnixMillis) -> String {
    let one = &shown.version;
    let what = format!("policy {}", short_version(&one.version));
    let mut text = Fields::new(&what, &state(one).to_uppercase(), show::to_terminal())
        .line(
            "applied",
            format!("{}, by {}", moment(one.applied_at, now), one.applied_by),
        )
        .line(
            "after",
            one.previous
                .as_deref()
                .map(|previous| short_version(previous).to_owned()),
        )
        .line("version", one.version.clone())
        .line("files", plural(shown.files.len(), "file"))
        .line("but", shown.trouble.clone())
        .text();
    for file in &shown.files {
        text.push_str(&format!(
            "\n# ---- {}\n{}",
            show::value(&file.name),
            file.text
        ));
        if !file.text.ends_with('\n') {
            text.push('\n');
        }
    }
    text
}
