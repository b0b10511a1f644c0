
-- A group role that logins may be made of. From 16 on CREATEROLE alone does not allow to grant it.
-- What could do more than it should is refused here already; at use it is asked again (check_groups).
DO $ephor$
DECLARE
    bad text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = @group_text@) THEN
        RAISE 'the group role % does not exist: CREATE ROLE % NOLOGIN', @group_text@, quote_ident(@group_text@);
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = @group_text@ AND rolcanlogin) THEN
        RAISE 'no login can be made of the role %: it can log in itself, and a group role is NOLOGIN; name another one', @group_text@;
    END IF;
    WITH RECURSIVE reach(oid) AS (
        SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = @group_text@
        UNION
        SELECT m.roleid FROM pg_catalog.pg_auth_members m JOIN reach ON m.member = reach.oid
    )
    SELECT r.rolname INTO bad FROM reach JOIN pg_catalog.pg_roles r USING (oid)
    WHERE @beyond@ OR r.rolname = @login_text@
    ORDER BY r.rolname = @group_text@ DESC LIMIT 1;
    IF FOUND THEN
        RAISE 'no login can be made of the role %: it could act as %, which reaches beyond it; name another one', @group_text@, bad;
    END IF;
    IF pg_catalog.current_setting('server_version_num')::int >= 160000 THEN
        EXECUTE format('GRANT %I TO ephor_owner WITH ADMIN TRUE, INHERIT FALSE, SET FALSE', @group_text@);
    END IF;
END
$ephor$;
