"""Which of several adapters a task keeps, by the rows of its support."""

from __future__ import annotations

from collections.abc import Sequence

from ltdi.adapters.host import Refined

# By validation rows of other tasks: 0.5574 at 0, 0.5607 at 1, 0.5493 at 2, mean of six tasks.
ERRORS = 1.0


def choose(
    plain: Sequence[Refined], others: Sequence[Refined], *, errors: float = ERRORS
) -> Refined:
    """The best plain adapter, unless another is better by more than noise.

    Among many adapters one is a little better on a few rows by chance, and may do harm elsewhere;
    what adapts nothing does not.

    Args:
        plain: What is kept in doubt, such as the frozen base.
        others: What may be better.
        errors: Standard errors of the paired difference of losses on held-out rows, by which
            another has to be better.

    Returns:
        The plain adapter with the lowest mean loss, or the best of the others that pass; a support
        of one row has no standard error, and none passes.

    Raises:
        ValueError: If there is no plain adapter.
    """
    kept = min(plain, key=lambda x: x.loss)

    def better(other: Refined) -> bool:
        gain = kept.losses - other.losses
        if len(gain) < 2:
            return False
        return bool(gain.mean() > errors * gain.std() / len(gain) ** 0.5)

    return min(filter(better, others), key=lambda x: x.loss, default=kept)
