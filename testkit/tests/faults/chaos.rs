//! Both daemons killed at random under mixed load. `ephor-loadtest chaos` is the same for as long
//! as one likes.

use std::time::Duration;

use ephor_testkit::chaos::{self, Settings};

/// Another run than the last: what a seed chooses first, the machine's timing chooses the rest.
fn seed() -> u64 {
    let given = std::env::var("EPHOR_CHAOS_SEED").ok();
    given.map_or_else(
        || u64::from(std::process::id()),
        |seed| seed.parse().unwrap(),
    )
}

#[test]
#[allow(
    clippy::print_stdout,
    reason = "what it chose and did is seen when it fails"
)]
fn two_minutes_of_it() {
    let seconds = std::env::var("EPHOR_CHAOS_SECONDS").map_or(100, |text| text.parse().unwrap());
    let settings = Settings {
        ephor: super::binary(),
        task: vec![env!("CARGO_BIN_EXE_ephor-kit-task").to_owned()],
        length: Duration::from_secs(seconds),
        kill_every: Duration::from_secs(10),
        check_every: Duration::from_secs(45),
        workers: 4,
        seed: seed(),
    };
    println!("EPHOR_CHAOS_SEED={}", settings.seed);
    let report = chaos::run(&settings, &|line| println!("{line}")).unwrap();
    println!("{}", report.lines.join("\n"));
    assert_eq!(report.broken, Vec::<String>::new());
    assert!(report.kills.0 >= 3 && report.kills.1 >= 3, "{report:?}");
    assert!(report.issued > 100 && report.rounds > 1, "{report:?}");
}
