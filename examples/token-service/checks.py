"""Two ways for a service to check an Ephor token, with stock libraries.

`Introspection` asks the broker at every call: a revoked token is refused at once, and the
broker must be reachable. `StatusList` verifies offline and fetches a small signed list every
few seconds: cheaper, and a revoked token is refused within the list's `ttl`.
"""
import base64, http.client, json, socket, ssl, time, urllib.parse, urllib.request, zlib

import jwt  # PyJWT


class Refused(Exception):
    """The token is not good; the message says why."""


class Agent:
    """The host's agent on its Unix socket."""

    def __init__(self, path):
        self.path = path

    def token(self, audience, **query):
        """A token for `audience`, bound to this process: it dies when we do."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.connect(self.path)
        target = "/v1/token?" + urllib.parse.urlencode({"audience": audience, **query})
        connection.request("GET", target, headers={"Ephor-Local": "1"})
        answer = connection.getresponse()
        body = json.loads(answer.read())
        connection.close()
        if answer.status != 200:
            raise Refused(f"{body['code']}: {body['detail']}")
        return body


class Issuer:
    """The broker, found by OIDC discovery."""

    def __init__(self, url, ca_file):
        self.url = url
        self.context = ssl.create_default_context(cafile=ca_file)
        self.metadata = self.json("/.well-known/openid-configuration")
        if self.metadata["issuer"] != url:
            raise Refused(f"discovery of {url} speaks for {self.metadata['issuer']}")
        self.keys = jwt.PyJWKClient(self.metadata["jwks_uri"], ssl_context=self.context)

    def json(self, path, data=None, headers=None):
        url = path if "://" in path else self.url + path
        request = urllib.request.Request(url, data=data, headers=headers or {})
        with urllib.request.urlopen(request, context=self.context, timeout=5) as answer:
            return json.load(answer)

    def verify(self, token, audience):
        """Signature, issuer, audience and expiry; not revocation."""
        try:
            key = self.keys.get_signing_key_from_jwt(token).key
            return jwt.decode(token, key, algorithms=["ES256"], audience=audience, issuer=self.url,
                              options={"require": ["exp", "iat", "iss", "aud", "sub", "jti"]})
        except jwt.PyJWTError as why:
            raise Refused(str(why)) from None


class Introspection:
    """RFC 7662. We are a caller too: our own token for the issuer says who we are."""

    def __init__(self, issuer, agent):
        self.issuer, self.agent = issuer, agent

    def check(self, token, audience):
        claims = self.issuer.verify(token, audience)
        mine = self.agent.token(self.issuer.url)["token"]
        answer = self.issuer.json(self.issuer.metadata["introspection_endpoint"],
                                  urllib.parse.urlencode({"token": token}).encode(),
                                  {"Authorization": f"Bearer {mine}"})
        if answer["active"] is not True:
            raise Refused("introspection says active=false")
        return claims


class StatusList:
    """IETF Token Status List: one bit a token, in a signed and cached list."""

    def __init__(self, issuer):
        self.issuer, self.lists = issuer, {}

    def check(self, token, audience):
        claims = self.issuer.verify(token, audience)
        status = claims["status"]["status_list"]
        index, bits = status["idx"], self.bits(status["uri"])
        if index >= len(bits) * 8 or bits[index // 8] >> (index % 8) & 1:
            raise Refused(f"listed: bit {index} of {status['uri']}")
        return claims

    def bits(self, uri):
        until, bits = self.lists.get(uri, (0, b""))
        if time.monotonic() >= until:
            with urllib.request.urlopen(uri, timeout=5) as answer:
                text = answer.read().decode()
            if jwt.get_unverified_header(text)["typ"] != "statuslist+jwt":
                raise Refused("what the list's address gives is no status list")
            key = self.issuer.keys.get_signing_key_from_jwt(text).key
            claims = jwt.decode(text, key, algorithms=["ES256"], options={"require": ["iat", "sub"]})
            if claims["sub"] != uri:
                raise Refused(f"the list at {uri} is of {claims['sub']}")
            packed = claims["status_list"]["lst"]
            bits = zlib.decompress(base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4)))
            self.lists[uri] = (time.monotonic() + claims.get("ttl", 5), bits)
        return bits
