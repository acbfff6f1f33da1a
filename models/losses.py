"""The weighted losses, what logits mean, and the weights that balance the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from models.settings import Balance, Loss, TrainingSettings, chosen

_LEARNED = 1e-12  # a probability that is missing, below all that float32 tells from none


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
    return _weighted(_chosen(functional.log_softmax(logits, dim=-1), labels), weights)


class Losses:
    """The loss of each member of a stack: one function for all, whose constants are each member's own.

    With targets q_c, 1 for the label and 0 for the other classes, an event of weight w costs -w Σ q_c ln p_c
    (``cross_entropy``), -w Σ q_c (1 - p_c)^γ ln p_c (``focal``: Lin et al., arXiv 1708.02002, eq. 4), or
    -w Σ [q_c ln σ(z_c) + (1 - q_c) ln(1 - σ(z_c))] (``binary_cross_entropy``: one logit z_c for each class, which
    tells it from the others), or w Σ q_c ln(q_c / p_c) (``kullback_leibler``). Soft labels are targets q_c of the
    events' own. Label smoothing (Szegedy et al., arXiv 1512.00567, section 7) makes the targets
    (1 - ε) q_c + ε / C, as torch does.
    """

    def __init__(self, name: Loss, settings: Sequence[TrainingSettings], device: str | torch.device) -> None:
        """Lay out the constants.

        Args:
            name: The function.
            settings: Of each member.
            device: torch's name of the device.
        """
        self.name: Loss = name
        self.gammas = columns([chosen(own, "loss").get("focal_gamma", 0.0) for own in settings], device)  # (M, 1)
        self.smoothing = columns([own.label_smoothing for own in settings], device)  # (M, 1)
        shares = [own.loss_weight for own in settings]
        share = torch.tensor(shares, dtype=torch.float64, device=device)  # (M,)
        self.share = None if all(own == 1 for own in shares) else share

    def __call__(self, logits: Tensor, labels: Tensor, weights: Tensor, soft: Tensor | None = None) -> Tensor:
        """Sum over the events of each member what the training minimises.

        Args:
            logits: As of `cross_entropy`.
            labels: Likewise.
            weights: Likewise.
            soft: Soft labels ``[M, 1, B, C]`` in place of the labels.
        """
        return self._shared(self._sums(logits, labels, weights, self.smoothing, soft))

    def plain(self, logits: Tensor, labels: Tensor, weights: Tensor, soft: Tensor | None = None) -> Tensor:
        """Sum it without label smoothing: what is kept, stopped on and shown; arguments as of a call."""
        return self._shared(self._sums(logits, labels, weights, None, soft))

    def select(self, keep: Tensor) -> None:
        """Keep only the members at these positions, int64 ``[M']``."""
        for name in ("gammas", "smoothing", "share"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value[keep])

    def _shared(self, sums: Tensor) -> Tensor:
        return sums if self.share is None else sums * self.share.to(sums.dtype)

    def _sums(
        self, logits: Tensor, labels: Tensor, weights: Tensor, smoothing: Tensor | None, soft: Tensor | None
    ) -> Tensor:
        hard = smoothing is None and soft is None
        if hard and self.name in ("cross_entropy", "kullback_leibler"):
            return cross_entropy(logits, labels, weights)
        if self.name == "binary_cross_entropy":
            goals = targets(labels, logits.shape[-1], smoothing, soft).to(logits.dtype)  # (M, 1, B, C)
            costs = functional.binary_cross_entropy_with_logits(logits, goals.expand_as(logits), reduction="none")
            return _weighted(-costs.sum(dim=-1), weights)
        scores = functional.log_softmax(logits, dim=-1)  # (M, K, B, C)
        if self.name == "focal" and self.gammas is not None:
            # No power of zero, whose slope may be infinite; without a slope here, where an event is learned to the end.
            missing = (-torch.expm1(scores)).clamp(min=_LEARNED)  # (M, K, B, C), 1 - p
            scores = missing.pow(self.gammas[:, :, None, None].to(logits.dtype)) * scores
        if hard:
            return _weighted(_chosen(scores, labels), weights)
        goals = targets(labels, logits.shape[-1], smoothing, soft).to(logits.dtype)  # (M, 1, B, C)
        if self.name == "kullback_leibler":
            scores = scores - goals.clamp(min=_LEARNED).log()  # (M, K, B, C), ln(p / q)
        return _weighted((scores * goals).sum(dim=-1), weights)


def targets(labels: Tensor, classes: int, smoothing: Tensor | None, soft: Tensor | None = None) -> Tensor:
    """What the probabilities should be.

    Args:
        labels: ``[M, B]``.
        classes: Number of classes C.
        smoothing: ``[M, 1]``; ``None`` for none.
        soft: Soft labels ``[M, 1, B, C]`` in place of the labels.

    Returns:
        ``[M, 1, B, C]``.
    """
    goals = soft
    if goals is None:
        goals = (labels.unsqueeze(-1) == torch.arange(classes, device=labels.device)).unsqueeze(1)  # (M, 1, B, C)
    if smoothing is None:
        return goals
    share = smoothing[:, :, None, None]  # (M, 1, 1, 1)
    return goals * (1 - share) + share / classes


def probabilities(logits: Tensor, loss: Loss) -> Tensor:
    """What logits ``[..., C]`` of a network mean that was trained on a loss: ``[..., C]``, which sum to one.

    The sigmoids of ``binary_cross_entropy`` are divided by their sum, which is one for a network that has learned the
    posteriors.
    """
    if loss == "binary_cross_entropy":
        return torch.softmax(functional.logsigmoid(logits), dim=-1)
    return torch.softmax(logits, dim=-1)


def columns(values: Sequence[float], device: str | torch.device) -> Tensor | None:
    """A number for each member, float64 ``[M, 1]``; ``None`` if all are zero, so that a step can do without."""
    return torch.tensor(values, dtype=torch.float64, device=device).unsqueeze(1) if any(values) else None


def _chosen(scores: Tensor, labels: Tensor) -> Tensor:
    """Each event's score ``[M, K, B, C]`` of its label: ``[M, K, B]``."""
    places = labels[:, None, :, None].expand(-1, scores.shape[1], -1, 1)  # (M, K, B, 1)
    return torch.gather(scores, -1, places).squeeze(-1)  # (M, K, B)


def _weighted(chosen: Tensor, weights: Tensor) -> Tensor:
    """Minus the sum of what each event scores ``[M, K, B]``, times its weight ``[M, B]``: ``[M]``."""
    return -(weights.unsqueeze(1) * chosen).sum(dim=2).mean(dim=1)  # (M,)


def class_factors(
    weights: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], classes: int, balance: Balance = "classes"
) -> npt.NDArray[np.float64]:
    """Find the factor for each class that makes all classes' weights sum to the same and the mean weight one.

    The networks' outputs are then posteriors under equal priors of the classes. Without a balance all classes have the
    factor that makes the mean weight one, and the priors are the classes' shares of the weights.

    Args:
        weights: Of the events, ``[N]``, signed.
        labels: Class of each event, ``[N]``.
        classes: Number of classes.
        balance: What is balanced; ``processes`` are so in the weights already.

    Returns:
        float64 ``[classes]``: multiply each weight by the factor of its class.

    Raises:
        ValueError: If a class's weights, or without a balance all weights, sum to zero or below, or are not finite.
    """
    sums = np.bincount(labels, weights=weights, minlength=classes)
    if balance == "none":
        total = sums.sum()
        if not (np.isfinite(total) and total > 0):
            raise ValueError(f"the weights of {len(labels)} events sum to {total:.6g}; expected a finite sum above 0.")
        return np.full(classes, len(weights) / total)
    for index, total in enumerate(sums):
        if not (np.isfinite(total) and total > 0):
            raise ValueError(
                f"the weights of class {index} sum to {total:.6g} over {np.count_nonzero(labels == index)} events; "
                "expected a finite sum above zero."
            )
    factors: npt.NDArray[np.float64] = len(weights) / (classes * sums)
    return factors
