#!/usr/bin/env python3
"""Calls the service of service.py with a token of its own: client.py PORT AUDIENCE

Prints the answer; exits 1 when the service refuses.
"""
import http.client, os, sys

from checks import Agent


def main():
    port, audience = int(sys.argv[1]), sys.argv[2]
    token = Agent(os.environ["EPHOR_SOCKET"]).token(audience)["token"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/", headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    print(answer.status, answer.read().decode().strip())
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
