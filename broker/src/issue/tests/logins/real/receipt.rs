//! What a login can be doing when its task ends, what administrators and servers do meanwhile, and
//! what the receipt then says of it. docs/postgres.md has the table.

use std::net::TcpListener;
use std::time::Duration;

use ephor_proto::event::Evidence;
use ephor_proto::id::CredentialId;
use ephor_proto::state::task::EndCause;
use ephor_testkit::postgres::Session;
use ephor_testkit::wait;

use super::*;
use crate::ledger::Overdue;

/// A login that was handed out.
struct Given {
    task: TaskId,
    id: CredentialId,
    login: v1::Login,
}

impl Given {
    fn pair(&self) -> (&str, &str) {
        (&self.login.user, &self.login.password)
    }
}

impl World {
    async fn with(options: ClusterOptions) -> Self {
        let cluster = tokio::task::spawn_blocking(move || super::prepared(&options));
        let cluster = cluster.await.unwrap();
        let bench = Bench::new().await;
        begin(&bench, cluster.port());
        Self { bench, cluster }
    }

    async fn give(&self) -> Given {
        let task = self.bench.new_task();
        let answer = self.bench.issue(self.bench.request(task, "orders-db"));
        let (id, login) = login(&answer.await.unwrap());
        Given { task, id, login }
    }

    /// A session of it that has got to where `seen` says of its row in `pg_stat_activity`.
    fn busy(&self, given: &Given, options: &str, sql: &str, seen: &str) -> Session {
        let mut session = self.cluster.session(given.pair(), "orders", options);
        let session_of = session.as_mut().unwrap();
        session_of.send(sql).unwrap();
        let question = format!(
            "select exists (select from pg_stat_activity where usename = '{}' and {seen})",
            given.login.user
        );
        self.cluster.wait_true("postgres", &question).unwrap();
        session.unwrap()
    }

    /// Ends its task, and gives what the receipt says of it.
    async fn ended(&self, given: &Given) -> Evidence {
        let ended = completed(&self.bench, given.task).await;
        assert_eq!((ended.dead, ended.listed), (1, 0));
        self.assert_dead(given);
        self.receipt(given, &ended.receipt)
    }

    fn receipt(&self, given: &Given, receipt: &str) -> Evidence {
        let event = self.bench.verified(receipt);
        assert_eq!(event.totals.unwrap().dead, 1);
        let mut evidence = event.evidence.into_iter();
        let said = evidence.find(|one| one.credential == given.id).unwrap();
        assert_eq!(said.state, CredentialState::Dead, "{said:?}");
        said
    }

    /// By `psql`: no role, no session, and its password is refused.
    fn assert_dead(&self, given: &Given) {
        let name = &given.login.user;
        let question = format!(
            "select count(*) from pg_roles where rolname = '{name}';
             select count(*) from pg_stat_activity where usename = '{name}'"
        );
        assert_eq!(self.cluster.psql("postgres", &question).unwrap(), "0\n0");
        let refused = self.cluster.psql_as(given.pair(), "orders", "select 1");
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("authentication failed"), "{refused}");
    }

    /// The task ends, and the login cannot be ended: told, with the reason, and no receipt.
    async fn is_late(&self, given: &Given) -> Overdue {
        let told = self.bench.complete(given.task, "exited").await;
        assert_eq!(told.unwrap_err().code, Code::Overdue);
        self.bench.clock.advance_millis(5_000);
        self.bench.broker.flag_late().await;
        self.late(given)
    }

    fn late(&self, given: &Given) -> Overdue {
        let row = self.bench.row(given.id);
        assert_eq!(row.state, CredentialState::Revoking);
        let reader = self.bench.broker.ledger.reader();
        assert_eq!(reader.receipt_leaf(given.task).unwrap(), None);
        let late = self.bench.broker.overdue_now(&row).unwrap();
        assert_eq!(late.owner, "team:dba");
        assert!(late.attempts >= 1 && late.next_try.is_some(), "{late:?}");
        late
    }

    /// Whatever was in the way is gone; the next try is not far.
    async fn ended_at_last(&self, given: &Given) -> Evidence {
        self.bench.clock.advance_millis(61_000);
        self.ended(given).await
    }
}

/// `orders (system id 7…, timeline 1, lsn 0/1A2B3C)`, and no more.
fn assert_whole(said: &Evidence) {
    let rest = said.place.strip_prefix("orders (system id ").unwrap();
    let (_, rest) = rest.split_once(", timeline 1, lsn 0/").unwrap();
    assert!(rest.len() < 10 && rest.ends_with(')'), "{}", said.place);
}

fn dropped(said: &Evidence) {
    assert_eq!(said.proof, Some(Proof::Dropped), "{said:?}");
    assert_whole(said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipt_of_whatever_a_session_was_doing() {
    let world = World::new().await;
    let psql = |sql: &str| world.cluster.psql("orders", sql).unwrap();
    psql("create table t (n int); grant all on t to orders_rw");
    let endless = "copy (select repeat('x', 1000), generate_series(1, 100000000)) to stdout;";
    for (sql, seen) in [
        ("select 1;", "state = 'idle' and query = 'select 1;'"),
        (
            "begin; insert into t values (7); lock table t in access exclusive mode;",
            "state = 'idle in transaction' and query ~ 'lock'",
        ),
        ("listen news;", "state = 'idle' and query = 'listen news;'"),
        ("select pg_sleep(300);", "state = 'active'"),
        ("copy t from stdin;\n1\n2", "query ~ '^copy'"),
        (endless, "wait_event = 'ClientWrite'"),
        (
            "reset role; set role orders_rw; select 2;",
            "query = 'select 2;'",
        ),
        // It is told so by `pg_locks` alone that it is done.
        (
            "select count(pg_advisory_lock(n)) from generate_series(-500, 500) n; select 3;",
            "query = 'select 3;'",
        ),
        (
            "begin; alter role current_user password 'mine';",
            "state = 'idle in transaction'",
        ),
    ] {
        let given = world.give().await;
        let options = match sql.contains("current_user") {
            true => "",
            false => "-c role=orders_rw",
        };
        let session = world.busy(&given, options, sql, seen);
        dropped(&world.ended(&given).await);
        let gone = Content::of(&world.bench.row(given.id)).unwrap();
        assert_eq!(gone.gone.unwrap().sessions_ended, 1, "{sql}");
        assert!(!session.finish().unwrap().contains("still here"), "{sql}");
    }
    assert_eq!(psql("select count(*) from t"), "0");
}

/// (a), and (d): one that hides, while another comes back for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipt_of_sessions_that_hide_or_come_back() {
    let world = World::new().await;
    let given = world.give().await;
    let options = "-c post_auth_delay=6";
    let hidden = world.cluster.session(given.pair(), "orders", options);
    let seen =
        "select exists (select from pg_locks where pid not in (select pid from pg_stat_activity))";
    world.cluster.wait_true("postgres", seen).unwrap();
    // The password exchange is over when it no longer talks to its client: it sleeps.
    tokio::time::sleep(Duration::from_millis(300)).await;
    std::thread::scope(|scope| {
        let racer = scope.spawn(|| {
            let ask = || world.cluster.psql_as(given.pair(), "orders", "select 1");
            while ask().is_ok() {}
        });
        tokio::task::block_in_place(|| {
            let ended = async { dropped(&world.ended(&given).await) };
            tokio::runtime::Handle::current().block_on(ended);
        });
        racer.join().unwrap();
    });
    assert!(!hidden.unwrap().finish().unwrap().contains("still here"));
    world.assert_dead(&given);
}

/// (e), (f): what it made. Objects of its own go with it, what it made as its group stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipt_of_one_that_owned_things() {
    let world = World::new().await;
    let given = world.give().await;
    let make = "create table own (n int); grant select on own to public;
        alter default privileges grant select on tables to orders_rw;
        create function trap() returns text language sql security definer as 'select current_user::text';
        set role orders_rw; create function left_behind() returns int language sql as 'select 1'";
    world.cluster.psql_as(given.pair(), "orders", make).unwrap();
    dropped(&world.ended(&given).await);
    let left =
        "select string_agg(proname, ',') from pg_proc where proname in ('trap', 'left_behind')";
    assert_eq!(world.cluster.psql("orders", left).unwrap(), "left_behind");

    // What others built on it: overdue with what ends it, harmless meanwhile, dropped when it is gone.
    let given = world.give().await;
    let own = "create table base (n int); grant select on base to orders_rw";
    world.cluster.psql_as(given.pair(), "orders", own).unwrap();
    let built = "set role orders_rw; create view built as select * from base";
    world
        .cluster
        .psql_as(given.pair(), "orders", built)
        .unwrap();
    let late = world.is_late(&given).await;
    assert!(late.why.contains("view public.built depends on"), "{late}");
    assert!(late.why.contains("DROP OWNED BY"), "{late}");
    let refused = world.cluster.psql_as(given.pair(), "orders", "select 1");
    assert!(refused.is_err());
    world.cluster.psql("orders", "drop view built").unwrap();
    dropped(&world.ended_at_last(&given).await);
}

/// A login may make no roles. With the right from a DBA it is told as drift, and ended; its child is not
/// ours, unless it is called like one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipt_of_one_that_made_a_child_role() {
    let world = World::new().await;
    let given = world.give().await;
    let child = crate::kind::name::make("orders-db", &world.bench.broker.installation.id, [3; 16]);
    let make =
        format!("create role {child} login password 'c'; create role bob login password 'b'");
    let refused = world.cluster.psql_as(given.pair(), "orders", &make);
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("permission denied")
    );
    let strengthen = format!("alter role {} createrole", given.login.user);
    world.cluster.psql("orders", &strengthen).unwrap();
    world
        .cluster
        .psql_as(given.pair(), "orders", &make)
        .unwrap();
    world.bench.clock.advance_millis(31_000);
    world.bench.broker.reconcile("orders").await;
    let drift = world.bench.events_of("revoke.drift");
    assert_eq!(drift[0].facts["differs"], "it has createrole");
    let stray = world.bench.events_of("revoke.stray_ended");
    assert_eq!(stray[0].facts["name"], child);
    let said = world.ended(&given).await;
    dropped(&said);
    let left = "select string_agg(rolname, ',') from pg_roles where rolname in ('bob', '{}')";
    let left = left.replace("{}", &child);
    assert_eq!(world.cluster.psql("orders", &left).unwrap(), "bob");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipt_of_one_with_a_prepared_transaction() {
    let world = World::with(ClusterOptions {
        settings: vec!["max_prepared_transactions = 5".to_owned()],
        ..ClusterOptions::default()
    })
    .await;
    world
        .cluster
        .psql(
            "orders",
            "create table t (n int); grant all on t to orders_rw",
        )
        .unwrap();
    let (holds, writes) = (world.give().await, world.give().await);
    let sql = "begin; create table waiting (n int); prepare transaction 'held'";
    world.cluster.psql_as(holds.pair(), "orders", sql).unwrap();
    let sql = "begin; insert into t values (1); prepare transaction 'written'";
    world.cluster.psql_as(writes.pair(), "orders", sql).unwrap();
    let late = world.is_late(&holds).await;
    assert!(late.why.contains("ROLLBACK PREPARED 'held'"), "{late}");
    let said = world.ended(&writes).await;
    assert_eq!(said.proof, Some(Proof::Dropped));
    let partial = said.place.split_once("; partial: ").unwrap().1;
    assert!(partial.contains("ROLLBACK PREPARED 'written'"), "{partial}");
    for name in ["held", "written"] {
        let sql = format!("rollback prepared '{name}'");
        world.cluster.psql("orders", &sql).unwrap();
    }
    dropped(&world.ended_at_last(&holds).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipt_of_one_that_a_dba_dropped_or_renamed() {
    let world = World::new().await;
    let (gone, renamed) = (world.give().await, world.give().await);
    let session = world.busy(&gone, "", "select 6;", "state = 'idle'");
    let name = &gone.login.user;
    let sql = format!(
        "drop role {name}; alter role {} rename to bob",
        renamed.login.user
    );
    world.cluster.psql("orders", &sql).unwrap();
    let said = world.ended(&gone).await;
    assert_eq!(said.proof, Some(Proof::Absent), "{said:?}");
    assert_whole(&said);
    assert!(!session.finish().unwrap().contains("still here"));
    dropped(&world.ended(&renamed).await);
    let bobs = "select count(*) from pg_roles where rolname = 'bob'";
    assert_eq!(world.cluster.psql("orders", bobs).unwrap(), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipt_after_the_brokers_password_was_changed() {
    let world = World::new().await;
    let given = world.give().await;
    let change = "alter role ephor password 'second';
        select pg_terminate_backend(pid) from pg_stat_activity where usename = 'ephor'";
    world.cluster.psql("postgres", change).unwrap();
    let late = world.is_late(&given).await;
    assert!(late.why.contains("does not let the broker in"), "{late}");
    assert!(late.why.contains("credential file"), "{late}");
    world.bench.put_target_secret("orders", "second\n");
    dropped(&world.ended_at_last(&given).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipt_of_one_at_a_server_without_free_connections() {
    let settings = ["max_connections = 30", "superuser_reserved_connections = 3"];
    let world = World::with(ClusterOptions {
        settings: settings.map(str::to_owned).to_vec(),
        ..ClusterOptions::default()
    })
    .await;
    let (given, other) = (world.give().await, world.give().await);
    let crowd = "create role crowd login password 'c'";
    world.cluster.psql("postgres", crowd).unwrap();
    let fill = || -> Vec<Session> {
        let one = |_| world.cluster.session(("crowd", "c"), "orders", "").unwrap();
        let crowd = (0..30).map(one).collect();
        wait::until("no connection is left", Duration::from_secs(60), || {
            let refused = world.cluster.psql_as(("crowd", "c"), "orders", "select 1");
            let refused = refused.err()?.to_string();
            refused.contains("remaining connection slots").then_some(())
        })
        .unwrap();
        crowd
    };
    // By the connections that were opened before the first login was made.
    let mut crowd = fill();
    let ended = completed(&world.bench, given.task).await;
    dropped(&world.receipt(&given, &ended.receipt));
    // And without them: told until there is room.
    drop(crowd);
    let cut = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'ephor'";
    world.cluster.psql("postgres", cut).unwrap();
    crowd = fill();
    let late = world.is_late(&other).await;
    assert!(late.why.contains("connection slots"), "{late}");
    drop(crowd);
    let free = || {
        world
            .cluster
            .psql_as(("crowd", "c"), "orders", "select 1")
            .ok()
    };
    wait::until("connections are free", Duration::from_secs(60), free).unwrap();
    dropped(&world.ended_at_last(&other).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipt_after_the_server_restarted_in_the_middle() {
    let mut world = World::new().await;
    let given = world.give().await;
    let session = world.busy(&given, "", "select 1;", "state = 'idle'");
    let stop = format!(
        "select pid from pg_stat_activity where usename = '{}'",
        given.login.user
    );
    let pid: i32 = world
        .cluster
        .psql("postgres", &stop)
        .unwrap()
        .parse()
        .unwrap();
    let stopped = rustix::process::Signal::STOP;
    world.cluster.signal_backend(pid, stopped).unwrap();
    // Fenced, and not to be ended: the middle of a revocation.
    let told = world.bench.complete(given.task, "exited").await;
    assert_eq!(told.unwrap_err().code, Code::Overdue);
    let fenced = format!(
        "select not rolcanlogin from pg_roles where rolname = '{}'",
        given.login.user
    );
    assert_eq!(world.cluster.psql("postgres", &fenced).unwrap(), "t");
    world.cluster.crash().unwrap();
    drop(session);
    world.cluster.boot().unwrap();
    dropped(&world.ended_at_last(&given).await);
}

/// Ten minutes by the broker's clock, with a real server that is not there: first it refuses, then it takes
/// connections and says nothing. The waiting is the clock's; each try is a real one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipt_after_ten_minutes_without_the_server() {
    let mut world = World::new().await;
    let given = world.give().await;
    world.cluster.crash().unwrap();
    world
        .bench
        .broker
        .complete_tasks(vec![given.task], EndCause::Lost)
        .await;
    let pass = async |seconds: u64| {
        for _ in 0..seconds {
            world.bench.clock.advance_millis(1_000);
            world.bench.broker.flag_late().await;
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    };
    pass(540).await;
    let late = world.late(&given);
    assert!(late.why.contains("cannot be reached"), "{late}");
    assert!(late.attempts >= 8, "{late}");
    let events = world.bench.events_of("revoke.overdue");
    assert!(events.len() >= 2, "told again: {events:?}");
    let silent = TcpListener::bind(("127.0.0.1", world.cluster.port())).unwrap();
    pass(60).await;
    let refused = late.why;
    for _ in 0..2_000 {
        if world.late(&given).why != refused {
            break;
        }
        pass(1).await;
    }
    let late = world.late(&given);
    assert_ne!(late.why, refused, "a try met the silent server");
    assert!(late.why.contains("cannot be reached"), "{late}");
    drop(silent);
    world.cluster.boot().unwrap();
    assert_eq!(world.roles(), "1", "it lives there all the time");
    dropped(&world.ended_at_last(&given).await);
    let settled = world.bench.events_of("prove.dead");
    assert_eq!(settled.len(), 1);
}
