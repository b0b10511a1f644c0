#!/usr/bin/env python3
"""TLS between two workloads of Ephor, both ends in one program: the server refuses a caller whose
certificate is listed. With Python's ssl alone (3.8 or newer).

    handshake.py CALLER.pem SERVER.pem CA.pem LISTS_URL SPIFFE-ID

CALLER.pem, SERVER.pem  key and chain in one file, such as tls.pem of `ephor cert --to DIR`
CA.pem                  the roots of your trust domain
LISTS_URL               where the broker publishes its lists
SPIFFE-ID               whom the server expects

Exit: 0 taken, 1 refused by the server, 2 usage.
"""
import json, socket, ssl, sys, tempfile, threading, urllib.request
from base64 import encodebytes

BYTES_MAX = 4 << 20
SECONDS = 5


def fetch(url):
    with urllib.request.urlopen(url, timeout=SECONDS) as answer:
        return answer.read(BYTES_MAX)


def lists(base):
    """All revocation lists in PEM. Their signatures are checked where a certificate is."""
    found = ""
    for one in json.loads(fetch(base + "/crl"))["lists"]:
        der = encodebytes(fetch(one["url"])).decode()
        found += f"-----BEGIN X509 CRL-----\n{der}-----END X509 CRL-----\n"
    return found


def context(purpose, own, ca):
    """For one end: shows its own certificate and asks for the other's."""
    made = ssl.SSLContext(purpose)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.load_cert_chain(own)
    made.load_verify_locations(ca)
    made.check_hostname = False  # who it is stands in the SPIFFE ID
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def server_context(own, ca, revoked):
    """Make a new one when the lists changed: LISTS_URL/crl has a version for each."""
    made = context(ssl.PROTOCOL_TLS_SERVER, own, ca)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(revoked)
        file.flush()
        if revoked:
            made.load_verify_locations(file.name)
    # A certificate that names a list which is not loaded is refused. Not VERIFY_CRL_CHECK_CHAIN: that
    # asks for a list that covers the root.
    made.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    made.options |= ssl.OP_NO_TICKET  # a resumed session would not be checked
    return made


def spiffe_ids(connection):
    names = connection.getpeercert().get("subjectAltName", ())
    return [name for kind, name in names if kind == "URI"]


def serve(listener, tls, expected, verdict):
    plain, _ = listener.accept()
    plain.settimeout(SECONDS)
    try:
        with tls.wrap_socket(plain, server_side=True) as connection:
            ids = spiffe_ids(connection)
            if ids != [expected]:
                raise PermissionError(f"it is for {ids}, not for {expected}")
            connection.sendall(b"hello")
    except OSError as error:  # ssl.SSLError and PermissionError are ones
        verdict.append(error)


def main(caller, server, ca, base, expected):
    tls = server_context(server, ca, lists(base))
    verdict = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        thread = threading.Thread(target=serve, args=(listener, tls, expected, verdict))
        thread.start()
        said = b""
        try:
            with socket.create_connection(listener.getsockname(), SECONDS) as plain:
                client = context(ssl.PROTOCOL_TLS_CLIENT, caller, ca)
                with client.wrap_socket(plain) as connection:
                    said = connection.recv(5)
        except OSError as error:
            print(f"the caller saw: {error}", file=sys.stderr)
        thread.join()
    if verdict:
        sys.exit(f"refused: {verdict[0]}")
    if said != b"hello":
        sys.exit("refused: no answer")
    print(f"taken: {expected}")


if __name__ == "__main__":
    if len(sys.argv) != 6:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(*sys.argv[1:])
