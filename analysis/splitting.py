"""Buckets: which events are held out for the test, and which fold each of the others is in.

An event's bucket is a hash of its identity alone (contract 2 of the design): splitmix64 over the sample key and the
identity columns, so that it depends on neither file order, chunking, the number of workers nor the event's content.
Test bucket and fold come from two hashes with independent salts, since one hash taken modulo twice empties folds.

splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; constants as in
Vigna's public-domain reference implementation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

Scheme = Literal["rotating", "standard"]


def splitmix64(x: npt.NDArray[np.uint64] | np.uint64) -> UInt64:
    """Mix 64-bit integers; a bijection whose output bits are close to independent.

    Args:
        x: uint64 array of any shape.

    Returns:
        uint64 array of the same shape; arithmetic modulo 2^64.
    """
    with np.errstate(over="ignore"):
        z = np.asarray(x, dtype=np.uint64) + _GAMMA
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)


def key_of(text: str) -> int:
    """Turn a name (sample, file, salt) into an int64: the first 8 bytes, little endian, of its SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def event_identity(sample: str, columns: Sequence[npt.NDArray[np.int64]]) -> UInt64:
    """Hash an event's identity, before any salt.

    Args:
        sample: Sample key, shared by every variation, extension and skim of the same events.
        columns: The identity columns in their declared order, each int64 of shape [N].

    Returns:
        uint64 of shape [N]: h = splitmix64(key), then h = splitmix64(h ^ column) for each column in turn.

    Raises:
        ValueError: No columns, or columns of different lengths.
    """
    if not columns:
        raise ValueError("an identity needs at least one column")
    lengths = {len(c) for c in columns}
    if len(lengths) > 1:
        raise ValueError(f"identity columns of different lengths: {sorted(lengths)}")
    h = np.full(lengths.pop(), splitmix64(np.uint64(key_of(sample) & 0xFFFFFFFFFFFFFFFF)), dtype=np.uint64)
    for column in columns:
        h = splitmix64(h ^ np.ascontiguousarray(column, dtype=np.int64).view(np.uint64))
    return h


def purpose_key(purpose: str, salt: str) -> int:
    """The int64 key of a salt for a purpose, ``"test"`` or ``"fold"``."""
    return key_of(f"{purpose}:{salt}")


def salted(identity: UInt64, purpose: str, salt: str) -> UInt64:
    """Hash identities once more with a salt, so that buckets of different purposes are independent.

    Args:
        identity: uint64 of shape [N], from `event_identity`.
        purpose: What the hash is for, ``"test"`` or ``"fold"``.
        salt: The salt from the configuration.
    """
    key = np.uint64(purpose_key(purpose, salt) & 0xFFFFFFFFFFFFFFFF)
    return splitmix64(identity ^ splitmix64(key))


def is_test(identity: UInt64, fraction: float, salt: str) -> npt.NDArray[np.bool_]:
    """Tell which events are held out for the test.

    Args:
        identity: uint64 of shape [N].
        fraction: Expected share of test events, 0 < fraction < 1.
        salt: Salt of the test bucket; never tuned.

    Returns:
        bool of shape [N]: the upper 53 bits of the hash, as a number in [0, 1), lie below the fraction.
    """
    uniform = (salted(identity, "test", salt) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.asarray(uniform < fraction, dtype=np.bool_)


def fold_of(identity: UInt64, count: int, salt: str) -> npt.NDArray[np.int16]:
    """Give every event, test events and collision data included, its fold.

    Args:
        identity: uint64 of shape [N].
        count: Number of folds k.
        salt: Salt of the folds.

    Returns:
        int16 of shape [N], 0 ≤ fold < count.
    """
    return (salted(identity, "fold", salt) % np.uint64(count)).astype(np.int16)


@dataclass(frozen=True)
class Roles:
    """Which folds one network trains and stops on."""

    training: tuple[int, ...]
    stopping: int


def roles(network: int, count: int, scheme: Scheme) -> Roles:
    """Say which folds network f trains on and which it stops early on (contract 3).

    Args:
        network: f, the fold that the network leaves out.
        count: Number of folds k; at least 3 for `rotating`, 2 for `standard`.
        scheme: `rotating` stops on fold (f+1) mod k and trains on the other k-2, so that fold f is new to the
            network in every way. `standard` stops on f itself and trains on the other k-1.

    Raises:
        ValueError: Too few folds for the scheme.
    """
    least = 3 if scheme == "rotating" else 2
    if count < least:
        raise ValueError(f"{scheme} folds need a count of at least {least}, not {count}")
    stopping = (network + 1) % count if scheme == "rotating" else network
    training = tuple(f for f in range(count) if f not in (network, stopping))
    return Roles(training=training, stopping=stopping)
