-- Schema of Ephor in a database that only it uses: the fence, and what the broker may call.
-- Every function is owned by a role that nobody logs in as, and finds only what the server itself
-- and this schema define. Nothing here calls SET ROLE.

CREATE SCHEMA IF NOT EXISTS ephor;
DO $ephor$
BEGIN
    IF (SELECT r.rolname FROM pg_catalog.pg_namespace n
        JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner WHERE n.nspname = 'ephor')
       NOT IN ('ephor_owner', current_user) THEN
        RAISE 'a schema "ephor" of somebody else is in the way';
    END IF;
    IF pg_catalog.to_regclass('ephor.version') IS NOT NULL THEN
        IF (SELECT max(version) FROM ephor.version) > @version@ THEN
            RAISE 'a newer Ephor has installed version % here; this is version @version@',
                (SELECT max(version) FROM ephor.version);
        END IF;
        -- These answer otherwise now, which cannot be replaced.
        IF (SELECT max(version) FROM ephor.version) < 3 THEN
            DROP FUNCTION IF EXISTS ephor.drop_logins(bigint, uuid[]);
            DROP FUNCTION IF EXISTS ephor.fence_login(bigint, uuid[], text[]);
        END IF;
    END IF;
END
$ephor$;
ALTER SCHEMA ephor OWNER TO ephor_owner;
REVOKE ALL ON SCHEMA ephor FROM PUBLIC;
GRANT USAGE ON SCHEMA ephor TO ephor_owner, ephor_signal, @login@;
-- To be given functions it needs this for a moment.
GRANT CREATE ON SCHEMA ephor TO ephor_signal;

CREATE TABLE IF NOT EXISTS ephor.version (version int PRIMARY KEY, installed_at timestamptz NOT NULL DEFAULT now());

-- Which login speaks for which installation, and since which epoch. Whoever passes holds his row until
-- the transaction ends; raising the epoch waits for those who do. No installation waits for another.
CREATE TABLE IF NOT EXISTS ephor.installation (
    installation text PRIMARY KEY,
    login name NOT NULL,
    epoch bigint NOT NULL
);

-- The fence: one row per credential. What is dead here is never made again.
CREATE TABLE IF NOT EXISTS ephor.fence (
    credential uuid PRIMARY KEY,
    role name NOT NULL,
    role_oid oid,
    dead boolean NOT NULL,
    -- Of what was asked for: the same call again has the same answer, another one is refused.
    digest bytea,
    -- When the intent is void, by this server's clock.
    deadline timestamptz,
    -- The latest end that was asked for. No end is ever moved back: what is to end sooner is revoked.
    valid_until timestamptz,
    epoch bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Group roles that logins may be made of: what whoever installs allows, not what the broker asks.
CREATE TABLE IF NOT EXISTS ephor.allowed (role name PRIMARY KEY);

-- Each of these statements locks its table until the end, even where IF NOT EXISTS finds that there is nothing to do.
-- While this is run again logins are made and ended, so nothing is made or changed that is there.
DO $ephor$
DECLARE
    one regclass;
BEGIN
    IF pg_catalog.to_regclass('ephor.fence_role_oid') IS NULL THEN
        CREATE INDEX fence_role_oid ON ephor.fence (role_oid);
    END IF;
    IF pg_catalog.to_regclass('ephor.fence_role') IS NULL THEN
        CREATE INDEX fence_role ON ephor.fence (role);
    END IF;
    -- Of all rows, not only of the dead: where there were none when it was analyzed, such an index promises to find
    -- a few of them at once, and is then read whole for each.
    IF pg_catalog.to_regclass('ephor.fence_at') IS NULL THEN
        CREATE INDEX fence_at ON ephor.fence (at);
    END IF;
    IF pg_catalog.to_regclass('ephor.fence_dead_at') IS NOT NULL THEN
        DROP INDEX ephor.fence_dead_at;
    END IF;
    IF pg_catalog.to_regclass('ephor.session') IS NULL
       OR coalesce((SELECT max(v.version) FROM ephor.version v), 0) < 2 THEN
        -- Whose process is whose; 0 is nobody's, or that of a session which is just starting. pg_stat_activity shows
        -- the same and takes three times as long for it where many are connected.
        CREATE OR REPLACE VIEW ephor.session AS
            SELECT pg_catalog.pg_stat_get_backend_pid(b) AS pid, pg_catalog.pg_stat_get_backend_userid(b) AS role_oid
            FROM pg_catalog.pg_stat_get_backend_idset() b;
    END IF;
@owned@
END
$ephor$;
REVOKE ALL ON ALL TABLES IN SCHEMA ephor FROM PUBLIC;
GRANT SELECT ON ephor.fence, ephor.session TO ephor_signal;
GRANT SELECT ON ephor.version, ephor.allowed TO @login@;

-- Where this server stands: who it is, and how far it has come.
CREATE OR REPLACE FUNCTION ephor.place(OUT system_id text, OUT timeline bigint, OUT lsn text, OUT at_ms bigint)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $ephor$
BEGIN
    BEGIN
        SELECT s.system_identifier::text INTO system_id FROM pg_control_system() s;
    EXCEPTION WHEN insufficient_privilege THEN
        system_id := '';
    END;
    IF pg_is_in_recovery() THEN
        lsn := pg_last_wal_replay_lsn()::text;
        BEGIN
            SELECT c.timeline_id INTO timeline FROM pg_control_checkpoint() c;
        EXCEPTION WHEN insufficient_privilege THEN
            timeline := 0;
        END;
    ELSE
        lsn := pg_current_wal_lsn()::text;
        timeline := ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint;
    END IF;
    at_ms := (extract(epoch FROM clock_timestamp()) * 1000)::bigint;
END
$ephor$;

-- The installation that a login's name belongs to; NULL if it is no name of ours.
CREATE OR REPLACE FUNCTION ephor.installation_of(p_role text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $ephor$
BEGIN
    -- Not by substring() with parentheses: that takes three times as long.
    RETURN CASE WHEN p_role ~ '^eph_[a-z0-9_]{0,20}_[0-9a-hjkmnp-tv-z]{6}_[0-9a-hjkmnp-tv-z]{26}$'
                THEN left(right(p_role, 33), 6) END;
END
$ephor$;

-- Says that an epoch is over. Whoever stole the broker's password can begin a later one: then a person
-- takes it back.
CREATE OR REPLACE FUNCTION ephor.over(p_installation text, p_epoch bigint, p_begun bigint) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $ephor$
BEGIN
    RAISE 'epoch % is over; epoch % has begun', p_epoch, p_begun USING ERRCODE = 'EPH01',
        HINT = format('If no other broker of yours began it, change the password of %I, then in this database: '
                      'UPDATE ephor.installation SET epoch = %s WHERE installation = %L',
                      session_user, p_epoch, p_installation);
END
$ephor$;

-- Refuses a caller that does not speak for the installation, or of an earlier epoch. Whoever
-- passed holds the installation's row until the end of the transaction.
CREATE OR REPLACE FUNCTION ephor.pass(p_installation text, p_epoch bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    known ephor.installation;
BEGIN
    SELECT * INTO known FROM ephor.installation i WHERE i.installation = p_installation FOR SHARE;
    IF NOT FOUND THEN
        RAISE 'unknown installation %', p_installation USING ERRCODE = 'EPH02';
    ELSIF known.login <> session_user THEN
        RAISE 'installation % belongs to the login %, not to %', p_installation, known.login, session_user
            USING ERRCODE = 'EPH05';
    ELSIF p_epoch < known.epoch THEN
        PERFORM ephor.over(p_installation, p_epoch, known.epoch);
    ELSIF p_epoch > known.epoch THEN
        RAISE 'epoch % has not begun', p_epoch USING ERRCODE = 'EPH02';
    END IF;
END
$ephor$;

-- Begins an epoch, or makes an installation known: the login that speaks for it first keeps it.
-- Waits until every transaction of the epoch before has ended. Epochs go up one by one, and a broker
-- counts them in 32 bits: nobody may use them up.
CREATE OR REPLACE FUNCTION ephor.begin_epoch(p_installation text, p_epoch bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    known ephor.installation;
BEGIN
    IF p_installation !~ '^[0-9a-hjkmnp-tv-z]{6}$' THEN
        RAISE 'not an installation: %', p_installation USING ERRCODE = 'EPH05';
    ELSIF p_epoch NOT BETWEEN 0 AND 4294967295 THEN
        RAISE 'no epoch: %', p_epoch USING ERRCODE = 'EPH05';
    END IF;
    PERFORM FROM ephor.installation i
    WHERE i.installation = p_installation AND i.login = session_user AND i.epoch = p_epoch;
    IF FOUND THEN
        RETURN p_epoch;
    END IF;
    INSERT INTO ephor.installation VALUES (p_installation, session_user, p_epoch) ON CONFLICT DO NOTHING;
    IF FOUND THEN
        RETURN p_epoch;
    END IF;
    SELECT * INTO known FROM ephor.installation i WHERE i.installation = p_installation FOR UPDATE;
    IF known.login <> session_user THEN
        RAISE 'installation % belongs to the login %, not to %', p_installation, known.login, session_user
            USING ERRCODE = 'EPH05';
    ELSIF p_epoch < known.epoch THEN
        PERFORM ephor.over(p_installation, p_epoch, known.epoch);
    ELSIF p_epoch > known.epoch + 1000 THEN
        RAISE 'no epoch: % is far beyond %', p_epoch, known.epoch USING ERRCODE = 'EPH05';
    END IF;
    UPDATE ephor.installation i SET epoch = p_epoch WHERE i.installation = p_installation;
    RETURN p_epoch;
END
$ephor$;

-- Quoted for a POSIX shell, where it needs to be.
CREATE OR REPLACE FUNCTION ephor.shell_quoted(p_text text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $ephor$
    SELECT CASE WHEN p_text ~ '^[A-Za-z0-9/._:@%,=+-]+$' THEN p_text
                ELSE chr(39) || replace(p_text, chr(39), chr(39) || chr(92) || chr(39) || chr(39)) || chr(39) END
$ephor$;

-- Refuses a group that could do more than it should: one that was not allowed at installing, that
-- logs in, or from which a superuser, a maker of roles or the server's own files can be reached.
CREATE OR REPLACE FUNCTION ephor.check_groups(p_groups name[]) RETURNS void
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    bad text;
    more oid[];
    reach oid[];
BEGIN
    SELECT g INTO bad FROM unnest(p_groups) g
    WHERE NOT EXISTS (SELECT FROM ephor.allowed a WHERE a.role = g) LIMIT 1;
    IF FOUND THEN
        RAISE 'logins of the role % are not allowed here', bad USING ERRCODE = 'EPH04',
            HINT = format('to mend it: ephor target init URL --group %s', ephor.shell_quoted(bad));
    END IF;
    SELECT g INTO bad FROM unnest(p_groups) g
    WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = g AND NOT r.rolcanlogin) LIMIT 1;
    IF FOUND THEN
        RAISE 'the role % does not exist, or can log in itself', bad USING ERRCODE = 'EPH04';
    END IF;
    -- Step by step: a recursive query costs several times that.
    more := ARRAY(SELECT r.oid FROM pg_roles r WHERE r.rolname = ANY (p_groups));
    WHILE cardinality(more) > 0 LOOP
        reach := reach || more;
        more := ARRAY(SELECT DISTINCT m.roleid FROM unnest(more) AS u(oid) CROSS JOIN LATERAL (
                          SELECT m.roleid FROM pg_auth_members m WHERE m.member = u.oid OFFSET 0) m
                      WHERE m.roleid <> ALL (reach));
    END LOOP;
    SELECT r.rolname INTO bad FROM pg_roles r
    WHERE r.oid = ANY (reach) AND (@beyond@ OR r.rolname = session_user)
    ORDER BY array_position(reach, r.oid) LIMIT 1;
    IF FOUND THEN
        RAISE 'a login of this role could act as %, which reaches beyond it', bad USING ERRCODE = 'EPH04';
    END IF;
END
$ephor$;

-- Refuses an end that nobody who asks for a login of a task can mean.
CREATE OR REPLACE FUNCTION ephor.check_end(p_valid_until_ms bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $ephor$
BEGIN
    IF to_timestamp(p_valid_until_ms / 1000.0) > clock_timestamp() + interval '90 days' THEN
        RAISE 'a login ends within 90 days, and not at %', to_timestamp(p_valid_until_ms / 1000.0)
            USING ERRCODE = 'EPH04';
    END IF;
END
$ephor$;

-- Makes one login, or says again what was made: the one call of a mint. The fence row comes first, so
-- whoever revokes waits for this transaction, and the deadline is judged while the row is held.
CREATE OR REPLACE FUNCTION ephor.mint(
    p_epoch bigint, p_credential uuid, p_role text, p_groups text[], p_valid_until_ms bigint,
    p_connections int, p_verifier text, p_settings text[], p_deadline_ms bigint,
    OUT role_oid oid, OUT system_id text, OUT timeline bigint, OUT lsn text, OUT at_ms bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp @by_index@ AS $ephor$
DECLARE
    asked bytea := sha256(convert_to(concat_ws(chr(31), p_role, p_groups::text, p_verifier, p_settings::text,
                                               p_connections::text), 'UTF8'));
    until text := quote_literal(to_timestamp(p_valid_until_ms / 1000.0)::text);
    known ephor.fence;
    n int;
BEGIN
    PERFORM ephor.pass(coalesce(ephor.installation_of(p_role), '?'), p_epoch);
    INSERT INTO ephor.fence (credential, role, dead, digest, deadline, valid_until, epoch)
    VALUES (p_credential, p_role, false, asked, to_timestamp(p_deadline_ms / 1000.0),
            to_timestamp(p_valid_until_ms / 1000.0), p_epoch)
    ON CONFLICT (credential) DO NOTHING;
    IF NOT FOUND THEN
        SELECT * INTO known FROM ephor.fence f WHERE f.credential = p_credential;
        IF known.dead THEN
            RAISE 'credential % was revoked', p_credential USING ERRCODE = 'EPH01';
        ELSIF known.digest <> asked THEN
            RAISE 'credential % was made with another content', p_credential USING ERRCODE = 'EPH05';
        END IF;
        PERFORM FROM pg_roles r WHERE r.oid = known.role_oid;
        IF NOT FOUND THEN
            RAISE 'the role % was dropped by somebody else', p_role USING ERRCODE = 'EPH05';
        END IF;
        role_oid := known.role_oid;
        SELECT p.system_id, p.timeline, p.lsn, p.at_ms INTO system_id, timeline, lsn, at_ms FROM ephor.place() p;
        RETURN;
    END IF;
    IF clock_timestamp() >= to_timestamp(p_deadline_ms / 1000.0) THEN
        RAISE 'the deadline was %; it is %', to_timestamp(p_deadline_ms / 1000.0), clock_timestamp()
            USING ERRCODE = 'EPH03';
    END IF;
    IF coalesce(array_length(p_groups, 1), 0) = 0 THEN
        RAISE 'no group role' USING ERRCODE = 'EPH04';
    END IF;
    PERFORM ephor.check_groups(p_groups::name[]);
    PERFORM ephor.check_end(p_valid_until_ms);
    IF p_verifier IS NULL THEN
        -- Such a role has no rights, or it would hand them to every login with a certificate.
        IF (SELECT NOT r.rolcanlogin AND (SELECT count(*) FROM (
                       SELECT FROM pg_auth_members m WHERE m.member = r.oid LIMIT 1) m) = 0
            FROM pg_roles r WHERE r.rolname = 'ephor_certificate') IS NOT TRUE THEN
            RAISE 'the role ephor_certificate is not there, can log in or is in another role'
                USING ERRCODE = 'EPH04';
        END IF;
    END IF;
    EXECUTE format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT '
                   'CONNECTION LIMIT %s VALID UNTIL %s %s IN ROLE %s',
                   p_role, coalesce(p_connections, -1), until,
                   CASE WHEN p_verifier IS NULL THEN '' ELSE 'PASSWORD ' || quote_literal(p_verifier) END,
                   (SELECT string_agg(quote_ident(g), ', ') FROM unnest(p_groups) g)
                   || CASE WHEN p_verifier IS NULL THEN ', ephor_certificate' ELSE '' END);
    -- The server refuses ALTER ROLE .. SET role in a function that runs as its owner: that sessions
    -- start as the group is asked at their start, by what the client is handed.
    FOR n IN 1 .. coalesce(array_length(p_settings, 1), 0) BY 2 LOOP
        IF p_settings[n] !~ '^[a-z_][a-z0-9_]*([.][a-z_][a-z0-9_]*)?$'
           OR p_settings[n] IN ('role', 'session_authorization') THEN
            RAISE 'not a setting for a login: %', p_settings[n] USING ERRCODE = 'EPH04';
        END IF;
        EXECUTE format('ALTER ROLE %I SET %s = %s', p_role, p_settings[n],
            -- In a list each name is quoted for itself.
            CASE WHEN p_settings[n] IN ('search_path', 'temp_tablespaces') THEN (
                SELECT string_agg(quote_literal(CASE WHEN v ~ '^".*"$' THEN btrim(v, '"') ELSE lower(v) END), ', ' ORDER BY i)
                FROM unnest(string_to_array(p_settings[n + 1] || ',', ',')) WITH ORDINALITY u(raw, i), btrim(raw) v
                WHERE v <> '' OR i = 1)
            ELSE quote_literal(p_settings[n + 1]) END);
    END LOOP;
    UPDATE ephor.fence f SET role_oid = to_regrole(p_role)::oid WHERE f.credential = p_credential
    RETURNING f.role_oid INTO role_oid;
    SELECT p.system_id, p.timeline, p.lsn, p.at_ms INTO system_id, timeline, lsn, at_ms FROM ephor.place() p;
END
$ephor$;

-- Moves the end of one login that lives; never of one that was revoked, and never back: a call may be carried out
-- long after the one that followed it.
CREATE OR REPLACE FUNCTION ephor.extend(p_epoch bigint, p_credential uuid, p_role text, p_valid_until_ms bigint)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp @by_index@ AS $ephor$
DECLARE
    known ephor.fence;
BEGIN
    PERFORM ephor.pass(coalesce(ephor.installation_of(p_role), '?'), p_epoch);
    PERFORM ephor.check_end(p_valid_until_ms);
    -- Until the end of the transaction nobody marks it dead.
    UPDATE ephor.fence f SET valid_until = greatest(f.valid_until, to_timestamp(p_valid_until_ms / 1000.0))
    WHERE f.credential = p_credential AND f.role = p_role AND NOT f.dead RETURNING * INTO known;
    IF NOT FOUND THEN
        RAISE 'credential % was revoked, or never made', p_credential USING ERRCODE = 'EPH01';
    END IF;
    PERFORM FROM pg_roles r WHERE r.oid = known.role_oid AND r.rolname = p_role;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    EXECUTE format('ALTER ROLE %I VALID UNTIL %L', p_role, known.valid_until::text);
    RETURN true;
END
$ephor$;

-- Marks credentials dead: from here on nothing makes them. Waits for whoever is making one.
CREATE OR REPLACE FUNCTION ephor.mark_dead(p_epoch bigint, p_credentials uuid[], p_roles text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    one text;
BEGIN
    FOR one IN SELECT DISTINCT coalesce(ephor.installation_of(r), '?') FROM unnest(p_roles) r LOOP
        PERFORM ephor.pass(one, p_epoch);
    END LOOP;
    -- In one order, so that two of these never wait for each other.
    INSERT INTO ephor.fence AS f (credential, role, dead, epoch)
    SELECT c, r, true, p_epoch FROM unnest(p_credentials, p_roles) AS u(c, r) ORDER BY c
    ON CONFLICT (credential) DO UPDATE SET dead = true, epoch = excluded.epoch,
        at = CASE WHEN f.dead THEN f.at ELSE clock_timestamp() END
    WHERE f.role = excluded.role;
    -- A login of that name that was made without its row, or again after it was dropped.
    UPDATE ephor.fence f SET role_oid = r.oid FROM pg_roles r
    WHERE f.credential = ANY (p_credentials) AND f.dead AND r.rolname = f.role
      AND NOT EXISTS (SELECT FROM pg_roles o WHERE o.oid = f.role_oid);
    IF (SELECT count(*) FROM unnest(p_credentials, p_roles) AS u(c, r) CROSS JOIN LATERAL (
            SELECT FROM ephor.fence f WHERE f.credential = u.c AND f.role = u.r AND f.dead OFFSET 0) f)
       <> cardinality(p_credentials) THEN
        RAISE 'a credential was made with another name' USING ERRCODE = 'EPH05';
    END IF;
END
$ephor$;

-- Takes dead logins out of every group, and makes the owner of this function a member of exactly these
-- logins: by that right, and by nothing else, it may end their sessions and drop what they own. Neither
-- writes the row of the login's role, which a prepared transaction of its own can hold for ever. Up to
-- version 14 a login can hold its memberships too: those it keeps for now, unless `p_all`.
CREATE OR REPLACE FUNCTION ephor.disarm(p_credentials uuid[], p_all boolean) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    had record;
    names text;
BEGIN
    -- One statement a group, and not one a login.
    FOR had IN
        SELECT g.rolname AS group_name, string_agg(quote_ident(r.rolname), ', ' ORDER BY r.rolname) AS members
        FROM ephor.fence f JOIN pg_roles r ON r.oid = f.role_oid CROSS JOIN LATERAL (
            SELECT m.roleid FROM pg_auth_members m WHERE m.member = r.oid OFFSET 0) m
        JOIN pg_roles g ON g.oid = m.roleid
        WHERE f.credential = ANY (p_credentials) GROUP BY g.rolname ORDER BY g.rolname
    LOOP
        BEGIN
            EXECUTE format('REVOKE %I FROM %s', had.group_name, had.members);
        EXCEPTION
            WHEN insufficient_privilege THEN
                -- Granted by somebody stronger; it goes when the login is dropped.
                NULL;
            WHEN lock_not_available THEN
                IF p_all THEN
                    RAISE;
                END IF;
        END;
    END LOOP;
    SELECT string_agg(quote_ident(r.rolname), ', ' ORDER BY r.rolname) INTO names
    FROM ephor.fence f JOIN pg_roles r ON r.oid = f.role_oid WHERE f.credential = ANY (p_credentials);
    IF names IS NULL THEN
        RETURN;
    END IF;
    BEGIN
        IF current_setting('server_version_num')::int >= 160000 THEN
            EXECUTE format('GRANT %s TO ephor_owner WITH INHERIT TRUE, SET TRUE', names);
        ELSE
            EXECUTE format('GRANT %s TO ephor_owner', names);
        END IF;
    EXCEPTION WHEN lock_not_available THEN
        IF p_all THEN
            RAISE;
        END IF;
    END;
END
$ephor$;

-- Marks credentials dead and takes from them what can be taken while somebody holds the row of the role.
CREATE OR REPLACE FUNCTION ephor.fence_only(p_epoch bigint, p_credentials uuid[], p_roles text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp @by_index@ AS $ephor$
BEGIN
    PERFORM ephor.mark_dead(p_epoch, p_credentials, p_roles);
    PERFORM ephor.disarm(p_credentials, false);
END
$ephor$;

-- Marks credentials dead and lets nobody in any more: NOLOGIN, no password, no groups. Tells the sessions that show
-- themselves to end; whoever came in before this is committed is for whoever looks then.
CREATE OR REPLACE FUNCTION ephor.fence_login(p_epoch bigint, p_credentials uuid[], p_roles text[])
RETURNS TABLE (credential uuid, role_oid oid, was_named text, pids int[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp @by_index@ AS $ephor$
#variable_conflict use_column
DECLARE
    one record;
    fenced uuid[] := '{}';
    of oid[] := '{}';
    named text[] := '{}';
    told record;
BEGIN
    PERFORM ephor.mark_dead(p_epoch, p_credentials, p_roles);
    FOR one IN
        SELECT f.credential, f.role, r.oid, r.rolname FROM ephor.fence f
        JOIN pg_roles r ON r.oid = f.role_oid WHERE f.credential = ANY (p_credentials) ORDER BY f.credential
    LOOP
        IF one.rolname <> one.role THEN
            -- An administrator has renamed it; it is ours all the same.
            EXECUTE format('ALTER ROLE %I RENAME TO %I', one.rolname, one.role);
        END IF;
        EXECUTE format('ALTER ROLE %I NOLOGIN PASSWORD NULL', one.role);
        fenced := fenced || one.credential;
        of := of || one.oid;
        named := named || nullif(one.rolname, one.role)::text;
    END LOOP;
    -- DROP ROLE reads the settings of every role of the server, once for each that it drops: of many that go
    -- together they go first, but for those that have a session. A prepared transaction may hold on to one: then
    -- all stay.
    IF cardinality(of) > 1 THEN
        BEGIN
            FOR one IN
                SELECT r.rolname FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole
                WHERE s.setdatabase = 0 AND s.setrole = ANY (of)
                  AND s.setrole <> ALL (ARRAY(SELECT n.role_oid FROM ephor.session n))
            LOOP
                EXECUTE format('ALTER ROLE %I RESET ALL', one.rolname);
            END LOOP;
        EXCEPTION
            WHEN lock_not_available OR internal_error OR insufficient_privilege THEN
                NULL;
        END;
    END IF;
    PERFORM ephor.disarm(p_credentials, true);
    -- While this is being committed they end already. As the last thing: whoever connects again at once is refused.
    SELECT s.pids, s.oids INTO told FROM ephor.signal(of) s;
    RETURN QUERY
    SELECT f.credential, f.role_oid, f.was_named,
        ARRAY(SELECT t.pid FROM unnest(told.pids, told.oids) AS t(pid, role_oid) WHERE t.role_oid = f.role_oid)
    FROM unnest(fenced, of, named) AS f(credential, role_oid, was_named);
END
$ephor$;

-- Ends the sessions that show which login they are of, if it is dead. With its name or without:
-- a session outlives its role.
CREATE OR REPLACE FUNCTION ephor.signal(p_oids oid[], OUT pids int[], OUT oids oid[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    dead oid[] := ARRAY(SELECT f.role_oid FROM ephor.fence f WHERE f.role_oid = ANY (p_oids) AND f.dead);
BEGIN
    SELECT coalesce(array_agg(s.pid), '{}'), coalesce(array_agg(s.role_oid), '{}') INTO pids, oids
    FROM ephor.session s WHERE s.role_oid = ANY (dead);
    PERFORM pg_terminate_backend(p) FROM unnest(pids) p;
END
$ephor$;

-- Processes that hold a lock and have no name yet: logins under way, and sessions that are just starting
-- (post_auth_delay, preloaded libraries). Up to version 17 these are in pg_stat_activity not at all, from 18
-- on without a user. In this order: who gets its name in between is found by whoever then looks for names.
CREATE OR REPLACE FUNCTION ephor.nameless() RETURNS int[]
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    locks int[] := ARRAY(SELECT l.pid FROM pg_lock_status() l WHERE l.pid IS NOT NULL);
BEGIN
    PERFORM pg_stat_clear_snapshot();
    RETURN ARRAY(
        SELECT l.pid FROM (SELECT unnest(locks) EXCEPT SELECT s.pid FROM ephor.session s WHERE s.role_oid <> 0) l (pid)
        WHERE NOT EXISTS (SELECT FROM pg_stat_get_activity(l.pid) a
                          WHERE current_setting('server_version_num')::int < 180000
                             OR a.backend_type NOT IN ('client backend', 'walsender')));
END
$ephor$;

-- Looks for sessions of dead logins and tells them to end. Of one that is still starting the right to end
-- it is what tells whose it is.
CREATE OR REPLACE FUNCTION ephor.end_sessions(
    p_credentials uuid[], OUT pids int[], OUT oids oid[], OUT hidden int[], OUT starting int[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp @by_index@ AS $ephor$
DECLARE
    dead oid[];
    unnamed int[];
    one int;
BEGIN
    dead := ARRAY(SELECT f.role_oid FROM ephor.fence f
                  WHERE f.credential = ANY (p_credentials) AND f.dead AND f.role_oid IS NOT NULL);
    hidden := '{}';
    starting := '{}';
    unnamed := ephor.nameless();
    SELECT s.pids, s.oids INTO pids, oids FROM ephor.signal(dead) s;
    FOREACH one IN ARRAY unnamed LOOP
        BEGIN
            -- While a dead login is still in some group, the right would reach further than it.
            IF EXISTS (SELECT FROM pg_auth_members m WHERE m.member = ANY (dead)) THEN
                starting := starting || one;
            ELSIF pg_terminate_backend(one) THEN
                hidden := hidden || one;
            END IF;
        EXCEPTION WHEN insufficient_privilege THEN
            -- Somebody else's, or of nobody yet; or of a login whose role somebody has dropped.
            starting := starting || one;
        END;
    END LOOP;
END
$ephor$;

-- Looks for sessions of dead logins, as end_sessions does, and drops the logins if there is none. All of them,
-- or none: one that cannot be dropped is an error. While they own anything, or have rights to anything, in
-- whichever database, they are dropped only `p_anyway`: drop_owned comes first. So too while a session is
-- starting that might be one of theirs: then a look later tells more.
CREATE OR REPLACE FUNCTION ephor.drop_logins(
    p_epoch bigint, p_credentials uuid[], p_anyway boolean,
    OUT pids int[], OUT oids oid[], OUT hidden int[], OUT starting int[], OUT done boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp @by_index@ AS $ephor$
DECLARE
    names text;
    roles oid[];
    one text;
BEGIN
    FOR one IN SELECT DISTINCT ephor.installation_of(f.role) FROM ephor.fence f
               WHERE f.credential = ANY (p_credentials) LOOP
        PERFORM ephor.pass(coalesce(one, '?'), p_epoch);
    END LOOP;
    SELECT e.pids, e.oids, e.hidden, e.starting INTO pids, oids, hidden, starting
    FROM ephor.end_sessions(p_credentials) e;
    done := false;
    IF cardinality(pids) > 0 OR cardinality(hidden) > 0 THEN
        RETURN;
    END IF;
    SELECT string_agg(quote_ident(r.rolname), ', '), array_agg(r.oid) INTO names, roles
    FROM ephor.fence f JOIN pg_roles r ON r.oid = f.role_oid
    WHERE f.credential = ANY (p_credentials) AND f.dead AND r.rolname = f.role AND NOT r.rolcanlogin;
    IF NOT p_anyway THEN
        IF cardinality(starting) > 0 THEN
            RETURN;
        END IF;
        PERFORM FROM pg_shdepend d WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = ANY (roles);
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    IF names IS NOT NULL THEN
        EXECUTE 'DROP ROLE ' || names;
    END IF;
    done := true;
END
$ephor$;

-- What is left of dead logins, as this server sees it: roles by oid or name, sessions, prepared
-- transactions, and where it stands. Also on a standby.
CREATE OR REPLACE FUNCTION ephor.census(p_credentials uuid[])
RETURNS TABLE (credential uuid, fenced boolean, can_login boolean, role_oid oid, present boolean, sessions int, prepared text[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp @by_index@ AS $ephor$
#variable_conflict use_column
BEGIN
    PERFORM pg_stat_clear_snapshot();
    RETURN QUERY
    WITH sessions AS MATERIALIZED (SELECT s.role_oid FROM ephor.session s),
    waiting AS MATERIALIZED (SELECT p.gid, p.ownerid FROM pg_prepared_xact() p)
    SELECT f.credential, f.dead, coalesce((SELECT r.rolcanlogin FROM pg_roles r WHERE r.oid = f.role_oid), false), f.role_oid,
        coalesce((SELECT r.oid FROM pg_roles r WHERE r.oid = f.role_oid),
                 (SELECT r.oid FROM pg_roles r WHERE r.rolname = f.role)) IS NOT NULL,
        (SELECT count(*)::int FROM sessions s WHERE s.role_oid = f.role_oid),
        ARRAY(SELECT w.gid FROM waiting w WHERE w.ownerid = f.role_oid)
    FROM ephor.fence f WHERE f.credential = ANY (p_credentials);
END
$ephor$;

-- Servers that follow this one now, for whoever wants to know whether all were looked at.
CREATE OR REPLACE FUNCTION ephor.followers() RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
BEGIN
    RETURN (SELECT count(*)::int FROM pg_stat_get_wal_senders() w WHERE w.state IN ('streaming', 'catchup'));
END
$ephor$;

-- A second look, by the oid and the name that an earlier proof was about; ends what it finds.
CREATE OR REPLACE FUNCTION ephor.look_again(p_oids oid[], p_names text[], p_starting int[])
RETURNS TABLE (role_oid oid, present boolean, sessions int, starting int[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
#variable_conflict use_column
DECLARE
    unnamed int[] := ephor.nameless();
BEGIN
    RETURN QUERY
    WITH sessions AS MATERIALIZED (SELECT s.role_oid FROM ephor.session s)
    SELECT u.o, EXISTS (SELECT FROM pg_roles r WHERE r.oid = u.o) OR EXISTS (SELECT FROM pg_roles r WHERE r.rolname = u.n),
        (SELECT count(*)::int FROM sessions s WHERE s.role_oid = u.o),
        ARRAY(SELECT l FROM unnest(unnamed) l WHERE l = ANY (p_starting))
    FROM unnest(p_oids, p_names) AS u(o, n);
    PERFORM ephor.signal(p_oids);
END
$ephor$;

-- Every login with our prefix, whoever made it, those of the fence that live under another name, and
-- those that somebody has dropped.
CREATE OR REPLACE FUNCTION ephor.logins()
RETURNS TABLE (role text, made_as text, role_oid oid, credential uuid, dead boolean, can_login boolean, attributes text[],
               groups text[], granted_to text[], valid_until_ms bigint, connections int, sessions int)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
    WITH sessions AS MATERIALIZED (SELECT s.role_oid, count(*)::int AS n FROM ephor.session s GROUP BY s.role_oid),
    up AS MATERIALIZED (
        SELECT m.member, array_agg(DISTINCT g.rolname::text ORDER BY g.rolname::text) AS names
        FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid GROUP BY m.member),
    down AS MATERIALIZED (
        SELECT m.roleid, array_agg(DISTINCT g.rolname::text ORDER BY g.rolname::text) AS names
        FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.member
        WHERE g.rolname <> 'ephor_owner' GROUP BY m.roleid)
    SELECT r.rolname::text, f.role::text, coalesce(r.oid, f.role_oid), f.credential, f.dead, coalesce(r.rolcanlogin, false),
        array_remove(ARRAY[CASE WHEN r.rolsuper THEN 'superuser' END, CASE WHEN r.rolcreaterole THEN 'createrole' END,
            CASE WHEN r.rolcreatedb THEN 'createdb' END, CASE WHEN r.rolreplication THEN 'replication' END,
            CASE WHEN r.rolbypassrls THEN 'bypassrls' END, CASE WHEN NOT r.rolinherit THEN 'noinherit' END], NULL),
        coalesce(up.names, '{}'), coalesce(down.names, '{}'),
        CASE WHEN isfinite(r.rolvaliduntil) THEN (extract(epoch FROM r.rolvaliduntil) * 1000)::bigint END,
        coalesce(r.rolconnlimit, -1), coalesce(sessions.n, 0)
    FROM pg_roles r FULL JOIN ephor.fence f ON f.role_oid = r.oid
    LEFT JOIN up ON up.member = r.oid LEFT JOIN down ON down.roleid = r.oid
    LEFT JOIN sessions ON sessions.role_oid = coalesce(r.oid, f.role_oid)
    WHERE r.rolname ^@ 'eph_' OR (r.oid IS NOT NULL AND f.credential IS NOT NULL)
       -- A role that somebody dropped: its row lives, or a session.
       OR (r.oid IS NULL AND (NOT f.dead OR sessions.n > 0))
$ephor$;

-- Who is connected with a login of ours, since when and from where.
CREATE OR REPLACE FUNCTION ephor.uses()
RETURNS TABLE (role text, role_oid oid, pid int, address text, database text, since_ms bigint, last_ms bigint)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
    SELECT coalesce(f.role, r.rolname)::text, a.usesysid, a.pid, host(a.client_addr), d.datname::text,
        (extract(epoch FROM a.backend_start) * 1000)::bigint,
        (extract(epoch FROM coalesce(a.state_change, a.backend_start)) * 1000)::bigint
    FROM pg_stat_get_activity(NULL) a LEFT JOIN pg_roles r ON r.oid = a.usesysid
    LEFT JOIN ephor.fence f ON f.role_oid = a.usesysid
    LEFT JOIN pg_database d ON d.oid = a.datid
    WHERE r.rolname ^@ 'eph_' OR f.credential IS NOT NULL
$ephor$;

-- Forgets rows of the fence that nothing can need any more: dead for long, and past their deadline.
CREATE OR REPLACE FUNCTION ephor.prune(p_seconds bigint) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    n int;
BEGIN
    DELETE FROM ephor.fence f USING (
        SELECT o.credential FROM ephor.fence o WHERE o.dead
          AND o.at < clock_timestamp() - make_interval(secs => greatest(p_seconds, 86400))
          AND coalesce(o.deadline, o.at) < clock_timestamp() - interval '1 day'
          AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = o.role_oid OR r.rolname = o.role)
          AND NOT EXISTS (SELECT FROM ephor.session s WHERE s.role_oid = o.role_oid)
        LIMIT 10000) old
    WHERE f.credential = old.credential;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END
$ephor$;

-- Who may call what.
DO $ephor$
DECLARE
    one record;
BEGIN
    FOR one IN
        SELECT p.oid::regprocedure AS signature, p.proname FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'ephor'::regnamespace
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', one.signature);
        EXECUTE format('ALTER FUNCTION %s OWNER TO %I', one.signature,
            CASE WHEN one.proname IN ('signal', 'nameless', 'census', 'followers', 'look_again', 'uses')
                 THEN 'ephor_signal' ELSE 'ephor_owner' END);
        IF one.proname NOT IN ('pass', 'over', 'shell_quoted', 'check_groups', 'check_end', 'installation_of', 'mark_dead', 'disarm', 'signal', 'nameless') THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', one.signature, @login_text@);
        END IF;
    END LOOP;
END
$ephor$;
GRANT EXECUTE ON FUNCTION ephor.signal(oid[]), ephor.nameless() TO ephor_owner;
REVOKE CREATE ON SCHEMA ephor FROM ephor_signal;

INSERT INTO ephor.version (version) VALUES (@version@) ON CONFLICT DO NOTHING;
@allowed@
