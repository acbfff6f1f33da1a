"""Whether any event that a score is judged on had a part in making it, by the identities of the events."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.pool import Pool
from analysis.splitting import Scheme

Identities = npt.NDArray[np.uint64]


def shared_events(pool: Pool, test: Identities, count: int, scheme: Scheme) -> dict[str, Any]:
    """Count the events that two roles share which must have none in common.

    Whatever is fitted for a network (transforms, weights, refinements, rankings) sees its training events, whatever is
    chosen for it (its epoch, its temperature, hyper-parameters) its stopping events, as the arrays given to it say. In
    the standard scheme a network stops on the fold that it is judged on, which is no mistake, but counted.

    Args:
        pool: All events that any network may train or stop on.
        test: Identities of the held-out test events of all classes.
        count: Number of folds.
        scheme: How networks use the folds.

    Returns:
        ``test``: events that are held out and in the pool; ``networks``: for each, events of its training set that are
        in its stopping set (``training_stopping``), and events of either that it is judged on out of fold
        (``training_judged``, ``stopping_judged``).
    """
    networks = []
    for network in range(count):
        training, stopping = (pool.identity[used] for used in pool.uses(network, count, scheme))
        judged = pool.identity[pool.folds == network]
        networks.append(
            {
                "training_stopping": _common(training, stopping),
                "training_judged": _common(training, judged),
                "stopping_judged": _common(stopping, judged),
            }
        )
    return {"test": _common(pool.identity, test), "networks": networks}


def leaks(shared: dict[str, Any], scheme: Scheme) -> list[str]:
    """What is wrong with counts of `shared_events`, in words."""
    found = [f"{shared['test']} held-out test events are in the training pool"] if shared["test"] else []
    for network, counts in enumerate(shared["networks"]):
        for pair, number in counts.items():
            if number and not (pair == "stopping_judged" and scheme == "standard"):
                found.append(f"network {network}: {number} events are {' and '.join(pair.split('_'))} events")
    return found


def _common(one: Identities, other: Identities) -> int:
    return int(np.isin(one, other).sum())
