"""Why flat minima help a generator: curvature of many tasks' losses, and the bound they enter.

Nothing here is needed to train or to generate. The largest eigenvalue of the Hessian is what
sharpness-aware preparation is meant to lower (paper, arXiv 2502.01117); `convergence_bound` says
what the paper concludes from it, and what can be proved.
"""

from ltdi.analysis.bound import (
    ConvergenceBound,
    convergence_bound,
    curvature_within,
    softmax_smoothness,
)
from ltdi.analysis.curvature import classification_loss, lanczos, largest_eigenvalue

__all__ = [
    "ConvergenceBound",
    "classification_loss",
    "convergence_bound",
    "curvature_within",
    "lanczos",
    "largest_eigenvalue",
    "softmax_smoothness",
]
