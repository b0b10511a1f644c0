"""Checks tokens for the tests with stock libraries, one line in and one line out.

    checker.py DIRECTORY-OF-CHECKS.PY  <  "jwt|introspect|status AUDIENCE TOKEN"

Every line is checked afresh: no list is cached from one to the next.
"""
import os, sys

sys.path.insert(0, sys.argv[1])
from checks import Agent, Introspection, Issuer, Refused, StatusList

issuer = Issuer(os.environ["EPHOR_BROKER_URL"], os.environ["EPHOR_CA_FILE"])
agent = Agent(os.environ["EPHOR_SOCKET"])
for line in sys.stdin:
    way, audience, token = line.split(" ")
    check = {"jwt": lambda: issuer.verify,
             "introspect": lambda: Introspection(issuer, agent).check,
             "status": lambda: StatusList(issuer).check}[way]()
    try:
        print("good", check(token.strip(), audience)["sub"], flush=True)
    except Refused as why:
        print("refused", why, flush=True)
