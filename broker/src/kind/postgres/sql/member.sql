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
ALTER TABLE ephor.allowed OWNER TO ephor_owner;
REVOKE ALL ON ephor.allowed FROM PUBLIC;

-- Drops what dead logins own in this database, and their rights in it. Only a login of ours that was
-- fenced: it cannot log in, and the owner of this function was made a member of it for this.
-- With `p_group`, tables and sequences become the group's instead; never a function or a view, which
-- would run with that role's rights.
CREATE OR REPLACE FUNCTION ephor.drop_owned(p_roles text[], p_group text) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ephor$
DECLARE
    names text;
    n int;
    one record;
BEGIN
    SELECT string_agg(quote_ident(r.rolname), ', '), count(*) INTO names, n
    FROM pg_roles r
    WHERE r.rolname = ANY (p_roles) AND NOT r.rolcanlogin
      AND r.rolname ~ '^eph_[a-z0-9_]{0,20}_[0-9a-hjkmnp-tv-z]{6}_[0-9a-hjkmnp-tv-z]{26}$'
      AND EXISTS (SELECT FROM pg_auth_members m WHERE m.roleid = r.oid AND m.member = to_regrole('ephor_owner'));
    IF n = 0 THEN
        RETURN 0;
    END IF;
    IF p_group IS NOT NULL THEN
        IF NOT EXISTS (SELECT FROM ephor.allowed a WHERE a.role = p_group) THEN
            RAISE 'nothing may be given to the role % here', p_group USING ERRCODE = 'EPH04';
        END IF;
        FOR one IN
            SELECT c.oid::regclass AS relation, c.relkind FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
            WHERE r.rolname = ANY (p_roles) AND c.relkind IN ('r', 'p', 'S')
              -- A sequence of a column goes with its table.
              AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                              AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') AND c.relkind = 'S')
        LOOP
            PERFORM ephor.as_member(p_group, true);
            EXECUTE format('ALTER %s %s OWNER TO %I',
                CASE one.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, one.relation, p_group);
        END LOOP;
        PERFORM ephor.as_member(p_group, false);
    END IF;
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
    RETURN n;
END
$ephor$;

-- What logins own in this database, or have been given; NULL is nothing.
CREATE OR REPLACE FUNCTION ephor.owned(p_roles text[]) RETURNS text
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $ephor$
    SELECT string_agg(DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid), ', ')
    FROM (SELECT d.classid, d.objid, d.objsubid FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid
          WHERE d.refclassid = 'pg_authid'::regclass AND r.rolname = ANY (p_roles)
            AND d.dbid = (SELECT b.oid FROM pg_database b WHERE b.datname = current_database())
          LIMIT 10) d
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

REVOKE ALL ON FUNCTION ephor.drop_owned(text[], text) FROM PUBLIC;
REVOKE ALL ON FUNCTION ephor.as_member(text, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION ephor.owned(text[]) FROM PUBLIC;
ALTER FUNCTION ephor.owned(text[]) OWNER TO ephor_owner;
ALTER FUNCTION ephor.drop_owned(text[], text) OWNER TO ephor_owner;
ALTER FUNCTION ephor.as_member(text, boolean) OWNER TO ephor_owner;
GRANT EXECUTE ON FUNCTION ephor.drop_owned(text[], text) TO @login@;
@allowed@
