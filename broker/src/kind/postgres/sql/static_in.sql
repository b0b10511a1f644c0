
-- First step of checking in: from here on nobody logs in. With `p_alone` only the row is written: a session of
-- the role may hold what ALTER ROLE needs. The owner of this function becomes a member of the role until it
-- is in: that right tells which hidden sessions are its. One that is `in` goes through all of it again, unless
-- somebody was lent the role since, or took it back (`later`): whoever calls knows of no proof.
CREATE OR REPLACE FUNCTION ephor.check_in_fence(
    p_installation text, p_epoch bigint, p_credential uuid, p_role text, p_alone boolean,
    OUT state text, OUT role_oid oid, OUT called text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
#variable_conflict use_column
DECLARE
    known ephor.checkout;
    may_login boolean;
    one name;
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
    IF NOT FOUND THEN
        state := 'in';
        UPDATE ephor.checkout c SET state = 'in', epoch = p_epoch, at = clock_timestamp()
        WHERE c.credential = p_credential AND c.state <> 'in';
        RETURN;
    ELSIF known.state = 'in' AND NOT ephor.is_newest(known.role_oid, p_credential) THEN
        state := 'later';
        RETURN;
    ELSIF known.state <> 'fenced' THEN
        BEGIN
            UPDATE ephor.checkout c SET state = 'fenced', epoch = p_epoch, at = clock_timestamp(), could_login =
                CASE WHEN known.state = 'out' THEN coalesce(c.could_login, may_login) ELSE c.could_login OR may_login END
            WHERE c.credential = p_credential;
        EXCEPTION WHEN unique_violation THEN
            state := 'later';
            RETURN;
        END;
    END IF;
    state := 'fenced';
    IF p_alone THEN
        RETURN;
    END IF;
    EXECUTE format('ALTER ROLE %I NOLOGIN PASSWORD NULL', called);
    UPDATE ephor.checkout c SET salt = NULL WHERE c.credential = p_credential;
    IF current_setting('server_version_num')::int >= 160000 THEN
        EXECUTE format('GRANT %I TO ephor_owner WITH INHERIT TRUE, SET TRUE', called);
    ELSE
        EXECUTE format('GRANT %I TO ephor_owner', called);
    END IF;
    -- Nobody was one when it was lent.
    FOREACH one IN ARRAY ephor.members_of(known.role_oid) LOOP
        BEGIN
            EXECUTE format('REVOKE %I FROM %I', called, one);
        EXCEPTION WHEN insufficient_privilege THEN
            -- Granted by somebody stronger: it is named at the end, and not lent again.
            NULL;
        END;
    END LOOP;
END
$ephor$;

-- Whether nobody was lent the role after this checkout, and it may still be lent.
CREATE OR REPLACE FUNCTION ephor.is_newest(p_oid oid, p_credential uuid) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
    SELECT EXISTS (SELECT FROM ephor.static_role s JOIN pg_roles r ON r.rolname = s.role WHERE r.oid = p_oid)
       AND NOT EXISTS (SELECT FROM ephor.checkout c JOIN ephor.checkout l ON l.role_oid = c.role_oid
                       WHERE c.credential = p_credential AND l.credential <> c.credential AND (l.state <> 'in' OR l.at > c.at))
$ephor$;

-- Ends the sessions that show that they are of a role that is fenced.
CREATE OR REPLACE FUNCTION ephor.signal_static(p_credential uuid, OUT pids int[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
BEGIN
    SELECT coalesce(array_agg(s.pid), '{}') INTO pids
    FROM ephor.session s JOIN ephor.checkout c ON c.role_oid = s.role_oid
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
    unnamed int[] := ephor.nameless();
    one int;
BEGIN
    hidden := '{}';
    starting := '{}';
    SELECT s.pids INTO pids FROM ephor.signal_static(p_credential) s;
    FOREACH one IN ARRAY unnamed LOOP
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

-- Prepared transactions of a checkout's role: they hold what they changed until somebody ends them, and a
-- later session of the role can commit them.
CREATE OR REPLACE FUNCTION ephor.prepared_of(p_credential uuid) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
    SELECT string_agg(format('%L in %s', regexp_replace(left(p.gid, 80), '[^ -~]', '?', 'g'), p.database), ', ')
    FROM (SELECT t.gid, d.datname AS database FROM pg_prepared_xact() t LEFT JOIN pg_database d ON d.oid = t.dbid
          WHERE t.ownerid = (SELECT c.role_oid FROM ephor.checkout c WHERE c.credential = p_credential)
          ORDER BY t.prepared LIMIT 8) p
$ephor$;

-- Sets the settings of a role to those of before. Says which it was, and which cannot be set by us.
CREATE OR REPLACE FUNCTION ephor.restore_settings(p_oid oid, p_called text, p_before jsonb) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    -- Their value is a list of names, of which each is quoted for itself.
    lists text[] := ARRAY['search_path', 'temp_tablespaces', 'local_preload_libraries', 'session_preload_libraries'];
    one record;
    back text[] := '{}';
    kept text[];
    value text;
BEGIN
    FOR one IN SELECT * FROM ephor.settings_changed(p_oid, p_before) LOOP
        value := quote_literal(one.value);
        IF lower(one.name) = ANY (lists) THEN
            SELECT coalesce(string_agg(quote_literal(coalesce(lower(m[2]), replace(m[1], '""', '"'))), ', ' ORDER BY n), '''''')
            INTO value FROM regexp_matches(one.value, '"((?:[^"]|"")*)"|([^,"\s]+)', 'g') WITH ORDINALITY AS x(m, n)
            WHERE one.value IS NOT NULL;
        END IF;
        BEGIN
            EXECUTE format('ALTER ROLE %I%s %s', p_called,
                CASE one.database WHEN '' THEN '' ELSE format(' IN DATABASE %I', one.database) END,
                CASE WHEN one.value IS NULL THEN format('RESET %I', one.name) ELSE format('SET %I TO %s', one.name, value) END);
            back := back || regexp_replace(left(one.name, 63), '[^ -~]', '?', 'g');
        EXCEPTION
            WHEN lock_not_available OR deadlock_detected THEN
                RAISE;
            WHEN OTHERS THEN
                -- Only a superuser sets it: then it was no task that did. It is named below.
                NULL;
        END;
    END LOOP;
    kept := ARRAY(SELECT regexp_replace(left(c.name, 63), '[^ -~]', '?', 'g') FROM ephor.settings_changed(p_oid, p_before) c);
    RETURN nullif(concat_ws('; ',
        'settings of the role that were put back: ' || nullif(array_to_string(ARRAY(
            SELECT DISTINCT b FROM unnest(back) b WHERE b <> ALL (kept) ORDER BY b LIMIT 8), ', '), ''),
        'settings of the role that are not as before: ' || nullif(array_to_string(ARRAY(
            SELECT DISTINCT k FROM unnest(kept) k ORDER BY k LIMIT 8), ', '), '')), '');
END
$ephor$;

-- Second step of checking in, once no session is left: a password of nobody. It does not log in with that
-- either, which is what can be shown: the server takes the password and then says that it may not.
CREATE OR REPLACE FUNCTION ephor.check_in_set(
    p_installation text, p_epoch bigint, p_credential uuid, p_verifier text, p_starting int[], OUT settings text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
#variable_conflict use_column
DECLARE
    known ephor.checkout;
    called text;
BEGIN
    PERFORM ephor.pass(p_installation, p_epoch);
    SELECT * INTO known FROM ephor.checkout c WHERE c.credential = p_credential FOR UPDATE;
    SELECT r.rolname INTO called FROM pg_roles r WHERE r.oid = known.role_oid;
    IF NOT FOUND OR known.state <> 'fenced' OR known.installation <> p_installation THEN
        RAISE 'checkout % is not being checked in, or its role was dropped', p_credential USING ERRCODE = 'EPH08';
    ELSIF EXISTS (SELECT FROM ephor.session s WHERE s.role_oid = known.role_oid) THEN
        RAISE 'a session of the role % is there again', known.role USING ERRCODE = 'EPH08';
    END IF;
    IF known.settings IS NOT NULL THEN
        settings := ephor.restore_settings(known.role_oid, called, known.settings);
    END IF;
    EXECUTE format('ALTER ROLE %I NOLOGIN PASSWORD %L VALID UNTIL %L', called, p_verifier, 'infinity');
    UPDATE ephor.checkout c SET starting = p_starting, salt = substring(p_verifier FROM '^SCRAM-SHA-256\$[0-9]+:([^$]+)\$')
    WHERE c.credential = p_credential;
END
$ephor$;

-- Last step of checking in: the role may be lent again. Says what goes on of what its rights were used for.
CREATE OR REPLACE FUNCTION ephor.check_in_done(p_installation text, p_epoch bigint, p_credential uuid, OUT remains text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
#variable_conflict use_column
DECLARE
    known ephor.checkout;
    called text;
BEGIN
    PERFORM ephor.pass(p_installation, p_epoch);
    SELECT * INTO known FROM ephor.checkout c WHERE c.credential = p_credential FOR UPDATE;
    SELECT r.rolname INTO called FROM pg_roles r WHERE r.oid = known.role_oid AND NOT r.rolcanlogin;
    -- Without salt: another try at the same has just begun, and taken the password of nobody away.
    IF NOT FOUND OR known.state <> 'fenced' OR known.salt IS NULL OR known.installation <> p_installation THEN
        RAISE 'checkout % is not being checked in, or somebody lets its role log in', p_credential USING ERRCODE = 'EPH08';
    ELSIF EXISTS (SELECT FROM ephor.session s WHERE s.role_oid = known.role_oid) THEN
        RAISE 'a session of the role % is there again', known.role USING ERRCODE = 'EPH08';
    END IF;
    IF current_setting('server_version_num')::int >= 160000 THEN
        EXECUTE format('REVOKE %I FROM ephor_owner GRANTED BY ephor_owner', called);
    ELSE
        EXECUTE format('REVOKE %I FROM ephor_owner', called);
    END IF;
    UPDATE ephor.checkout c SET state = 'in', epoch = p_epoch, at = clock_timestamp() WHERE c.credential = p_credential;
    remains := concat_ws('; ',
        'somebody shut it meanwhile, and it is not lent' || CASE WHEN known.could_login THEN NULL ELSE '' END,
        'others may act as it, and it is not lent before these are revoked: '
            || nullif(array_to_string((ephor.members_of(known.role_oid))[:8], ', '), ''),
        'prepared transactions of it: ' || ephor.prepared_of(p_credential),
        (SELECT 'functions of it, which may act as it: '
                || string_agg(format('%s in %s', f.n, f.datname), ', ' ORDER BY f.datname)
         FROM (SELECT d.datname, count(*) AS n FROM pg_shdepend s JOIN pg_database d ON d.oid = s.dbid
               WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = known.role_oid AND s.deptype = 'o'
                 AND s.classid = 'pg_proc'::regclass GROUP BY d.datname ORDER BY d.datname LIMIT 8) f));
END
$ephor$;

-- What is left of a checkout, and ends sessions that must not be: all of them while nobody was lent the role
-- since, else those of before it was in. Also on a standby. `can_login`: it is open to whoever knows
-- its password, and no task has it. Names and salt of one that was lent since are none of ours.
CREATE OR REPLACE FUNCTION ephor.check_in_census(p_credential uuid, p_starting int[],
    OUT state text, OUT can_login boolean, OUT sessions int, OUT starting int[], OUT called text, OUT salt text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    known ephor.checkout;
    newest boolean;
    pids int[];
    unnamed int[] := ephor.nameless();
BEGIN
    SELECT * INTO known FROM ephor.checkout c WHERE c.credential = p_credential;
    state := known.state;
    newest := known.state = 'in' AND ephor.is_newest(known.role_oid, p_credential);
    can_login := newest AND EXISTS (SELECT FROM pg_roles r WHERE r.oid = known.role_oid AND r.rolcanlogin);
    pids := ARRAY(SELECT a.pid FROM pg_stat_get_activity(NULL) a
                  WHERE a.usesysid = known.role_oid AND known.state <> 'out'
                    AND (known.state = 'fenced' OR newest OR coalesce(a.backend_start < known.at, true)));
    sessions := cardinality(pids);
    PERFORM pg_terminate_backend(p) FROM unnest(pids) p;
    starting := ARRAY(SELECT u FROM unnest(unnamed) u WHERE u = ANY (p_starting));
    IF newest THEN
        SELECT r.rolname, known.salt INTO called, salt FROM pg_roles r WHERE r.oid = known.role_oid;
    END IF;
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
        (SELECT count(*)::int FROM ephor.session s WHERE s.role_oid = c.role_oid)
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

-- Forgets checkouts that are over for long; never the last one of a role, which says that it was we who shut it.
CREATE OR REPLACE FUNCTION ephor.prune_checkouts(p_seconds bigint) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    n int;
BEGIN
    DELETE FROM ephor.checkout c WHERE c.state = 'in'
      AND c.at < clock_timestamp() - make_interval(secs => greatest(p_seconds, 86400))
      AND coalesce(c.deadline, c.at) < clock_timestamp() - interval '1 day'
      AND (NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = c.role_oid)
           OR EXISTS (SELECT FROM ephor.checkout l WHERE l.role_oid = c.role_oid AND l.at > c.at));
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END
$ephor$;

-- Those of `ephor_signal` see and end sessions. The others that the broker does not call are for these.
DO $ephor$
DECLARE
    one record;
BEGIN
    FOR one IN
        SELECT p.oid::regprocedure AS signature, p.proname FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'ephor'::regnamespace AND p.proname IN (
            'members_of', 'is_kept', 'why_not_lent', 'check_out', 'take', 'is_taken', 'extend_checkout', 'settings_of',
            'settings_changed', 'check_in_fence', 'is_newest', 'signal_static', 'check_in_sessions', 'prepared_of',
            'restore_settings', 'check_in_set', 'check_in_done', 'check_in_census', 'checkouts', 'checkout_uses',
            'prune_checkouts')
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC, %I', one.signature, @login_text@);
        EXECUTE format('ALTER FUNCTION %s OWNER TO %I', one.signature,
            CASE WHEN one.proname IN ('signal_static', 'check_in_census', 'checkouts', 'checkout_uses')
                 THEN 'ephor_signal' ELSE 'ephor_owner' END);
        IF one.proname NOT IN ('members_of', 'is_kept', 'is_taken', 'settings_of', 'settings_changed', 'is_newest',
                               'signal_static', 'restore_settings') THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', one.signature, @login_text@);
        END IF;
    END LOOP;
END
$ephor$;
GRANT EXECUTE ON FUNCTION ephor.signal_static(uuid) TO ephor_owner;
GRANT EXECUTE ON FUNCTION ephor.is_newest(oid, uuid) TO ephor_signal;
REVOKE CREATE ON SCHEMA ephor FROM ephor_signal;
@static@
