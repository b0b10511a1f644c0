#!/usr/bin/env python3
"""Check an Ephor audit export and one task's receipt without any of Ephor's code.

    verify.py DIR TASK --key VKEY

DIR   what `ephor audit export --to DIR` wrote: log/ and receipts/
TASK  the task (or receipt) to check, as in receipts/TASK.json
VKEY  the log's verifier key, from someone you trust and never from DIR

Formats: C2SP signed-note, tlog-checkpoint and tlog-tiles; RFC 6962 hashing.
Needs Python 3 and the package `cryptography` (for Ed25519), nothing else.
Exit: 0 everything holds, 1 something does not (it says what), 64 usage.
"""
import argparse, base64, hashlib, json, pathlib, sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class Refused(Exception):
    """Something in the export does not hold."""


def need(holds, what):
    if not holds:
        raise Refused(what)


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def tree(level):
    """Every level of the RFC 6962 tree over these leaf hashes; the last holds the root."""
    levels = [level]
    while len(level) > 1:
        pairs = [sha256(b"\1", level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(pairs) * 2:]
        levels.append(level)
    return levels


def root(hashes):
    return tree(hashes)[-1][0] if hashes else sha256()


def root_by_proof(leaf, index, size, proof):
    """RFC 9162, 2.1.3.2: the root that an inclusion proof leads to."""
    need(0 <= index < size, f"index {index} is outside a log of {size}")
    here, node, last = leaf, index, size - 1
    for sibling in proof:
        need(last > 0, "the inclusion proof is too long")
        if node % 2 or node == last:
            here = sha256(b"\1", sibling, here)
            while node % 2 == 0 and node:
                node, last = node >> 1, last >> 1
        else:
            here = sha256(b"\1", here, sibling)
        node, last = node >> 1, last >> 1
    need(last == 0, "the inclusion proof is too short")
    return here


def open_note(note, vkey):
    """Size and root of a signed checkpoint; refused unless `vkey` signed it."""
    name, key_id, key = vkey.split("+", 2)
    key = base64.b64decode(key, validate=True)
    need(key[:1] == b"\1" and len(key) == 33, "the key is not an Ed25519 verifier key")
    need(bytes.fromhex(key_id) == sha256(name.encode(), b"\n", key)[:4], "the key's id is not its own")
    text, _, signatures = note.partition("\n\n")
    lines = (text + "\n").split("\n")
    need(len(lines) >= 4 and lines[0] == name, f"the checkpoint is of {lines[0]!r}, the key of {name!r}")
    for line in signatures.splitlines():
        dash, signer, value = line.split(" ", 2)
        value = base64.b64decode(value, validate=True)
        if dash == "\u2014" and signer == name and value[:4].hex() == key_id:
            try:
                Ed25519PublicKey.from_public_bytes(key[1:]).verify(value[4:], (text + "\n").encode())
            except InvalidSignature:
                raise Refused("the checkpoint's signature does not verify") from None
            return int(lines[1]), base64.b64decode(lines[2], validate=True)
    raise Refused("the checkpoint is not signed by this key")


def tile_path(n):
    groups = [f"{n % 1000:03}"]
    while n := n // 1000:
        groups.insert(0, f"x{n % 1000:03}")
    return "/".join(groups)


def read_leaves(log, size):
    """All leaves, from the entry bundles: 256 a file, each with a 2-byte length."""
    leaves = []
    for n in range(0, (size + 255) // 256):
        width = min(256, size - n * 256)
        path = log / "tile/entries" / (tile_path(n) + ("" if width == 256 else f".p/{width}"))
        need(path.is_file(), f"{path.name}: entries {n * 256} and on are missing")
        data, at = path.read_bytes(), 0
        for _ in range(width):
            end = at + 2 + int.from_bytes(data[at:at + 2], "big")
            need(at + 2 <= len(data) and end <= len(data), f"entry bundle {n} is cut short")
            leaves.append(data[at + 2:end])
            at = end
        need(at == len(data), f"entry bundle {n} has bytes too many")
    return leaves


def check_tiles(log, hashes):
    """Every hash tile in the export says what its entries say."""
    level, number = hashes, 0
    while level:
        for n in range(0, (len(level) + 255) // 256):
            part = level[n * 256:n * 256 + 256]
            name = tile_path(n) + ("" if len(part) == 256 else f".p/{len(part)}")
            path = log / "tile" / str(number) / name
            need(path.is_file(), f"tile {number}/{name} is missing")
            need(path.read_bytes() == b"".join(part), f"tile {number}/{name} is not what its entries hash to")
        level = [root(level[i:i + 256]) for i in range(0, len(level) - 255, 256)]
        number += 1


def check_receipt(receipt, task, leaves, hashes, vkey):
    """The receipt's leaf is in the log, and tells of every credential of its task."""
    leaf, index = receipt["leaf"].encode(), receipt["index"]
    size, signed = open_note(receipt["checkpoint"], vkey)
    need(size <= len(leaves), "the receipt is younger than this log")
    need(root(hashes[:size]) == signed, "the receipt's checkpoint is of another history")
    proof = [base64.b64decode(p, validate=True) for p in receipt["proof"]]
    need(root_by_proof(sha256(b"\0", leaf), index, size, proof) == signed, "the inclusion proof does not hold")
    need(leaves[index] == leaf, f"leaf {index} of the log is another one")
    event = json.loads(leaf)
    need(event["type"] == "prove.receipt" and event["task"] == task, f"this is not the receipt of {task}")
    told = {c["id"]: c for c in event["evidence"]["credentials"]}
    issued = set()
    for other in map(json.loads, leaves[:index]):
        if other.get("task") == task and other["type"] == "issue.recorded" and other["outcome"] == "ok":
            issued.add(other["credential"]["id"])
    need(issued == set(told), f"the log issued {len(issued)} credentials, the receipt tells of {len(told)}")
    return event, told


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("task")
    parser.add_argument("--key", required=True, help="verifier key NAME+ID+KEY")
    args = parser.parse_args()
    try:
        log = args.dir / "log"
        size, signed = open_note((log / "checkpoint").read_text(), args.key)
        leaves = read_leaves(log, size)
        hashes = [sha256(b"\0", leaf) for leaf in leaves]
        need(root(hashes) == signed, "the entries do not hash to the signed root")
        check_tiles(log, hashes)
        receipt = json.loads((args.dir / "receipts" / f"{args.task}.json").read_text())
        event, told = check_receipt(receipt, args.task, leaves, hashes, args.key)
    except Refused as why:
        print(f"REFUSED: {why}", file=sys.stderr)
        return 1
    except (OSError, ValueError, KeyError, TypeError, IndexError) as why:
        print(f"REFUSED: the export cannot be read: {why!r}", file=sys.stderr)
        return 1
    print(f"ok: {size} events, root signed by {args.key.split('+')[0]}")
    print(f"ok: receipt of {args.task} is leaf {receipt['index']}, {event['time']}")
    for name, credential in told.items():
        until = f", a verifier that never asks accepts it until {credential['listed_until']}" if credential.get("listed_until") else ""
        print(f"    {credential['kind']} {name} {credential['state']}{until}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
