
-- A login of somebody's that may be lent. From 16 on CREATEROLE alone does not allow to change it. Whether it
-- can be lent is asked where the schema is (why_not_lent).
DO $ephor$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = @role_text@) THEN
        RAISE 'the static role % does not exist', @role_text@;
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = @role_text@
               AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls))
       OR @role_text@ = @login_text@ THEN
        RAISE 'the role % has rights that must not be lent; name another one', @role_text@;
    END IF;
    IF pg_catalog.current_setting('server_version_num')::int >= 160000 THEN
        EXECUTE format('GRANT %I TO ephor_owner WITH ADMIN TRUE, INHERIT FALSE, SET FALSE', @role_text@);
    END IF;
END
$ephor$;
