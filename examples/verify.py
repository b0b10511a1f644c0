#!/usr/bin/env python3
"""Check an Ephor audit export and its receipts without any of Ephor's code.

    verify.py [DIR [TASK]] --key VKEY

DIR   what `ephor audit export --to DIR` wrote (default: where this file is)
TASK  check the receipt of this task only, as in receipts/TASK.json
VKEY  the log's verifier key, from someone you trust and never from DIR

Formats: C2SP signed-note, tlog-checkpoint and tlog-tiles; RFC 6962 hashing.
Needs Python 3 and the package `cryptography` (for Ed25519), nothing else.
Exit: 0 everything holds, 1 something does not (it says what), 2 usage.
"""
import argparse, base64, hashlib, json, pathlib, sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MOST_EVIDENCE = 100  # entries that one receipt has room for; of more it gives the number


class Refused(Exception):
    """Something in the export does not hold."""


def need(holds, what):
    if not holds:
        raise Refused(what)


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def unbase64(text):
    """Base64 of which only one spelling is accepted."""
    data = base64.b64decode(text, validate=True)
    need(base64.b64encode(data).decode() == text, f"{text!r} is not canonical base64")
    return data


def subtrees(level):
    """The hashes of all complete subtrees of 1, 2, 4, 8, ... leaves."""
    heights = [level]
    while len(level) > 1:
        level = [sha256(b"\1", level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        heights.append(level)
    return heights


def root(heights, size):
    """RFC 6962, 2.1: the root over the first `size` leaves."""
    right = None
    for height, level in enumerate(heights):
        if size >> height & 1:
            left = level[(size >> height) - 1]
            right = left if right is None else sha256(b"\1", left, right)
    return sha256() if right is None else right


def root_by_proof(leaf, index, size, proof):
    """RFC 9162, 2.1.3.2: the root that an inclusion proof leads to."""
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


def verifier_key(text):
    """The argument --key, if it has the form of a key; whose it is comes out below."""
    try:
        name, key_id, key = text.split("+", 2)
        if name and len(bytes.fromhex(key_id)) == 4 and base64.b64decode(key, validate=True):
            return text
    except ValueError:
        pass
    raise argparse.ArgumentTypeError("not NAME+ID+KEY, as `ephor audit key` prints it")


def open_note(note, vkey):
    """Size and root of a signed checkpoint; refused unless `vkey` signed it."""
    name, key_id, key = vkey.split("+", 2)
    key = unbase64(key)
    need(key[:1] == b"\1" and len(key) == 33, "the key is not an Ed25519 verifier key")
    need(bytes.fromhex(key_id) == sha256(name.encode(), b"\n", key)[:4], "the key's id is not its own")
    text, _, signatures = note.rpartition("\n\n")
    lines = text.split("\n")
    need(len(lines) == 3 and lines[0] == name, f"the checkpoint is of {lines[0]!r}, the key of {name!r}")
    for line in signatures.removesuffix("\n").split("\n"):
        dash, signer, value = line.split(" ")
        value = unbase64(value)
        if dash == "\u2014" and signer == name and value[:4].hex() == key_id:
            try:
                Ed25519PublicKey.from_public_bytes(key[1:]).verify(value[4:], (text + "\n").encode())
            except InvalidSignature:
                raise Refused("the checkpoint's signature does not verify") from None
            return int(lines[1]), unbase64(lines[2])
    raise Refused("the checkpoint is not signed by this key")


def tile_path(n, width):
    groups = [f"{n % 1000:03}"]
    while n := n // 1000:
        groups.insert(0, f"x{n % 1000:03}")
    return "/".join(groups) + ("" if width == 256 else f".p/{width}")


def pruned_entries(log, size):
    """How many leading events have only their hash here, because retention pruned their text."""
    path = log / "pruned"
    pruned = int(path.read_text()) if path.exists() else 0
    need(0 <= pruned <= size and pruned % 256 == 0, "log/pruned is no number of whole bundles of this log")
    return pruned


def read_hashes(log, pruned):
    """The hashes of leaves without text, from the tiles; the root shows whether they are right."""
    data = b"".join((log / "tile/0" / tile_path(n, 256)).read_bytes() for n in range(pruned // 256))
    need(len(data) == pruned * 32, "a tile of pruned entries is not whole")
    return [data[at:at + 32] for at in range(0, len(data), 32)]


def read_leaves(log, size, pruned):
    """All leaves, from the entry bundles: 256 a file, each with a 2-byte length. None for pruned ones."""
    leaves = [None] * pruned
    for n in range(pruned // 256, (size + 255) // 256):
        width = min(256, size - n * 256)
        data, at = (log / "tile/entries" / tile_path(n, width)).read_bytes(), 0
        for _ in range(width):
            end = at + 2 + int.from_bytes(data[at:at + 2], "big")
            need(at + 2 <= len(data) and end <= len(data), f"entry bundle {n} is cut short")
            leaves.append(data[at + 2:end])
            at = end
        need(at == len(data), f"entry bundle {n} has bytes too many")
    return leaves


def check_tiles(log, heights):
    """Every hash tile in the export says what its entries say."""
    for number, level in enumerate(heights[::8]):
        for n in range(0, (len(level) + 255) // 256):
            part = level[n * 256:n * 256 + 256]
            path = log / "tile" / str(number) / tile_path(n, len(part))
            need(path.read_bytes() == b"".join(part), f"tile {path.relative_to(log)} is not what its entries hash to")


def check_receipt(receipt, task, leaves, heights, history, pruned, vkey):
    """The receipt's leaf is in the log, and tells of every credential of its task."""
    leaf, index = receipt["leaf"].encode(), receipt["index"]
    size, signed = open_note(receipt["checkpoint"], vkey)
    need(size <= len(leaves), "the receipt is younger than this log")
    need(root(heights, size) == signed, "the receipt's checkpoint is of another history")
    need(0 <= index < size, f"index {index} is outside a log of {size}")
    proof = [unbase64(sibling) for sibling in receipt["proof"]]
    need(root_by_proof(sha256(b"\0", leaf), index, size, proof) == signed, "the inclusion proof does not hold")
    need(heights[0][index] == sha256(b"\0", leaf), f"leaf {index} of the log is another one")
    event = json.loads(leaf)
    need(event["type"] == "prove.receipt" and event["task"] == task, f"this is not the receipt of {task}")
    issued, receipts = history.get(task, (set(), []))
    need(receipts == ([index] if index >= pruned else []), "the log has more than one receipt of this task")
    told = {entry["credential"]: entry for entry in event.get("evidence", [])}
    need(all(entry["state"] in ("contained", "dead") for entry in told.values()), "a credential is not ended")
    counted = event.get("totals", {}).get("credentials", len(told))
    if not pruned:  # else what was issued in the pruned part is not known
        need(set(told) <= issued, "the receipt tells of a credential that the log did not issue to this task")
    need(counted == len(issued) or pruned and counted > len(issued),
         f"the log issued {len(issued)} credentials, the receipt counts {counted}")
    need(issued <= set(told) or len(told) >= MOST_EVIDENCE, "the receipt does not tell of all credentials")
    return event, told


def histories(leaves):
    """By task: the credentials that were issued to it, and the places of its receipts."""
    history = {}
    for index, leaf in enumerate(leaves):
        if leaf is None:
            continue
        event = json.loads(leaf)
        issued, receipts = history.setdefault(event.get("task"), (set(), []))
        if event["type"] == "issue.recorded" and event["outcome"] == "ok":
            issued.add(event["credential"]["id"])
        if event["type"] == "prove.receipt" and event["outcome"] == "ok":
            receipts.append(index)
    return history


def check(directory, task, vkey):
    log = directory / "log"
    size, signed = open_note((log / "checkpoint").read_bytes().decode(), vkey)
    pruned = pruned_entries(log, size)
    leaves = read_leaves(log, size, pruned)
    heights = subtrees(read_hashes(log, pruned) + [sha256(b"\0", leaf) for leaf in leaves[pruned:]])
    need(root(heights, size) == signed, "the entries do not hash to the signed root")
    check_tiles(log, heights)
    print(f"ok: {size} events, root signed by {vkey.split('+')[0]}")
    if pruned:
        told = [json.loads(leaf) for leaf in leaves[pruned:] if b"operate.pruned" in leaf]
        told = [event["facts"].get("entries_below", 0) for event in told if event["type"] == "operate.pruned"]
        need(max(map(int, told), default=0) >= pruned, "the log does not say that so many events were pruned")
        print(f"    of the first {pruned} only the hashes are there: retention pruned their text, as the log says")
    history = histories(leaves)
    for name in [task] if task else sorted(path.stem for path in (directory / "receipts").iterdir()):
        path = directory / "receipts" / f"{name}.json"
        need(path.is_file(), f"there is no receipt of {name}; name it as a file in receipts/ is named")
        receipt = json.loads(path.read_bytes())
        event, told = check_receipt(receipt, name, leaves, heights, history, pruned, vkey)
        print(f"ok: receipt of {name} is leaf {receipt['index']}, {event['time']}")
        for entry in told.values():
            until = f", a verifier that never asks accepts it until {entry['until']}" if "until" in entry else ""
            print(f"    {entry['kind']} {entry['credential']} {entry['state']} at {entry['where']}{until}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=pathlib.Path, nargs="?", default=pathlib.Path(__file__).resolve().parent)
    parser.add_argument("task", nargs="?")
    parser.add_argument("--key", required=True, type=verifier_key, help="verifier key NAME+ID+KEY")
    args = parser.parse_args()
    try:
        check(args.dir, args.task, args.key)
    except Refused as why:
        print(f"REFUSED: {why}", file=sys.stderr)
        return 1
    except OSError as why:
        print(f"REFUSED: the export cannot be read: {why}", file=sys.stderr)
        return 1
    except (ValueError, LookupError, TypeError, AttributeError) as why:
        print(f"REFUSED: the export cannot be read: {why!r}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
