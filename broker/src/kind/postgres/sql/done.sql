-- Whoever installed keeps no right of the owners.
DO $ephor$
BEGIN
    IF NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
        REVOKE ephor_owner, ephor_signal FROM CURRENT_USER;
        -- As a member he would be asked for a certificate. From 16 on the server itself makes whoever makes
        -- a role a member, which only a superuser can end.
        IF EXISTS (SELECT FROM pg_catalog.pg_auth_members m WHERE m.member = current_user::regrole
                   AND m.roleid = 'ephor_certificate'::regrole AND m.grantor = m.member) THEN
            REVOKE ephor_certificate FROM CURRENT_USER;
        END IF;
    END IF;
END
$ephor$;
