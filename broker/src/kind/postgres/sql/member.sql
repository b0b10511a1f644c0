-- Schema of Ephor in a database where logins may own something: DROP OWNED acts on one database.
CREATE SCHEMA IF NOT EXISTS ephor;
DO $ephor$
BEGIN
    IF (SELECT r.rolname FROM pg_catalog.pg_namespace n
        JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner WHERE n.nspname = 'ephor')
       NOT IN ('ephor_owner', current_user) THEN
        RAISE 'a schema "ephor" of somebody else is in the way';
    END IF;
END
$ephor$;
ALTER SCHEMA ephor OWNER TO ephor_owner;
REVOKE ALL ON SCHEMA ephor FROM PUBLIC;
GRANT USAGE ON SCHEMA ephor TO ephor_owner, @login@;

-- Group roles that logins may be made of, as whoever installs allows.
CREATE TABLE IF NOT EXISTS ephor.allowed (role name PRIMARY KEY);
DO $ephor$
DECLARE
    one regclass;
BEGIN
@owned@
END
$ephor$;
REVOKE ALL ON ephor.allowed FROM PUBLIC;

-- Which of these roles are dead logins of ours: they were fenced, so that they cannot log in and the
-- owner of this function is a member of them. Nothing here is ever done to another role.
CREATE OR REPLACE FUNCTION ephor.dead(p_roles text[]) RETURNS text[]
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp @by_index@ AS $ephor$
BEGIN
    RETURN (
        SELECT coalesce(array_agg(r.rolname::text ORDER BY r.rolname), '{}') FROM unnest(p_roles) AS u(name)
        CROSS JOIN LATERAL (SELECT r.oid, r.rolname, r.rolcanlogin FROM pg_roles r WHERE r.rolname = u.name::name OFFSET 0) r
        WHERE r.rolname::text = u.name AND NOT r.rolcanlogin
          AND r.rolname ~ '^eph_[a-z0-9_]{0,20}_[0-9a-hjkmnp-tv-z]{6}_[0-9a-hjkmnp-tv-z]{26}$'
          AND (SELECT m.member FROM pg_auth_members m
               WHERE m.roleid = r.oid AND m.member = to_regrole('ephor_owner') LIMIT 1) IS NOT NULL);
END
$ephor$;

-- About how many locks it takes to drop all that logins own here: one for each thing, and for each that
-- hangs on it. Does not count far beyond `p_most`.
CREATE OR REPLACE FUNCTION ephor.weight(p_roles text[], p_most int) RETURNS int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp @by_index@ AS $ephor$
BEGIN
    RETURN (
        SELECT count(*)::int FROM (
            SELECT FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid
            LEFT JOIN pg_depend d ON d.refclassid = s.classid AND d.refobjid = s.objid
            WHERE s.refclassid = 'pg_authid'::regclass AND s.deptype = 'o' AND r.rolname = ANY (p_roles)
              AND s.dbid = (SELECT b.oid FROM pg_database b WHERE b.datname = current_database())
            LIMIT p_most + 1) w);
END
$ephor$;

-- Drops what dead logins own in this database, and their rights in it. With `p_group`, tables and
-- sequences become the group's instead, where they can. Gives how many logins that was; -1 is that
-- nothing was done, because one transaction would lock too much: see `drop_some`.
CREATE OR REPLACE FUNCTION ephor.drop_owned(p_roles text[], p_group text) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    most CONSTANT int := 1000;
    alike text[];
    said text;
    more text;
BEGIN
    p_roles := ephor.dead(p_roles);
    IF cardinality(p_roles) = 0 THEN
        RETURN 0;
    ELSIF ephor.weight(p_roles, most) > most THEN
        RETURN -1;
    END IF;
    BEGIN
        PERFORM ephor.give_up(p_roles, p_group);
        RETURN cardinality(p_roles);
    EXCEPTION WHEN dependent_objects_still_exist THEN
        GET STACKED DIAGNOSTICS said = MESSAGE_TEXT, more = PG_EXCEPTION_DETAIL;
    END;
    -- Two dead logins may each have built on what the other owns. Only of the same entitlement and
    -- installation: what others own their policy may want to keep.
    alike := ephor.dead(ARRAY(SELECT r.rolname::text FROM pg_roles r
                              WHERE left(r.rolname, -27) IN (SELECT left(u, -27) FROM unnest(p_roles) u)));
    IF cardinality(alike) > cardinality(p_roles) AND ephor.weight(alike, most) <= most THEN
        BEGIN
            PERFORM ephor.give_up(alike, p_group);
            RETURN cardinality(p_roles);
        EXCEPTION WHEN dependent_objects_still_exist THEN
            NULL;
        END;
    END IF;
    RAISE '%', said USING ERRCODE = 'dependent_objects_still_exist', DETAIL = more,
        HINT = coalesce(ephor.kept_types(p_roles, p_group), 'Use DROP ... CASCADE to drop them too.');
EXCEPTION WHEN insufficient_privilege THEN
    RAISE '%', SQLERRM USING ERRCODE = 'EPH07';
END
$ephor$;

-- Drops or gives away some of what dead logins own here, newest first and each thing for itself, so that no
-- transaction takes more than about `p_most` of the locks that all sessions of the server share. What
-- cannot be dropped by itself is let be. Gives how many that were; 0 is that only `drop_owned` can do more.
CREATE OR REPLACE FUNCTION ephor.drop_some(p_roles text[], p_group text, p_most int) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    begun CONSTANT timestamptz := clock_timestamp();
    done int;
    locks int := 0;
    one record;
    thing record;
BEGIN
    p_roles := ephor.dead(p_roles);
    -- A table brings its indexes.
    done := ephor.reassign(p_roles, p_group, greatest(p_most / 4, 1));
    IF done > 0 THEN
        RETURN done;
    END IF;
    PERFORM lo_unlink(o.oid) FROM (
        SELECT m.oid FROM pg_largeobject_metadata m JOIN pg_roles r ON r.oid = m.lomowner
        WHERE r.rolname = ANY (p_roles) LIMIT p_most) o;
    GET DIAGNOSTICS done = ROW_COUNT;
    IF done > 0 THEN
        RETURN done;
    END IF;
    -- What it made in a schema of the group's is only found with the group's rights.
    FOR one IN SELECT a.role FROM ephor.allowed a LOOP
        PERFORM ephor.as_member(one.role, true);
    END LOOP;
    FOR one IN
        SELECT s.classid, s.objid, w.n FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid, LATERAL (
            SELECT count(*) + 1 AS n FROM pg_depend d WHERE d.refclassid = s.classid AND d.refobjid = s.objid) w
        WHERE s.refclassid = 'pg_authid'::regclass AND s.deptype = 'o' AND r.rolname = ANY (p_roles)
          AND s.dbid = (SELECT b.oid FROM pg_database b WHERE b.datname = current_database())
          AND s.classid <> 'pg_default_acl'::regclass AND w.n <= p_most
        ORDER BY s.objid DESC
    LOOP
        EXIT WHEN locks + one.n > p_most OR clock_timestamp() > begun + interval '3 s';
        BEGIN
            SELECT i.type, i.identity INTO thing FROM pg_identify_object(one.classid, one.objid, 0) i;
            -- None is one that went with another.
            IF thing.identity IS NOT NULL THEN
                EXECUTE format('DROP %s %s', CASE thing.type WHEN 'composite type' THEN 'type'
                    WHEN 'statistics object' THEN 'statistics' ELSE thing.type END, thing.identity);
                locks := locks + one.n;
                done := done + 1;
            END IF;
        EXCEPTION
            WHEN lock_not_available OR deadlock_detected OR out_of_memory THEN
                RAISE;
            WHEN OTHERS THEN
                -- Others depend on it, mostly; whatever it is, `drop_owned` says it.
                NULL;
        END;
    END LOOP;
    FOR one IN SELECT a.role FROM ephor.allowed a LOOP
        PERFORM ephor.as_member(one.role, false);
    END LOOP;
    RETURN done;
END
$ephor$;

-- Gives tables and sequences of dead logins to a group, if one is named, and tells how many. Never a
-- function or a view, nor a table with a rule: they run with their owner's rights, for anybody who may use
-- them. Only where the group could have made them, and not in a schema that goes.
CREATE OR REPLACE FUNCTION ephor.reassign(p_roles text[], p_group text, p_most int) RETURNS int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    n int := 0;
    one record;
BEGIN
    IF p_group IS NULL THEN
        RETURN 0;
    ELSIF NOT EXISTS (SELECT FROM ephor.allowed a WHERE a.role = p_group) THEN
        RAISE 'nothing may be given to the role % here', p_group USING ERRCODE = 'EPH07';
    END IF;
    FOR one IN
        SELECT c.oid::regclass AS relation, c.relkind FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
        JOIN pg_namespace s ON s.oid = c.relnamespace JOIN pg_roles o ON o.oid = s.nspowner
        WHERE r.rolname = ANY (p_roles) AND c.relkind IN ('r', 'p', 'S')
          AND NOT EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = c.oid)
          AND NOT o.rolname = ANY (p_roles)
          AND has_schema_privilege(p_group::name, s.oid, 'CREATE')
          AND has_schema_privilege(p_group::name, s.oid, 'USAGE')
          -- A sequence of a column goes with its table.
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                          AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') AND c.relkind = 'S')
        LIMIT p_most
    LOOP
        PERFORM ephor.as_member(p_group, true);
        EXECUTE format('ALTER %s %s OWNER TO %I',
            CASE one.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, one.relation, p_group);
        n := n + 1;
    END LOOP;
    PERFORM ephor.as_member(p_group, false);
    RETURN n;
END
$ephor$;

-- Types of dead logins that stand in the way of giving their tables to a group: a person may give them too.
CREATE OR REPLACE FUNCTION ephor.kept_types(p_roles text[], p_group text) RETURNS text
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $ephor$
    SELECT 'Tables of it are kept for ' || p_group || ' and use a type that is not: '
        || string_agg(DISTINCT format('ALTER TYPE %s OWNER TO %I', t.oid::regtype, p_group), '; ')
    FROM pg_depend d JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
    JOIN pg_type t ON d.refclassid = 'pg_type'::regclass AND t.oid = d.refobjid
    JOIN pg_roles r ON r.oid = t.typowner
    WHERE p_group IS NOT NULL AND r.rolname = ANY (p_roles) AND c.relowner = t.typowner AND c.relkind IN ('r', 'p')
$ephor$;

-- All of it, in one transaction.
CREATE OR REPLACE FUNCTION ephor.give_up(p_roles text[], p_group text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    names text := (SELECT string_agg(quote_ident(u), ', ') FROM unnest(p_roles) u);
    one record;
BEGIN
    PERFORM ephor.reassign(p_roles, p_group, 2147483647);
    EXECUTE format('DROP OWNED BY %s', names);
    -- Rights that a group has given to the login only the group can take back.
    IF ephor.owned(p_roles) IS NOT NULL THEN
        FOR one IN SELECT a.role FROM ephor.allowed a LOOP
            PERFORM ephor.as_member(one.role, true);
        END LOOP;
        EXECUTE format('DROP OWNED BY %s', names);
        FOR one IN SELECT a.role FROM ephor.allowed a LOOP
            PERFORM ephor.as_member(one.role, false);
        END LOOP;
    END IF;
    IF ephor.owned(p_roles) IS NOT NULL THEN
        RAISE 'rights that somebody stronger gave to it: %', ephor.owned(p_roles) USING ERRCODE = 'EPH07';
    END IF;
END
$ephor$;

-- What logins own in this database, or have been given; NULL is nothing.
CREATE OR REPLACE FUNCTION ephor.owned(p_roles text[]) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $ephor$
BEGIN
    RETURN (
        SELECT string_agg(DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid), ', ')
        FROM (SELECT d.classid, d.objid, d.objsubid FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid
              WHERE d.refclassid = 'pg_authid'::regclass AND r.rolname = ANY (p_roles)
                AND d.dbid = (SELECT b.oid FROM pg_database b WHERE b.datname = current_database())
              LIMIT 10) d);
END
$ephor$;

-- Takes the rights of a group, and gives them back, within one transaction: nobody else ever sees it.
CREATE OR REPLACE FUNCTION ephor.as_member(p_group text, p_on boolean) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    is_member boolean := EXISTS (
        SELECT FROM pg_auth_members m WHERE m.roleid = to_regrole(quote_ident(p_group)) AND m.member = to_regrole('ephor_owner')
          AND (current_setting('server_version_num')::int < 160000 OR m.grantor = to_regrole('ephor_owner')));
BEGIN
    IF p_on = is_member THEN
        RETURN;
    END IF;
    IF p_on AND current_setting('server_version_num')::int >= 160000 THEN
        EXECUTE format('GRANT %I TO ephor_owner WITH SET TRUE, INHERIT TRUE', p_group);
    ELSIF p_on THEN
        EXECUTE format('GRANT %I TO ephor_owner', p_group);
    ELSIF current_setting('server_version_num')::int >= 160000 THEN
        EXECUTE format('REVOKE %I FROM ephor_owner GRANTED BY ephor_owner', p_group);
    ELSE
        EXECUTE format('REVOKE %I FROM ephor_owner', p_group);
    END IF;
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
        EXECUTE format('ALTER FUNCTION %s OWNER TO ephor_owner', one.signature);
        IF one.proname IN ('drop_owned', 'drop_some') THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', one.signature, @login_text@);
        END IF;
    END LOOP;
END
$ephor$;
@allowed@
