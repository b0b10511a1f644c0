
-- Static roles: logins that were there before, and stay. A task is lent one: LOGIN and a password are given
-- when it is checked out, and both are taken when it is checked in. Between two tasks nobody can log in as
-- it, so whatever password somebody has or sets is of no use. What the role owns or was granted is not touched.
GRANT CREATE ON SCHEMA ephor TO ephor_signal;

-- Roles that may be lent: what whoever installs allows, not what the broker asks.
CREATE TABLE IF NOT EXISTS ephor.static_role (role name PRIMARY KEY);

-- One row per checkout. `out`: somebody may have the password. `fenced`: nobody can log in. `in`: nobody can,
-- and that was shown.
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
    -- The latest end that was asked for.
    valid_until timestamptz,
    epoch bigint NOT NULL,
    -- Whether it might log in when it was fenced: else an administrator had shut it, and it stays so.
    could_login boolean,
    -- What ALTER ROLE .. SET had set before it was lent.
    settings jsonb,
    -- Of the password of nobody.
    salt text,
    -- Processes without a name when it was checked in: they may have begun a login with the password of before.
    starting int[] NOT NULL DEFAULT '{}',
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
DO $ephor$
DECLARE
    one regclass;
BEGIN
    IF pg_catalog.to_regclass('ephor.checkout_role') IS NULL THEN
        -- Nobody has it twice, whatever a broker believes.
        CREATE UNIQUE INDEX checkout_role ON ephor.checkout (role_oid) WHERE state <> 'in';
    END IF;
    IF pg_catalog.to_regclass('ephor.checkout_oid') IS NULL THEN
        CREATE INDEX checkout_oid ON ephor.checkout (role_oid);
    END IF;
    -- Of all rows, as that of the fence.
    IF pg_catalog.to_regclass('ephor.checkout_at') IS NULL THEN
        CREATE INDEX checkout_at ON ephor.checkout (at);
    END IF;
    IF pg_catalog.to_regclass('ephor.checkout_over') IS NOT NULL THEN
        DROP INDEX ephor.checkout_over;
    END IF;
@owned@
END
$ephor$;
REVOKE ALL ON ephor.static_role, ephor.checkout FROM PUBLIC;
GRANT SELECT ON ephor.checkout, ephor.static_role TO ephor_signal;
GRANT SELECT ON ephor.static_role TO @login@;

-- Who may act as a role, and so set its password. Not those that make roles: they may do both anyhow.
CREATE OR REPLACE FUNCTION ephor.members_of(p_oid oid) RETURNS name[]
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
    SELECT coalesce(array_agg(DISTINCT r.rolname), '{}') FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member
    WHERE m.roleid = p_oid AND r.rolname <> 'ephor_owner' AND NOT (r.rolsuper OR r.rolcreaterole)
$ephor$;

-- Whether it is by our doing that the role does not log in.
CREATE OR REPLACE FUNCTION ephor.is_kept(p_oid oid) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
    SELECT coalesce((SELECT c.could_login AND c.state <> 'out' FROM ephor.checkout c WHERE c.role_oid = p_oid
                     ORDER BY c.state = 'in', c.at DESC LIMIT 1), false)
$ephor$;

-- Why a role cannot be lent, and what would mend it; NULL if it can. Not lent are: what was not allowed at
-- installing, what somebody has shut, Ephor's own, whatever reaches a superuser, a maker of roles or the
-- server's own files, and what others may act as.
CREATE OR REPLACE FUNCTION ephor.why_not_lent(p_role text, OUT why text, OUT mend text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    wanted oid;
    can boolean;
    bad text;
    members name[];
BEGIN
    IF NOT EXISTS (SELECT FROM ephor.static_role s WHERE s.role = p_role) THEN
        why := format('the role %s is not allowed to be lent here', p_role);
        mend := format('ephor target init URL --static-role %s', ephor.shell_quoted(p_role));
        RETURN;
    END IF;
    SELECT r.oid, r.rolcanlogin INTO wanted, can FROM pg_roles r WHERE r.rolname = p_role;
    IF NOT FOUND THEN
        why := format('the role %s does not exist', p_role);
        mend := format('CREATE ROLE %I LOGIN', p_role);
        RETURN;
    ELSIF NOT can AND NOT ephor.is_kept(wanted) THEN
        why := format('the role %s cannot log in: somebody has shut it', p_role);
        mend := format('ALTER ROLE %I LOGIN', p_role);
        RETURN;
    ELSIF p_role ^@ 'eph_' OR p_role ^@ 'pg_' THEN
        why := format('the role %s is Ephor''s own, or the server''s', p_role);
        mend := 'name another one';
        RETURN;
    END IF;
    WITH RECURSIVE reach(oid) AS (
        SELECT wanted
        UNION
        SELECT m.roleid FROM pg_auth_members m JOIN reach ON m.member = reach.oid
    )
    SELECT r.rolname INTO bad FROM reach JOIN pg_roles r USING (oid)
    WHERE @beyond@ OR r.rolname = 'pg_write_all_data'
       -- A broker's login.
       OR EXISTS (SELECT FROM ephor.installation i WHERE i.login = r.rolname)
       OR EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = 'ephor'::regnamespace AND p.proname = 'check_out'
                  AND has_function_privilege(r.oid, p.oid, 'EXECUTE'))
    ORDER BY r.oid = wanted LIMIT 1;
    IF FOUND THEN
        why := format('whoever has the role %s could act as %s, which reaches beyond it', p_role, bad);
        mend := format('REVOKE %I FROM %I, or take from it what no login of a program needs', bad, p_role);
        RETURN;
    END IF;
    members := ephor.members_of(wanted);
    IF cardinality(members) > 0 THEN
        why := format('others may act as the role %s and set its password: %s', p_role, array_to_string(members[:8], ', '));
        mend := format('REVOKE %I FROM %s', p_role, (SELECT string_agg(quote_ident(m), ', ') FROM unnest(members) m));
    END IF;
END
$ephor$;

-- Lends a role: the one call of a checkout. The row comes first, so whoever checks it in waits for this
-- transaction, and the deadline is judged while the row is held. Nothing is done, and `rest` says why, when the
-- role is not at rest: `open`, it can log in, or a session of it is there; `haunted`, a login may be
-- under way that began with a password of before.
CREATE OR REPLACE FUNCTION ephor.check_out(
    p_installation text, p_epoch bigint, p_credential uuid, p_role text, p_valid_until_ms bigint,
    p_verifier text, p_deadline_ms bigint,
    OUT rest text, OUT role_oid oid, OUT system_id text, OUT timeline bigint, OUT lsn text, OUT at_ms bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
#variable_conflict use_column
DECLARE
    asked bytea := sha256(convert_to(p_role || chr(31) || p_verifier, 'UTF8'));
    wanted oid := (SELECT r.oid FROM pg_roles r WHERE r.rolname = p_role);
    refused record;
    unnamed int[];
    known ephor.checkout;
BEGIN
    PERFORM ephor.pass(p_installation, p_epoch);
    SELECT * INTO refused FROM ephor.why_not_lent(p_role);
    BEGIN
        INSERT INTO ephor.checkout (credential, installation, role, role_oid, state, digest, deadline, valid_until, epoch,
                                    settings)
        VALUES (p_credential, p_installation, p_role, wanted, 'out', asked, to_timestamp(p_deadline_ms / 1000.0),
                to_timestamp(p_valid_until_ms / 1000.0), p_epoch, ephor.settings_of(wanted))
        ON CONFLICT (credential) DO NOTHING;
    EXCEPTION WHEN unique_violation THEN
        PERFORM ephor.is_taken(p_role, wanted);
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
    ELSIF refused.why IS NOT NULL OR wanted IS NULL THEN
        RAISE '%', refused.why USING ERRCODE = 'EPH04', HINT = 'to mend it: ' || refused.mend;
    END IF;
    PERFORM ephor.check_end(p_valid_until_ms);
    unnamed := ephor.nameless();
    IF EXISTS (SELECT FROM pg_roles r WHERE r.oid = wanted AND r.rolcanlogin)
       OR EXISTS (SELECT FROM ephor.session s WHERE s.role_oid = wanted) THEN
        rest := 'open';
    ELSIF EXISTS (SELECT FROM ephor.checkout c WHERE c.role_oid = wanted AND c.state = 'in' AND c.starting && unnamed
                  AND c.at > clock_timestamp() - interval '1 day') THEN
        rest := 'haunted';
    END IF;
    IF rest IS NOT NULL THEN
        DELETE FROM ephor.checkout c WHERE c.credential = p_credential;
        RETURN;
    END IF;
    EXECUTE format('ALTER ROLE %I LOGIN PASSWORD %L VALID UNTIL %L', p_role, p_verifier,
        to_timestamp(p_valid_until_ms / 1000.0)::text);
    role_oid := wanted;
    SELECT p.system_id, p.timeline, p.lsn, p.at_ms INTO system_id, timeline, lsn, at_ms FROM ephor.place() p;
END
$ephor$;

-- Takes a role that is not at rest, as if it had been lent: checking that in brings it to rest.
CREATE OR REPLACE FUNCTION ephor.take(p_installation text, p_epoch bigint, p_credential uuid, p_role text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    wanted oid := (SELECT r.oid FROM pg_roles r WHERE r.rolname = p_role);
    refused record;
BEGIN
    PERFORM ephor.pass(p_installation, p_epoch);
    SELECT * INTO refused FROM ephor.why_not_lent(p_role);
    IF refused.why IS NOT NULL OR wanted IS NULL THEN
        RAISE '%', refused.why USING ERRCODE = 'EPH04', HINT = 'to mend it: ' || refused.mend;
    END IF;
    INSERT INTO ephor.checkout (credential, installation, role, role_oid, state, epoch, could_login)
    VALUES (p_credential, p_installation, p_role, wanted, 'out', p_epoch, true);
EXCEPTION WHEN unique_violation THEN
    PERFORM ephor.is_taken(p_role, wanted);
END
$ephor$;

-- Says who has it.
CREATE OR REPLACE FUNCTION ephor.is_taken(p_role text, p_oid oid) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    known ephor.checkout;
BEGIN
    -- Nobody, if that one has ended just now.
    SELECT * INTO known FROM ephor.checkout c WHERE c.role_oid = p_oid AND c.state <> 'in';
    RAISE 'the role % is checked out, or just being checked in%', p_role,
        CASE WHEN FOUND THEN format(': credential %s of installation %s, since %s', known.credential, known.installation, known.at) ELSE '' END
        USING ERRCODE = 'EPH06', HINT = 'it is lent again when that one has ended';
END
$ephor$;

-- Moves the end of a password that is out; never of one that was fenced, and never back.
CREATE OR REPLACE FUNCTION ephor.extend_checkout(
    p_installation text, p_epoch bigint, p_credential uuid, p_valid_until_ms bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    known ephor.checkout;
    now_called text;
BEGIN
    PERFORM ephor.pass(p_installation, p_epoch);
    PERFORM ephor.check_end(p_valid_until_ms);
    UPDATE ephor.checkout c SET valid_until = greatest(c.valid_until, to_timestamp(p_valid_until_ms / 1000.0))
    WHERE c.credential = p_credential AND c.state = 'out' AND c.installation = p_installation RETURNING * INTO known;
    IF NOT FOUND THEN
        RAISE 'checkout % was ended, or never made', p_credential USING ERRCODE = 'EPH01';
    END IF;
    SELECT r.rolname INTO now_called FROM pg_roles r WHERE r.oid = known.role_oid AND r.rolname = known.role;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    EXECUTE format('ALTER ROLE %I VALID UNTIL %L', now_called, known.valid_until::text);
    RETURN true;
END
$ephor$;

-- What ALTER ROLE .. SET has set, by database; that of all databases under no name.
CREATE OR REPLACE FUNCTION ephor.settings_of(p_oid oid) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
    SELECT coalesce(jsonb_object_agg(coalesce(d.datname, ''), to_jsonb(s.setconfig)), '{}')
    FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = s.setdatabase
    WHERE s.setrole = p_oid AND (d.oid IS NOT NULL OR s.setdatabase = 0)
$ephor$;

-- In what the settings of a role differ from those of before.
CREATE OR REPLACE FUNCTION ephor.settings_changed(p_oid oid, p_before jsonb)
RETURNS TABLE (database text, name text, value text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
    WITH each(is_before, database, name, value) AS (
        SELECT s.b, d.key, split_part(e, '=', 1), substr(e, strpos(e, '=') + 1)
        FROM (VALUES (true, p_before), (false, ephor.settings_of(p_oid))) s(b, all_of),
             jsonb_each(s.all_of) d, jsonb_array_elements_text(d.value) e)
    SELECT coalesce(b.database, n.database), coalesce(b.name, n.name), b.value
    FROM (SELECT * FROM each WHERE is_before) b
    FULL JOIN (SELECT * FROM each WHERE NOT is_before) n ON n.database = b.database AND n.name = b.name
    WHERE b.value IS DISTINCT FROM n.value
$ephor$;
