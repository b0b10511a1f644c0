#!/usr/bin/env python3
"""A service that answers callers with a good token: service.py AUDIENCE [introspect|status]

Prints its port. `EPHOR_BROKER_URL`, `EPHOR_CA_FILE` and `EPHOR_SOCKET` say where Ephor is.
"""
import http.server, os, sys

from checks import Agent, Introspection, Issuer, Refused, StatusList


def main():
    audience, way = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "introspect"
    issuer = Issuer(os.environ["EPHOR_BROKER_URL"], os.environ["EPHOR_CA_FILE"])
    checker = {"introspect": lambda: Introspection(issuer, Agent(os.environ["EPHOR_SOCKET"])),
               "status": lambda: StatusList(issuer)}[way]()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            scheme, _, token = self.headers.get("Authorization", "").partition(" ")
            try:
                if scheme.lower() != "bearer":
                    raise Refused("no bearer token")
                claims = checker.check(token, audience)
                self.answer(200, f"hello {claims['sub']}\n")
            except Refused as why:
                self.answer(401, f"{why}\n")

        def answer(self, status, text):
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
