#!/usr/bin/env python3
"""An application with a connection pool and a login that is extended for as long as it runs.

    ephor run --env DATABASE_URL=cred://orders-db -- python3 examples/postgres/pool.py

A pool needs nothing of Ephor: the URL is good while the process lives. One thing is worth telling it:
when the login was taken away, reconnecting is of no use, and the process should say so and end.
"""

import os
import sys

import psycopg
from psycopg_pool import ConnectionPool

REFUSED = ("28P01", "28000", "57P01")  # no such password, no such role, session ended by the server


def main() -> int:
    pool = ConnectionPool(
        os.environ["DATABASE_URL"],
        min_size=2,
        max_size=4,  # not above the entitlement's connection_limit
        max_lifetime=600,  # connections are replaced with the same login
        timeout=5,
    )
    with pool:
        for line in sys.stdin:
            try:
                with pool.connection() as connection:
                    print(connection.execute(line).fetchone()[0], flush=True)
            except psycopg.Error as error:
                if error.sqlstate in REFUSED or isinstance(error, psycopg.OperationalError):
                    print("the database login was taken away; ending", file=sys.stderr, flush=True)
                    return 1
                print(f"refused: {error}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
