"""Weight preparation: optimise hundreds of tasks at once and keep their trajectories.

All tasks of a batch take their steps together: the loss of one task is differentiated with
`torch.func.grad` and vectorised with `torch.func.vmap`, whatever the kind of weights. Functional
components live here, not in meta-training (paper, section 4.2): sharpness-aware minimisation
(SAM, Foret et al., 2021) and augmentation.
"""

from ltdi.collect.predictors import Closed, HeadPredictor, Predict, Slope, module_predictor
from ltdi.collect.preparation import OPTIMISERS, Adam, Preparation
from ltdi.collect.solving import Trajectories, optimise

__all__ = [
    "OPTIMISERS",
    "Adam",
    "Closed",
    "HeadPredictor",
    "Predict",
    "Preparation",
    "Slope",
    "Trajectories",
    "module_predictor",
    "optimise",
]
