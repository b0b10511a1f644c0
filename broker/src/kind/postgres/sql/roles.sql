-- Roles of Ephor, in the whole server. Nobody logs in as the two owners.
DO $ephor$
BEGIN
    IF pg_catalog.current_setting('server_version_num')::int < 130000 THEN
        RAISE 'Ephor needs PostgreSQL 13 or later; this is %', pg_catalog.version();
    END IF;
    -- Owns the functions that make and drop logins.
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'ephor_owner') THEN
        CREATE ROLE ephor_owner NOLOGIN CREATEROLE;
    END IF;
    -- Owns the functions that see and end sessions.
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'ephor_signal') THEN
        CREATE ROLE ephor_signal NOLOGIN;
    END IF;
    -- Logins that only a certificate lets in are members: pg_hba.conf asks these for one, and nobody else.
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'ephor_certificate') THEN
        CREATE ROLE ephor_certificate NOLOGIN;
    END IF;
    -- The broker's own login: it may call the functions, and nothing else.
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = @login_text@) THEN
        EXECUTE format('CREATE ROLE %I LOGIN NOINHERIT', @login_text@);
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = @login_text@
               AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)) THEN
        RAISE 'the role % has rights that the broker must not have; name another one', @login_text@;
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname IN ('ephor_owner', 'ephor_signal', 'ephor_certificate')
               AND (rolcanlogin OR rolsuper)) THEN
        RAISE 'ephor_owner, ephor_signal and ephor_certificate must be NOLOGIN and no superusers';
    END IF;
    -- Only the owner of a function is given it; who installs need not be a superuser.
    IF NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
        GRANT ephor_owner, ephor_signal TO CURRENT_USER;
    END IF;
END
$ephor$;
ALTER ROLE ephor_owner NOLOGIN CREATEROLE INHERIT;
GRANT pg_signal_backend, pg_read_all_stats TO ephor_signal;
DO $ephor$
BEGIN
    IF pg_catalog.current_setting('server_version_num')::int >= 160000 THEN
        EXECUTE 'GRANT ephor_certificate TO ephor_owner WITH ADMIN TRUE, INHERIT FALSE, SET FALSE';
    END IF;
END
$ephor$;
@password@
@groups@
