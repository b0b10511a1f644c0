#!/bin/sh
# An application without an SDK: everything over the agent's Unix socket with curl.
# Run it with EPHOR_SOCKET set (`ephor dev -- sh examples/curl-session.sh` does).
# `bind=parent`: curl exits at once, so the token belongs to this shell and dies with it.
set -eu
ask() { curl --silent --show-error --fail-with-body --unix-socket "$EPHOR_SOCKET" -H 'Ephor-Local: 1' "$@"; echo; }

echo '# who am I?'
ask http://localhost/v1/whoami
echo '# a token for billing, bound to this shell'
ask 'http://localhost/v1/token?audience=billing&bind=parent' >"${TOKEN_FILE:-/dev/null}"
echo '# the task that holds it'
ask 'http://localhost/v1/task?bind=parent'
echo '# done: revoke it and show the receipt'
ask --request POST 'http://localhost/v1/task/complete?bind=parent'
