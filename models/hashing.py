"""Random numbers from counters: the same on every device, in any order and in any stack of networks.

Every number is splitmix64 of a key and a counter (Steele, Lea, Flood, OOPSLA 2014, doi:10.1145/2660193.2660195), so
that a network's initial weights, batch order and dropout follow from the seed and the network alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_VECTOR = 64  # numbers; a multiple of what any kernel treats at once
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_WORD = 2**64


def key(*words: int) -> int:
    """Mix integers into one 64-bit key; every word and its position matter.

    Args:
        words: Any integers; they are taken modulo 2⁶⁴.

    Returns:
        The key as a signed 64-bit integer, as torch holds it.
    """
    mixed = 0
    for word in words:
        mixed = _splitmix64(mixed ^ (word % _WORD))
    return _signed(mixed)


def splitmix64(counters: Tensor) -> Tensor:
    """Hash 64-bit integers: one step of splitmix64 from each state.

    Args:
        counters: Any shape, int64; left unchanged.

    Returns:
        The hashes, int64, in the same shape. Integers wrap modulo 2⁶⁴, and the sign bit counts as bit 63.
    """
    mixed = counters + _signed(_GOLDEN)
    # torch shifts signed integers arithmetically: the mask clears the copies of the sign bit.
    mixed.bitwise_xor_((mixed >> 30).bitwise_and_(2**34 - 1)).mul_(_signed(_FIRST))
    mixed.bitwise_xor_((mixed >> 27).bitwise_and_(2**37 - 1)).mul_(_signed(_SECOND))
    return mixed.bitwise_xor_((mixed >> 31).bitwise_and_(2**33 - 1))


def uniform(stream: int, count: int) -> Tensor:
    """Draw uniform numbers in [0, 1).

    Args:
        stream: The key of the stream.
        count: How many numbers.

    Returns:
        float64 ``[count]`` on the CPU, with 53 random bits each.
    """
    bits = splitmix64(splitmix64(torch.arange(count)) ^ stream)
    return (bits >> 11).bitwise_and_(2**53 - 1).to(torch.float64) * 2.0**-53


def counters(keys: Tensor, count: int) -> Tensor:
    """Hash the numbers from 0 on, with each key: int64 ``[M, count]`` from keys ``[M]``."""
    numbers = torch.arange(count, device=keys.device) * _signed(_GOLDEN)  # (count,)
    return splitmix64(numbers + keys.unsqueeze(1))  # (M, count)


def normal(keys: Tensor, count: int) -> Tensor:
    """Draw numbers of the standard normal distribution.

    Args:
        keys: One for each stream, int64 ``[M]``.
        count: How many numbers of each.

    Returns:
        float32 ``[M, count]`` on the keys' device, with 24 random bits each: none is beyond 5.5.
    """
    # Whole vectors for each stream: a kernel may round the last few numbers of a tensor differently.
    padded = -(-count // _VECTOR) * _VECTOR
    places = (counters(keys, padded) >> 40).bitwise_and_(2**24 - 1)  # (M, padded)
    between = places.mul_(2).add_(1 - 2**24).to(torch.float32).mul_(2.0**-24)  # exact, in (-1, 1)
    return torch.erfinv(between).mul_(math.sqrt(2))[:, :count]  # (M, count)


def _splitmix64(state: int) -> int:
    mixed = (state + _GOLDEN) % _WORD
    mixed = (mixed ^ (mixed >> 30)) * _FIRST % _WORD
    mixed = (mixed ^ (mixed >> 27)) * _SECOND % _WORD
    return mixed ^ (mixed >> 31)


def _signed(word: int) -> int:
    return word - _WORD if word >= 2**63 else word
