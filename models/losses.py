"""The weighted loss, and the weights that balance the classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Sum the weighted cross-entropy over the events of each member: -Σ w ln p(label), averaged over its submodels.

    Weights keep their sign. Events of negative weight push their own class's probability down, as they take away
    from its density.

    Args:
        logits: ``[M, K, B, C]``.
        labels: int64 ``[M, B]``.
        weights: ``[M, B]``.

    Returns:
        ``[M]``, in nats times the unit of the weights.
    """
    logarithms = functional.log_softmax(logits, dim=-1)  # (M, K, B, C)
    places = labels[:, None, :, None].expand(-1, logits.shape[1], -1, 1)  # (M, K, B, 1)
    chosen = torch.gather(logarithms, -1, places).squeeze(-1)  # (M, K, B)
    return -(weights.unsqueeze(1) * chosen).sum(dim=2).mean(dim=1)  # (M,)


def class_factors(
    weights: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], classes: int
) -> npt.NDArray[np.float64]:
    """Find the factor for each class that makes all classes' weights sum to the same and the mean weight one.

    The networks' outputs are then posteriors under equal priors of the classes.

    Args:
        weights: Physics weights ``[N]``, signed.
        labels: Class of each event, ``[N]``.
        classes: Number of classes.

    Returns:
        float64 ``[classes]``: multiply each physics weight by the factor of its class.

    Raises:
        ValueError: If a class's weights sum to zero or below, or are not finite.
    """
    sums = np.bincount(labels, weights=weights, minlength=classes)
    for index, total in enumerate(sums):
        if not (np.isfinite(total) and total > 0):
            raise ValueError(
                f"the weights of class {index} sum to {total:.6g} over {np.count_nonzero(labels == index)} events; "
                "expected a finite sum above zero."
            )
    factors: npt.NDArray[np.float64] = len(weights) / (classes * sums)
    return factors
