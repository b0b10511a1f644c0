
-- A group role that logins may be made of. From 16 on CREATEROLE alone does not allow to grant it.
DO $ephor$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = @group_text@) THEN
        RAISE 'the group role % does not exist: CREATE ROLE % NOLOGIN', @group_text@, quote_ident(@group_text@);
    END IF;
    IF pg_catalog.current_setting('server_version_num')::int >= 160000 THEN
        EXECUTE format('GRANT %I TO ephor_owner WITH ADMIN TRUE, INHERIT FALSE, SET FALSE', @group_text@);
    END IF;
END
$ephor$;
