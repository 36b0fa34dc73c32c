"""Damaged copies of valid inputs, and a check that each of them is either accepted or refused in one line."""

import copy
import faulthandler
import json
import math
import os
import resource
import signal
import struct
import time
import traceback
import zlib
from contextlib import contextmanager

import numpy as np
import yaml

from gitseg_tf.errors import GitsegError

# A damaged file must not make a parser hang, or allocate what only its header claims.
SECONDS, BYTES = 10, 3 << 30
_MOST_SHOWN = 12
_EXTREMES = tuple(2**bits - one for bits in (0, 7, 8, 15, 16, 31, 32, 63) for one in (1, 0))
_LEAVES = (
    None, True, False, 0, -1, 1, 2, 3.5, -0.0, 2**31, -(2**31), 2**63, -(2**63), 10**30, 1e308, 1e-320, math.nan,
    math.inf, -math.inf, "", " ", "0", "-1", "nan", "1e400", "true", "null", "\n", "a\nb", "\0", "../../x", "/", ".",
    "..", "~", "é", "\ud800", "x" * 5000, "1" * 5000, "%s%n{0}", [], {}, [[]], [{}], {"": ""}, [None] * 300, [0, 0, 0],
    {"a": {"b": [1, 2, {"c": None}]}}, [1e308] * 3, [math.nan] * 3, {"labels": []}, {"0": "x"},
)  # fmt: skip


class Tally:
    """Counts the inputs that a parser accepted and refused; anything else is a fault.

    A refusal is a GitsegError with a message of one line. Faults are other exceptions, messages of several lines, and
    calls that take longer than `seconds` or more than 3 GiB of further address space.

    Args:
        seconds: time limit of a call.
    """

    def __init__(self, seconds: float = SECONDS):
        self.accepted, self.refused, self.faults, self.messages, self._seconds = 0, 0, [], set(), seconds

    def __call__(self, what, call, *arguments, **options):
        """Call a function with a damaged input; `what` describes the damage for the report."""
        started = time.monotonic()
        try:
            with _limits(self._seconds):
                result = call(*arguments, **options)
            self.accepted += 1
            return result
        except GitsegError as error:
            self.refused += 1
            self.messages.add(str(error))
            if len(str(error).splitlines()) != 1 or "Traceback" in str(error) or len(str(error)) > 3000:
                self._fault(what, f"message: {str(error)[:500]!r}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if "gitseg_tf" in frame.filename] or frames
            where = f"{own[-1].filename.rpartition('gitseg_tf/')[2]}:{own[-1].lineno}"
            self._fault(what, f"{type(error).__name__} at {where}: {str(error)[:200]}")
        finally:
            if (took := time.monotonic() - started) > self._seconds:
                self._fault(what, f"took {took:.1f} s")
        return None

    def _fault(self, what, fault) -> None:
        self.faults.append(f"{fault}  <- {str(what)[:160]}")

    def check(self, inputs: int, accepted: int = 1, refused: int = 1) -> None:
        """Check the number of inputs, at least how many were accepted and refused, and that there were no faults."""
        kinds = {}
        for fault in self.faults:
            kinds.setdefault(fault.split(": ")[0], []).append(fault)
        shown = "\n".join(f"{len(same)} x {same[0]}" for same in list(kinds.values())[:_MOST_SHOWN])
        assert not self.faults, f"{len(self.faults)} faults of {len(kinds)} kinds:\n{shown}"
        assert self.accepted + self.refused == inputs
        assert self.accepted >= accepted, f"only {self.accepted} of {inputs} accepted: the check says little"
        assert self.refused >= refused, f"only {self.refused} of {inputs} refused: the check says little"


class Hang(BaseException):
    """A call took too long; not an Exception, so that no handler swallows it."""


@contextmanager
def _limits(seconds):
    def stop(signum, frame):
        raise Hang(f"no end after {seconds} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(6 * seconds, exit=True)  # native code does not notice the signal
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


def damaged_bytes(rng, content: bytes, first: int = 0, last: int | None = None) -> bytes:
    """Damage a file: flipped bits, pieces that are lost, repeated, moved or inserted, extreme numbers, a wrong end.

    Args:
        rng: numpy Generator.
        content: the valid file.
        first, last: the part of the file that is damaged.

    Returns:
        The damaged file; rarely, the valid one.
    """
    data, last = bytearray(content), len(content) if last is None else min(last, len(content))

    def at():
        return int(rng.integers(first, max(last, first + 1)))

    kind = rng.integers(12)
    if kind == 0 and rng.random() < 0.2:
        return b""
    if kind <= 1:
        del data[at() :]
    elif kind <= 4:
        for _ in range(int(rng.integers(1, 9))):
            if data:
                data[min(at(), len(data) - 1)] ^= 1 << int(rng.integers(8))
    elif kind == 5:
        place, size = at(), int(rng.integers(1, 65))
        data[place : place + size] = rng.bytes(size)
    elif kind == 6:
        place = at()
        data[place:place] = rng.bytes(int(rng.integers(1, 65)))
    elif kind == 7:
        place = at()
        del data[place : place + int(rng.integers(1, 65))]
    elif kind == 8:
        place, size = at(), int(rng.integers(1, 257))
        data[place:place] = data[place : place + size]
    elif kind == 9:
        one, size = at(), int(rng.integers(1, 129))
        piece = data[one : one + size]
        del data[one : one + size]
        other = at()
        data[other:other] = piece
    elif kind == 10:
        size, place = int(rng.choice([1, 2, 4, 8])), at()
        number = int(_EXTREMES[rng.integers(len(_EXTREMES))]) & ((1 << 8 * size) - 1)
        data[place : place + size] = number.to_bytes(size, str(rng.choice(["little", "big"])))
    else:
        place, size = at(), int(rng.integers(1, 65))
        data[place : place + size] = bytes(size)
    return bytes(data)


def damaged_tree(rng, tree, times: int = 2):
    """Damage parsed JSON or YAML: other types and extreme values of leaves, lost, repeated, renamed or moved nodes."""
    tree = copy.deepcopy(tree)
    for _ in range(int(rng.integers(1, times + 1))):
        places = [place for place in _places(tree)]
        if not places:
            return _leaf(rng)
        parent, key = places[rng.integers(len(places))]
        other, other_key = places[rng.integers(len(places))]
        kind = rng.integers(10)
        if kind <= 4:
            parent[key] = _leaf(rng)
        elif kind == 5:
            del parent[key]
        elif kind == 6:
            parent[key] = copy.deepcopy(other[other_key])
        elif kind == 7 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif kind == 7:
            parent[f"{key}x" if rng.random() < 0.5 else ""] = parent.pop(key)
        elif kind == 8:
            parent[key] = [parent[key]] if rng.random() < 0.5 else {"0": parent[key]}
        else:
            parent[key] = str(parent[key]) if rng.random() < 0.7 else {str(parent[key])[:20]: 1}
    return _leaf(rng) if rng.random() < 0.02 else tree


def _leaf(rng):
    return copy.deepcopy(_LEAVES[rng.integers(len(_LEAVES))])


def _places(tree):
    """Yield (parent, key) of each node below the root."""
    items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from _places(value)


def damaged_json(rng, tree) -> bytes:
    """Damage a JSON file, as a tree or as text."""
    return _damaged_text(rng, tree, lambda node: json.dumps(node, indent=1), ("[", '{"a":', '[{"a":['))


def damaged_yaml(rng, tree) -> bytes:
    """Damage a YAML file, as a tree or as text."""
    return _damaged_text(rng, tree, _yaml, ("[", "{a: ", "- ", "[{a: ["))


def _yaml(tree) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _damaged_text(rng, tree, dump, openings) -> bytes:
    kind = rng.integers(20)
    if kind == 0:
        return str(rng.choice(openings)).encode() * int(rng.choice([10, 300, 3000]))
    if kind == 1:
        return dump(tree).encode(str(rng.choice(["utf-16", "utf-32", "utf-8-sig", "cp037"])))
    if kind <= 6:
        return damaged_bytes(rng, dump(tree).encode())
    return dump(damaged_tree(rng, tree)).encode("utf-8", "surrogatepass")


def generator(seed: int):
    """A numpy Generator; FUZZ_SEED in the environment gives other inputs than those of CI."""
    return np.random.default_rng([seed, int(os.environ.get("FUZZ_SEED", 0))])


def framed_png(chunks) -> bytes:
    """A PNG of chunks (type, content), with the right lengths and checksums."""
    frames = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(frames)


def png_bomb(width: int, height: int, depth: int = 16) -> bytes:
    """A PNG of a hundred bytes whose header promises an image of any size."""
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return framed_png([(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")])
