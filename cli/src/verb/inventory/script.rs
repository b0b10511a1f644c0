//! The clean-up as a script for psql. It is printed, never run.
//!
//! Its order: look again and refuse if anything changed; nobody gets in any more, committed; then
//! sessions end; then, database by database, prepared transactions are rolled back, what is owned
//! gets another owner and privileges are taken away; last the roles go.

use super::plan::{Place, Plan, Removal};
use super::quote::{comment, connect, dollar, ident, literal};
use super::report::{Finding, Login, Report};
use crate::words::plural;

/// Names in one statement: each is a lock until the transaction ends.
const CHUNK: usize = 500;
/// Where `ephor dev --pg` puts its schema.
const EPHORS_DATABASE: &str = "ephor";
/// What each connection begins with.
const PREAMBLE: &str = "\
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SET search_path = pg_catalog;
SET lock_timeout = '10s';
";

/// The script.
pub fn script(report: &Report, plan: &Plan<'_>) -> String {
    let mut out = head(report, plan);
    if !plan.remove.is_empty() {
        out.push_str(&shut(plan));
    }
    out.push_str(&end_sessions(plan));
    for (database, place) in &plan.databases {
        let connect = connect(database).unwrap_or_default();
        out.push_str(&format!(
            "\n-- In {}\n{connect}\n{PREAMBLE}",
            comment(database)
        ));
        out.push_str(&give_up(place));
    }
    if !plan.cluster.owners.is_empty() || !plan.cluster.named.is_empty() {
        out.push_str(
            "\n-- In the cluster as a whole: databases and tablespaces, from wherever this is\n",
        );
        out.push_str(&give_up(&plan.cluster));
    }
    if !plan.remove.is_empty() {
        out.push_str("\n-- Nothing holds them any more.\n");
        for chunk in plan.remove.chunks(CHUNK) {
            let names: Vec<&str> = chunk.iter().map(|removal| removal.name).collect();
            out.push_str(&format!("DROP ROLE\n{};\n", idents(&names)));
        }
    }
    out.push_str(&for_people(report, plan));
    out
}

fn head(report: &Report, plan: &Plan<'_>) -> String {
    let server = &report.server;
    let remove = plan.remove.len();
    let sessions: usize = plan
        .remove
        .iter()
        .map(|removal| removal.login.session_count())
        .sum();
    let orphans: usize = plan.end.iter().map(|login| login.session_count()).sum();
    format!(
        "-- Clean-up of {}, from what {} saw at {}. Nothing of it was run.\n\
         -- It removes {} past VALID UNTIL and ends {} of theirs and {} of roles that are gone or\n\
         -- may not log in; {} left to you, at the end.\n\
         -- Read it, then run it with psql -X -f, as a superuser (or, where there is none, as a role\n\
         -- with CREATEROLE). It stops at the first error; after one, scan again.\n\
         \\set ON_ERROR_STOP on\n{PREAMBLE}",
        comment(&server.address),
        comment(&server.login),
        server.at,
        plural(remove, "login"),
        plural(sessions, "session"),
        orphans,
        plan.left.len(),
    )
}

/// Looks again, and takes LOGIN away. A name may have been used again since, or its end moved.
fn shut(plan: &Plan<'_>) -> String {
    let listed: Vec<String> = plan.remove.iter().map(listed).collect();
    let heirs: Vec<String> = plan.heirs().into_iter().map(literal).collect();
    let body = format!(
        "\nDECLARE
    login record;
    heir text;
    runs_alone CONSTANT boolean := (SELECT rolsuper FROM pg_roles WHERE rolname = current_user);
BEGIN
    FOREACH heir IN ARRAY ARRAY[{heirs}]::text[] LOOP
        IF NOT pg_has_role(heir, 'USAGE') THEN
            RAISE EXCEPTION '% is not a member of %, which is to take over', current_user, heir;
        END IF;
    END LOOP;
    FOR login IN
        SELECT listed.name,
               role.oid = listed.oid AND role.rolvaliduntil < now()
                   AND role.rolname NOT IN (current_user, session_user) AS is_the_same
          FROM (VALUES
{listed}
               ) AS listed (oid, name)
          LEFT JOIN pg_roles role ON role.rolname = listed.name
    LOOP
        IF login.is_the_same IS NOT TRUE THEN
            RAISE EXCEPTION '% changed since the scan: scan again', login.name;
        END IF;
        EXECUTE format('ALTER ROLE %I NOLOGIN', login.name);
        -- Without a superuser, only a member may take away what a role holds.
        IF NOT runs_alone AND NOT pg_has_role(login.name, 'USAGE') THEN
            EXECUTE format('GRANT %I TO %I', login.name, current_user);
        END IF;
    END LOOP;
END
",
        heirs = heirs.join(", "),
        listed = listed.join(",\n"),
    );
    format!(
        "\n-- Nothing changed since the scan, and none of them gets in any more.\n{}",
        run(&body)
    )
}

/// `(16400::oid, 'name')`
fn listed(removal: &Removal<'_>) -> String {
    format!(
        "               ({}::oid, {})",
        removal.login.oid,
        literal(removal.name)
    )
}

/// Ends sessions, and waits until they are gone.
fn end_sessions(plan: &Plan<'_>) -> String {
    let removed = plan.remove.iter().map(|removal| removal.login.oid);
    let ended = plan.end.iter().map(|login| login.oid);
    let oids: Vec<String> = removed.chain(ended).map(|oid| oid.to_string()).collect();
    if oids.is_empty() {
        return String::new();
    }
    let body = format!(
        "\nDECLARE
    listed CONSTANT oid[] := '{{{oids}}}';
    deadline CONSTANT timestamptz := clock_timestamp() + interval '10 seconds';
    pids int[];
BEGIN
    LOOP
        PERFORM pg_stat_clear_snapshot();
        SELECT array_agg(activity.pid) INTO pids
          FROM pg_stat_activity activity
          LEFT JOIN pg_roles role ON role.oid = activity.usesysid
         WHERE activity.usesysid = ANY (listed)
           AND activity.pid <> pg_backend_pid()
           AND activity.backend_type IN ('client backend', 'walsender')
           AND role.rolcanlogin IS NOT TRUE;
        EXIT WHEN pids IS NULL;
        IF clock_timestamp() > deadline THEN
            RAISE EXCEPTION 'sessions % do not end', pids;
        END IF;
        PERFORM pg_terminate_backend(pid) FROM unnest(pids) AS pid;
        PERFORM pg_sleep(0.02);
    END LOOP;
END
",
        oids = wrapped(&oids)
    );
    format!(
        "\n-- Their sessions end, and those of roles that are gone or may not log in.\n{}",
        run(&body)
    )
}

/// Ten in a line.
fn wrapped(oids: &[String]) -> String {
    let lines: Vec<String> = oids.chunks(10).map(|ten| ten.join(", ")).collect();
    lines.join(",\n        ")
}

/// All of one place: prepared transactions, what is owned, privileges.
fn give_up(place: &Place<'_>) -> String {
    let mut out = String::new();
    for gid in &place.prepared {
        out.push_str(&format!("ROLLBACK PREPARED {};\n", literal(gid)));
    }
    if !place.owners.is_empty() {
        out.push_str("BEGIN;\n");
        let all: Vec<&str> = place.owners.values().flatten().copied().collect();
        out.push_str(&disarm(&all));
        for (heir, owners) in &place.owners {
            let heir_ident = ident(heir);
            out.push_str(&format!(
                "REASSIGN OWNED BY\n{}\n    TO {heir_ident};\n",
                idents(owners)
            ));
        }
        out.push_str(&format!("DROP OWNED BY\n{};\nCOMMIT;\n", idents(&all)));
    }
    for chunk in place.named.chunks(CHUNK) {
        out.push_str(&refuse_owners(chunk));
        out.push_str(&format!("DROP OWNED BY\n{};\nCOMMIT;\n", idents(chunk)));
    }
    out
}

/// A function that ran with the rights of a login would run with those of the heir, for everybody
/// who may call it.
fn disarm(owners: &[&str]) -> String {
    let body = format!(
        "\nDECLARE
    routine regprocedure;
BEGIN
    FOR routine IN
        SELECT p.oid FROM pg_proc p JOIN pg_roles r ON r.oid = p.proowner
         WHERE p.prosecdef AND r.rolname IN (
{})
    LOOP
        RAISE NOTICE '% was SECURITY DEFINER and is not any more', routine;
        EXECUTE format('ALTER ROUTINE %s SECURITY INVOKER', routine);
    END LOOP;
END
",
        literals(owners)
    );
    run(&body)
}

/// DROP OWNED drops what is owned: these owned nothing when they were looked at.
fn refuse_owners(names: &[&str]) -> String {
    let body = format!(
        "
BEGIN
    IF EXISTS (
        SELECT FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid
         WHERE d.refclassid = 'pg_authid'::regclass AND d.deptype = 'o'
           AND d.classid NOT IN ('pg_default_acl'::regclass, 'pg_user_mapping'::regclass)
           AND d.dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
           AND r.rolname IN (
{}))
    THEN
        RAISE EXCEPTION 'one of them owns something since the scan: scan again';
    END IF;
END
",
        literals(names)
    );
    format!("BEGIN;\n{}", run(&body))
}

fn run(body: &str) -> String {
    let tag = dollar(body);
    format!("DO {tag}{body}{tag};\n")
}

fn idents(names: &[&str]) -> String {
    list(names, ident)
}

fn literals(names: &[&str]) -> String {
    list(names, literal)
}

fn list(names: &[&str], quote: fn(&str) -> String) -> String {
    let lines: Vec<String> = names
        .iter()
        .map(|name| format!("    {}", quote(name)))
        .collect();
    lines.join(",\n")
}

/// What a script must not decide, as comments.
fn for_people(report: &Report, plan: &Plan<'_>) -> String {
    let mut out = String::new();
    let mut say = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            out.push_str(&format!("\n-- {title}\n"));
            for line in lines {
                out.push_str(&format!("--   {line}\n"));
            }
        }
    };
    let left = plan
        .left
        .iter()
        .map(|(login, why)| format!("{}: {}", name(login), comment(why)));
    say("Past VALID UNTIL and left alone:", left.collect());
    say(
        "Left by runs of `ephor dev --pg`: nobody is connected as them. The next `ephor dev --pg` here by the user\n\
         -- who ran it removes it, while its directory (in TMPDIR) is there; else, once no such run is starting:",
        report
            .with(Finding::LeftByDev)
            .flat_map(removal_of_dev)
            .collect(),
    );
    let never = report.with(Finding::NeverExpires);
    let never = never.map(|login| format!("ALTER ROLE {} VALID UNTIL '...';", name(login)));
    say(
        "Never expires. Who answers for it?  COMMENT ON ROLE ... IS 'owner: team:...';",
        never.collect(),
    );
    let stays = |login: &&Login| {
        !plan
            .remove
            .iter()
            .any(|removal| removal.login.oid == login.oid)
    };
    let powers = report
        .with(Finding::OverPrivileged)
        .filter(stays)
        .flat_map(|login| login.powers.iter().map(move |power| weaken(login, power)));
    say(
        "Has more than was granted to it on objects:",
        powers.collect(),
    );
    out
}

/// What `ephor dev --pg` does at its end. Logins that it made go above, once they are past VALID UNTIL.
fn removal_of_dev(login: &Login) -> Vec<String> {
    let name_ident = name(login);
    let name_literal = literal(login.name.as_deref().unwrap_or_default());
    if login.owned() > 0 {
        return vec![format!(
            "{name_ident} owns something: REASSIGN OWNED BY it first, and scan again"
        )];
    }
    let mut lines = vec![format!("ALTER ROLE {name_ident} NOLOGIN;")];
    for database in login
        .holds
        .iter()
        .flatten()
        .filter_map(|held| held.database.as_deref())
    {
        let Some(connect) = connect(database) else {
            continue;
        };
        lines.push(connect);
        lines.push(format!("DROP OWNED BY {name_ident};"));
        if database == EPHORS_DATABASE {
            lines.push(format!(
                "DELETE FROM ephor.installation WHERE login = {name_literal};"
            ));
        }
    }
    lines.push(format!("DROP ROLE {name_ident};"));
    lines
}

fn weaken(login: &Login, power: &super::reach::Power) -> String {
    let name = name(login);
    match power.through.first() {
        Some(group) => format!(
            "REVOKE {} FROM {name};  -- {}",
            ident(group),
            comment(&power.told())
        ),
        None if power.right.starts_with("pg_") => format!("REVOKE {} FROM {name};", power.right),
        None => format!("ALTER ROLE {name} NO{};", power.right),
    }
}

fn name(login: &Login) -> String {
    ident(login.name.as_deref().unwrap_or_default())
}
