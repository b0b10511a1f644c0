-- Whoever installed keeps no right of the owners.
DO $ephor$
BEGIN
    IF NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
        REVOKE ephor_owner, ephor_signal FROM CURRENT_USER;
    END IF;
END
$ephor$;
