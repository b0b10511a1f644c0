//! What the fault tests share: a broker and an agent as processes that can be killed and
//! started again, a small client that writes down what it was told, and a checker that judges
//! the promises from the store, the exported log and that history, never from a daemon's word.
//!
//! # Fault tests
//!
//! `tests/faults.rs` has those that need processes; the others are beside the code they test.
//!
//! | fault | test |
//! |---|---|
//! | `kill -9` at every crash point of issue, renew, complete, revoke, prove; both daemons | `crash::broker_killed_at_every_crash_point`, `crash::agent_killed_at_every_crash_point`, `crash::killed_while_expiring`, `crash::a_join_that_died_is_repeated_with_a_new_token`; broker `ledger::tests::crash` |
//! | 1 broker away for 10 minutes, 1 000 open tasks | broker `fleet::tests::a_broker_away_for_10_minutes_ends_none_of_1000_tasks`; `away::broker_away_ends_no_task_and_loses_no_end` |
//! | 2 broker killed after the commit, before the answer | `named::named_2_a_commit_without_an_answer_is_one_usable_credential`; agent `away::an_issue_that_lost_its_connection_is_sent_again_with_the_same_id` |
//! | 3 a commit of unknown fate, both truths | broker `issue::tests::a_commit_of_unknown_fate_lets_nothing_out_and_is_revoked` |
//! | 4 agent killed between answer, journal and hand-over, the task exits meanwhile | `named::named_4_agent_dies_before_the_hand_over_and_the_task_meanwhile` |
//! | 5 same agent key, new boot id within 15 s | broker `fleet::tests::a_new_boot_within_15_s_ends_the_old_tasks_at_hello` |
//! | 6 pid reused while the agent was down | agent `complete::tests::a_reused_pid_another_program_and_another_boot_are_not_adopted` |
//! | 7 exec, passed connection, fork then die between request and secret | `speaker::named_7_*` (three) |
//! | 8 clock + 2 h, prune, − 2 h | broker `revoke::tests::a_clock_two_hours_ahead_and_back_revives_nothing` |
//! | 9 heartbeat or renewal after revoke, `complete` twice | broker `issue::tests::a_renewal_after_the_end_never_lives_again`, `complete::tests::ends_told_twice_at_once_and_late_have_one_receipt`, `fleet::tests::a_heartbeat_ends_what_is_missing_and_tells_what_ended`; agent `ends::what_comes_after_the_end_is_dropped` |
//! | 10 crash between event, checkpoint row, signature and tile | `heads::named_10_no_two_heads_whatever_line_the_broker_dies_at` |
//! | 11 executable swapped, size and mtime restored | agent `attest::tests::a_swapped_program_with_size_and_mtime_restored_is_hashed_anew` |
//! | yesterday's store in the place of today's; the same without agents, which un-revokes | `rewind::a_restored_store_is_refused_within_a_heartbeat_and_recovers_without_a_restart`, `rewind::naively_restored_a_revoked_token_is_good_again` |
//! | a backup under load; each part of it damaged | `rewind::a_backup_made_under_load_is_whole_and_no_damaged_one_replaces_a_store` |
//! | full disk, also at the start; `kill -9` on it | `disk::a_full_disk_stops_issuing_and_no_revocation`, `disk::a_full_disk_and_a_kill`; agent `journal::tests::a_disk_that_refuses_hands_nothing_over` |
//! | broker killed while a policy takes another one's place | `crash::killed_while_a_policy_takes_another_ones_place` |
//! | fsync error | `disk::a_failed_flush_ends_the_broker` |
//! | frozen broker, frozen agent | `frozen::*`; broker `fleet::tests::a_broker_that_stood_still_blames_nobody` |
//! | agent handed over to a successor, five times under load, once without a broker; `kill -9` of either at every step; strangers | `handover::*` |
//! | agent killed and started again; what its callers notice | `handover::after_kill_9_a_caller_that_asks_again_is_served`, `away::agent_killed_and_started_again_adopts_and_completes` |
//! | damaged database, newer schema, one bad row | `start::*` |
//! | both daemons killed at random under mixed load | `chaos::two_minutes_of_it`; for longer `ephor-loadtest chaos` |
//! | broker killed and paused at every step of a login at a real server | broker `issue::tests::logins::real::crash::killed_at_every_step_of_a_login`, `issue::tests::logins::real::crash::paused_at_every_step_while_another_broker_revokes` |
//! | every key rotated twice under load, `kill -9` at every crash point of it, hosts that were off meanwhile | `rotate::*` |

pub mod wait; //          until a condition holds, with a deadline
pub mod daemon; //        one process under test
pub mod installation; //  a broker and an agent in a directory of their own
pub mod http; //          HTTP/1.1 over a Unix socket or TLS
pub mod workload; //      processes that ask for tokens
pub mod postgres; //      a real PostgreSQL server, and a standby of it
pub mod checker; //       P1 to P5, judged from outside
pub mod chaos; //         mixed load while both daemons are killed
