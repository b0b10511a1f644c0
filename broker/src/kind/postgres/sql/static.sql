
-- Static roles: logins that were there before, and stay. A task is lent one: its password is set when it
-- is checked out, and replaced by one of nobody when it is checked in. What the role owns or was
-- granted is not touched.
GRANT CREATE ON SCHEMA ephor TO ephor_signal;

-- Roles that may be lent: what whoever installs allows, not what the broker asks.
CREATE TABLE IF NOT EXISTS ephor.static_role (role name PRIMARY KEY);

-- One row per checkout. `out`: somebody may have the password. `fenced`: nobody can log in. `in`: it is over,
-- and never begins again.
CREATE TABLE IF NOT EXISTS ephor.checkout (
    credential uuid PRIMARY KEY,
    installation text NOT NULL,
    role name NOT NULL,
    role_oid oid,
    state text NOT NULL CHECK (state IN ('out', 'fenced', 'in')),
    -- Of what was asked for: the same call again has the same answer, another one is refused.
    digest bytea,
    -- When the intent is void, by this server's clock.
    deadline timestamptz,
    epoch bigint NOT NULL,
    -- Whether it might log in when it was fenced: an administrator may have shut it meanwhile.
    could_login boolean,
    -- Of the password of nobody, by which a login attempt shows that it is the one in force.
    salt text,
    -- Processes without a name when it was checked in, which may turn out to be sessions of it.
    starting int[] NOT NULL DEFAULT '{}',
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
-- Nobody has it twice, whatever a broker believes.
CREATE UNIQUE INDEX IF NOT EXISTS checkout_role ON ephor.checkout (role_oid) WHERE state <> 'in';
CREATE INDEX IF NOT EXISTS checkout_oid ON ephor.checkout (role_oid);
CREATE INDEX IF NOT EXISTS checkout_over ON ephor.checkout (at) WHERE state = 'in';
ALTER TABLE ephor.static_role OWNER TO ephor_owner;
ALTER TABLE ephor.checkout OWNER TO ephor_owner;
REVOKE ALL ON ephor.static_role, ephor.checkout FROM PUBLIC;
GRANT SELECT ON ephor.checkout TO ephor_signal;
GRANT SELECT ON ephor.static_role TO @login@;

-- Refuses a role that was not allowed at installing, that no password lets in, that is Ephor's own, or from
-- which a superuser, a maker of roles or the server's own files can be reached.
CREATE OR REPLACE FUNCTION ephor.check_static(p_role name) RETURNS void
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    bad text;
BEGIN
    IF NOT EXISTS (SELECT FROM ephor.static_role s WHERE s.role = p_role) THEN
        RAISE 'the role % is not allowed to be lent here', p_role USING ERRCODE = 'EPH04';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = p_role AND r.rolcanlogin) THEN
        RAISE 'the role % does not exist, or cannot log in', p_role USING ERRCODE = 'EPH04';
    END IF;
    IF p_role ^@ 'eph_' OR p_role ^@ 'pg_' OR p_role IN ('ephor_owner', 'ephor_signal')
       OR EXISTS (SELECT FROM ephor.installation i WHERE i.login = p_role) THEN
        RAISE 'the role % is Ephor''s own, or the server''s', p_role USING ERRCODE = 'EPH04';
    END IF;
    WITH RECURSIVE reach(oid) AS (
        SELECT r.oid FROM pg_roles r WHERE r.rolname = p_role
        UNION
        SELECT m.roleid FROM pg_auth_members m JOIN reach ON m.member = reach.oid
    )
    SELECT r.rolname INTO bad FROM reach JOIN pg_roles r USING (oid)
    WHERE r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls
       OR r.rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files',
                        'pg_signal_backend', 'pg_create_subscription', 'pg_checkpoint', 'pg_maintain',
                        'pg_signal_autovacuum_worker', 'ephor_owner', 'ephor_signal')
       OR EXISTS (SELECT FROM ephor.installation i WHERE i.login = r.rolname)
    LIMIT 1;
    IF FOUND THEN
        RAISE 'whoever has the role % could act as %, which reaches beyond it', p_role, bad USING ERRCODE = 'EPH04';
    END IF;
END
$ephor$;

-- Whether something that had no name when the role was last checked in is a session of it now, or has no
-- name yet: that one could change the password of whoever has it next.
CREATE OR REPLACE FUNCTION ephor.is_haunted(p_oid oid) RETURNS boolean
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
    WITH over AS (
        SELECT c.at, c.starting FROM ephor.checkout c
        WHERE c.role_oid = p_oid AND c.state = 'in' AND c.starting <> '{}' AND c.at > clock_timestamp() - interval '1 day'),
    activity AS MATERIALIZED (SELECT a.pid, a.usesysid, a.backend_start FROM pg_stat_get_activity(NULL) a),
    locks AS MATERIALIZED (SELECT DISTINCT l.pid FROM pg_lock_status() l WHERE l.pid IS NOT NULL)
    SELECT EXISTS (SELECT FROM over JOIN activity a ON a.pid = ANY (over.starting)
                   WHERE a.usesysid = p_oid AND coalesce(a.backend_start < over.at, true))
        OR EXISTS (SELECT FROM over JOIN locks l ON l.pid = ANY (over.starting)
                   WHERE NOT EXISTS (SELECT FROM activity a WHERE a.pid = l.pid))
$ephor$;

-- Lends a role: the one call of a checkout. The row comes first, so whoever checks it in waits for this
-- transaction, and the deadline is judged while the row is held.
CREATE OR REPLACE FUNCTION ephor.check_out(
    p_installation text, p_epoch bigint, p_credential uuid, p_role text, p_valid_until_ms bigint,
    p_verifier text, p_deadline_ms bigint,
    OUT role_oid oid, OUT system_id text, OUT timeline bigint, OUT lsn text, OUT at_ms bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
#variable_conflict use_column
DECLARE
    asked bytea := sha256(convert_to(p_role || chr(31) || p_verifier, 'UTF8'));
    wanted oid := (SELECT r.oid FROM pg_roles r WHERE r.rolname = p_role);
    known ephor.checkout;
BEGIN
    PERFORM ephor.pass(p_installation, p_epoch);
    BEGIN
        INSERT INTO ephor.checkout (credential, installation, role, role_oid, state, digest, deadline, epoch)
        VALUES (p_credential, p_installation, p_role, wanted, 'out', asked, to_timestamp(p_deadline_ms / 1000.0), p_epoch)
        ON CONFLICT (credential) DO NOTHING;
    EXCEPTION WHEN unique_violation THEN
        RAISE 'the role % is checked out, or just being checked in', p_role USING ERRCODE = 'EPH06';
    END;
    IF NOT FOUND THEN
        SELECT * INTO known FROM ephor.checkout c WHERE c.credential = p_credential;
        IF known.state <> 'out' THEN
            RAISE 'checkout % was ended', p_credential USING ERRCODE = 'EPH01';
        ELSIF known.digest IS DISTINCT FROM asked THEN
            RAISE 'checkout % was of something else', p_credential USING ERRCODE = 'EPH05';
        END IF;
        role_oid := known.role_oid;
        SELECT p.system_id, p.timeline, p.lsn, p.at_ms INTO system_id, timeline, lsn, at_ms FROM ephor.place() p;
        RETURN;
    END IF;
    IF clock_timestamp() >= to_timestamp(p_deadline_ms / 1000.0) THEN
        RAISE 'the deadline was %; it is %', to_timestamp(p_deadline_ms / 1000.0), clock_timestamp()
            USING ERRCODE = 'EPH03';
    END IF;
    PERFORM ephor.check_end(p_valid_until_ms);
    PERFORM ephor.check_static(p_role::name);
    IF ephor.is_haunted(wanted) THEN
        RAISE 'a session that was just starting when the role % was last checked in has no name yet', p_role
            USING ERRCODE = 'EPH06';
    END IF;
    EXECUTE format('ALTER ROLE %I PASSWORD %L VALID UNTIL %L', p_role, p_verifier,
        to_timestamp(p_valid_until_ms / 1000.0)::text);
    role_oid := wanted;
    SELECT p.system_id, p.timeline, p.lsn, p.at_ms INTO system_id, timeline, lsn, at_ms FROM ephor.place() p;
END
$ephor$;

-- Moves the end of a password that is out; never of one that was fenced.
CREATE OR REPLACE FUNCTION ephor.extend_checkout(
    p_installation text, p_epoch bigint, p_credential uuid, p_valid_until_ms bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    known ephor.checkout;
    now_called text;
BEGIN
    PERFORM ephor.pass(p_installation, p_epoch);
    PERFORM ephor.check_end(p_valid_until_ms);
    SELECT * INTO known FROM ephor.checkout c WHERE c.credential = p_credential FOR SHARE;
    IF NOT FOUND OR known.state <> 'out' OR known.installation <> p_installation THEN
        RAISE 'checkout % was ended, or never made', p_credential USING ERRCODE = 'EPH01';
    END IF;
    SELECT r.rolname INTO now_called FROM pg_roles r WHERE r.oid = known.role_oid AND r.rolname = known.role;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    EXECUTE format('ALTER ROLE %I VALID UNTIL %L', now_called, to_timestamp(p_valid_until_ms / 1000.0)::text);
    RETURN true;
END
$ephor$;

-- First step of checking in: from here on nobody logs in, and this checkout never begins again. With
-- `p_alone` only the row is written: a session of the role may hold what ALTER ROLE needs. The owner of this
-- function becomes a member of the role until it is in: that right tells which hidden sessions are its.
CREATE OR REPLACE FUNCTION ephor.check_in_fence(
    p_installation text, p_epoch bigint, p_credential uuid, p_role text, p_alone boolean,
    OUT state text, OUT role_oid oid, OUT called text, OUT salt text, OUT at_ms bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
#variable_conflict use_column
DECLARE
    known ephor.checkout;
    may_login boolean;
BEGIN
    PERFORM ephor.pass(p_installation, p_epoch);
    INSERT INTO ephor.checkout (credential, installation, role, state, epoch)
    VALUES (p_credential, p_installation, p_role, 'in', p_epoch) ON CONFLICT (credential) DO NOTHING;
    SELECT * INTO known FROM ephor.checkout c WHERE c.credential = p_credential FOR UPDATE;
    IF known.installation <> p_installation OR known.role <> p_role THEN
        RAISE 'checkout % is of another role, or another installation', p_credential USING ERRCODE = 'EPH05';
    END IF;
    role_oid := known.role_oid;
    SELECT r.rolname, r.rolcanlogin INTO called, may_login FROM pg_roles r WHERE r.oid = known.role_oid;
    IF NOT FOUND AND known.state <> 'in' THEN
        UPDATE ephor.checkout c SET state = 'in', epoch = p_epoch, at = clock_timestamp() WHERE c.credential = p_credential
        RETURNING * INTO known;
    END IF;
    IF known.state <> 'in' THEN
        IF known.state = 'out' THEN
            UPDATE ephor.checkout c SET state = 'fenced', epoch = p_epoch, could_login = may_login, at = clock_timestamp()
            WHERE c.credential = p_credential RETURNING * INTO known;
        END IF;
        IF NOT p_alone THEN
            EXECUTE format('ALTER ROLE %I NOLOGIN PASSWORD NULL', called);
            IF current_setting('server_version_num')::int >= 160000 THEN
                EXECUTE format('GRANT %I TO ephor_owner WITH INHERIT TRUE, SET TRUE', called);
            ELSE
                EXECUTE format('GRANT %I TO ephor_owner', called);
            END IF;
        END IF;
    END IF;
    state := known.state;
    salt := known.salt;
    -- Of a role that somebody has by now nobody asks for the password of nobody.
    IF EXISTS (SELECT FROM ephor.checkout c WHERE c.role_oid = known.role_oid AND c.at > known.at) THEN
        salt := NULL;
        state := CASE known.state WHEN 'in' THEN 'later' ELSE known.state END;
    END IF;
    at_ms := (extract(epoch FROM known.at) * 1000)::bigint;
END
$ephor$;

-- Ends the sessions that show that they are of a role that is fenced.
CREATE OR REPLACE FUNCTION ephor.signal_static(p_credential uuid, OUT pids int[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
BEGIN
    SELECT coalesce(array_agg(a.pid), '{}') INTO pids
    FROM pg_stat_get_activity(NULL) a JOIN ephor.checkout c ON c.role_oid = a.usesysid
    WHERE c.credential = p_credential AND c.state = 'fenced';
    PERFORM pg_terminate_backend(p) FROM unnest(pids) p;
END
$ephor$;

-- Looks for sessions of a fenced role and tells them to end; see end_sessions. A role that is in groups does
-- not tell which hidden ones are its: then they are only named.
CREATE OR REPLACE FUNCTION ephor.check_in_sessions(p_credential uuid, OUT pids int[], OUT hidden int[], OUT starting int[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    fenced oid := (SELECT c.role_oid FROM ephor.checkout c WHERE c.credential = p_credential AND c.state = 'fenced');
    locks int[];
    one int;
BEGIN
    hidden := '{}';
    starting := '{}';
    locks := ARRAY(SELECT DISTINCT l.pid FROM pg_lock_status() l WHERE l.pid IS NOT NULL);
    PERFORM pg_stat_clear_snapshot();
    SELECT s.pids INTO pids FROM ephor.signal_static(p_credential) s;
    FOR one IN SELECT l FROM unnest(locks) l EXCEPT SELECT a.pid FROM pg_stat_get_activity(NULL) a LOOP
        BEGIN
            IF fenced IS NULL OR EXISTS (SELECT FROM pg_auth_members m WHERE m.member = fenced) THEN
                starting := starting || one;
            ELSIF pg_terminate_backend(one) THEN
                hidden := hidden || one;
            END IF;
        EXCEPTION WHEN insufficient_privilege THEN
            starting := starting || one;
        END;
    END LOOP;
END
$ephor$;

-- Last step of checking in: the role logs in again, if it might before, with a password of nobody.
CREATE OR REPLACE FUNCTION ephor.check_in_done(
    p_installation text, p_epoch bigint, p_credential uuid, p_verifier text, p_starting int[], OUT called text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
#variable_conflict use_column
DECLARE
    known ephor.checkout;
BEGIN
    PERFORM ephor.pass(p_installation, p_epoch);
    SELECT * INTO known FROM ephor.checkout c WHERE c.credential = p_credential FOR UPDATE;
    IF NOT FOUND OR known.state <> 'fenced' OR known.installation <> p_installation THEN
        RAISE 'checkout % is not being checked in', p_credential USING ERRCODE = 'EPH08';
    END IF;
    IF EXISTS (SELECT FROM pg_stat_get_activity(NULL) a WHERE a.usesysid = known.role_oid) THEN
        RAISE 'a session of the role % is there again', known.role USING ERRCODE = 'EPH08';
    END IF;
    SELECT r.rolname INTO called FROM pg_roles r WHERE r.oid = known.role_oid;
    IF FOUND THEN
        IF current_setting('server_version_num')::int >= 160000 THEN
            EXECUTE format('REVOKE %I FROM ephor_owner GRANTED BY ephor_owner', called);
        ELSE
            EXECUTE format('REVOKE %I FROM ephor_owner', called);
        END IF;
        EXECUTE format('ALTER ROLE %I %s PASSWORD %L VALID UNTIL %L', called,
            CASE WHEN known.could_login THEN 'LOGIN' ELSE 'NOLOGIN' END, p_verifier, 'infinity');
    END IF;
    UPDATE ephor.checkout c SET state = 'in', epoch = p_epoch, starting = p_starting, at = clock_timestamp(),
        salt = substring(p_verifier FROM '^SCRAM-SHA-256\$[0-9]+:([^$]+)\$')
    WHERE c.credential = p_credential;
END
$ephor$;

-- What is left of a checkout: the role, as it is called, and sessions of before it was in. Ends those. Also
-- on a standby.
CREATE OR REPLACE FUNCTION ephor.check_in_census(p_credential uuid, p_starting int[],
    OUT state text, OUT present boolean, OUT sessions int, OUT starting int[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    known ephor.checkout;
    pids int[];
    locks int[] := ARRAY(SELECT DISTINCT l.pid FROM pg_lock_status() l WHERE l.pid = ANY (p_starting));
BEGIN
    PERFORM pg_stat_clear_snapshot();
    SELECT * INTO known FROM ephor.checkout c WHERE c.credential = p_credential;
    state := known.state;
    present := EXISTS (SELECT FROM pg_roles r WHERE r.oid = known.role_oid);
    pids := ARRAY(SELECT a.pid FROM pg_stat_get_activity(NULL) a
                  WHERE a.usesysid = known.role_oid AND known.state <> 'out'
                    AND (known.state = 'fenced' OR coalesce(a.backend_start < known.at, true)));
    sessions := cardinality(pids);
    PERFORM pg_terminate_backend(p) FROM unnest(pids) p;
    starting := ARRAY(SELECT l FROM unnest(locks) l EXCEPT SELECT a.pid FROM pg_stat_get_activity(NULL) a);
END
$ephor$;

-- Roles that are out or being checked in, whoever lent them, and who is connected with them.
CREATE OR REPLACE FUNCTION ephor.checkouts()
RETURNS TABLE (installation text, role text, now text, role_oid oid, credential uuid, fenced boolean, can_login boolean,
               attributes text[], valid_until_ms bigint, sessions int)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
    SELECT c.installation, c.role::text, r.rolname::text, c.role_oid, c.credential, c.state = 'fenced', coalesce(r.rolcanlogin, false),
        array_remove(ARRAY[CASE WHEN r.rolsuper THEN 'superuser' END, CASE WHEN r.rolcreaterole THEN 'createrole' END,
            CASE WHEN r.rolcreatedb THEN 'createdb' END, CASE WHEN r.rolreplication THEN 'replication' END,
            CASE WHEN r.rolbypassrls THEN 'bypassrls' END], NULL),
        CASE WHEN isfinite(r.rolvaliduntil) THEN (extract(epoch FROM r.rolvaliduntil) * 1000)::bigint END,
        (SELECT count(*)::int FROM pg_stat_get_activity(NULL) a WHERE a.usesysid = c.role_oid)
    FROM ephor.checkout c LEFT JOIN pg_roles r ON r.oid = c.role_oid WHERE c.state <> 'in'
$ephor$;

CREATE OR REPLACE FUNCTION ephor.checkout_uses(p_installation text)
RETURNS TABLE (role text, role_oid oid, pid int, address text, database text, since_ms bigint, last_ms bigint)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
    SELECT c.role::text, a.usesysid, a.pid, host(a.client_addr), d.datname::text,
        (extract(epoch FROM a.backend_start) * 1000)::bigint,
        (extract(epoch FROM coalesce(a.state_change, a.backend_start)) * 1000)::bigint
    FROM pg_stat_get_activity(NULL) a JOIN ephor.checkout c ON c.role_oid = a.usesysid AND c.state <> 'in' AND c.installation = p_installation
    LEFT JOIN pg_database d ON d.oid = a.datid
$ephor$;

-- Forgets checkouts that are over for long.
CREATE OR REPLACE FUNCTION ephor.prune_checkouts(p_seconds bigint) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    n int;
BEGIN
    DELETE FROM ephor.checkout c WHERE c.state = 'in'
      AND c.at < clock_timestamp() - make_interval(secs => greatest(p_seconds, 86400))
      AND coalesce(c.deadline, c.at) < clock_timestamp() - interval '1 day';
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END
$ephor$;

DO $ephor$
DECLARE
    one record;
BEGIN
    FOR one IN
        SELECT p.oid::regprocedure AS signature, p.proname FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'ephor'::regnamespace AND p.proname IN (
            'check_static', 'is_haunted', 'check_out', 'extend_checkout', 'check_in_fence', 'signal_static', 'check_in_sessions',
            'check_in_done', 'check_in_census', 'checkouts', 'checkout_uses', 'prune_checkouts')
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC, %I', one.signature, @login_text@);
        EXECUTE format('ALTER FUNCTION %s OWNER TO %I', one.signature,
            CASE WHEN one.proname IN ('signal_static', 'check_in_census', 'checkouts', 'checkout_uses', 'is_haunted')
                 THEN 'ephor_signal' ELSE 'ephor_owner' END);
        IF one.proname NOT IN ('check_static', 'is_haunted', 'signal_static') THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', one.signature, @login_text@);
        END IF;
    END LOOP;
END
$ephor$;
GRANT EXECUTE ON FUNCTION ephor.signal_static(uuid), ephor.is_haunted(oid) TO ephor_owner;
REVOKE CREATE ON SCHEMA ephor FROM ephor_signal;
@static@
