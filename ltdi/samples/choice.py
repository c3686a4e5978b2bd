"""How good nets are on images that none was trained on, and the sampling chosen by it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ltdi.generator.samples import SampleGenerator
from ltdi.parts import chain_end
from ltdi.samples.checkpoints import Checkpoints

TEMPERATURES = (1.0, 0.7, 0.5, 0.3)


def chosen_sampler(
    generator: SampleGenerator, zoo: Checkpoints, temperature: float | None
) -> tuple[SampleGenerator, dict[str, float]]:
    """The generator with the most temperature at which its nets are as good as what they are like.

    Everything is judged on images that no net was trained on. Where the network knows all local
    targets the chain ends at the one whose nets are the best: the last may be over-fitted. Then
    accuracy alone would choose the lowest temperature: at none, every net is the mean of a
    training. So the highest is taken at which nets are on average at least as good as those of the
    zoo at that local target, and where there is none that of the best nets; of two samplers the
    more accurate.

    Returns:
        The generator, and the accuracy of each candidate.
    """
    d = generator.parts.diffusion
    bars = standing(zoo, all_targets=d.objective == "trajectory")
    end = max(bars, key=lambda share: (bars[share], share))
    steps = min(generator.parts.sampling.steps, chain_end(end, d))
    sampling = replace(generator.parts.sampling, end=end, steps=steps)
    generator = SampleGenerator(replace(generator.parts, sampling=sampling))
    found: dict[tuple[str, float], float] = {}
    for sampler in ("ddim", "ddpm"):
        for scale in TEMPERATURES if temperature is None else (temperature,):
            theta = generator.draws(32, seed=12_345, sampler=sampler, temperature=scale)
            found[sampler, scale] = valid_accuracy(zoo, theta)
    enough = [key for key, value in found.items() if value >= bars[end]]
    sampler, scale = max(enough or found, key=lambda k: (bool(enough) * k[1], found[k]))
    sampling = replace(sampling, sampler=sampler, temperature=scale)
    named = {f"{sampler}, temperature {t}": round(v, 4) for (sampler, t), v in found.items()}
    named |= {f"zoo at {share:.2f}": round(bar, 4) for share, bar in bars.items()}
    return SampleGenerator(replace(generator.parts, sampling=sampling)), named


def standing(zoo: Checkpoints, *, all_targets: bool = True) -> dict[float, float]:
    """Accuracy on images that no net was trained on, at i/k of the trajectories; or at 1 alone."""
    k = zoo.theta.shape[1]
    known = range(1, k + 1) if all_targets else (k,)
    return {i / k: valid_accuracy(zoo, zoo.at(i).last) for i in known}


def valid_accuracy(zoo: Checkpoints, theta: Tensor) -> float:
    """Accuracy of nets [E, n] on images that no net was trained on."""
    images, labels = zoo.validation()
    return float((predictions(theta, zoo, images) == labels).float().mean())


def predictions(theta: Tensor, zoo: Checkpoints, images: Tensor) -> Tensor:
    """Predicted classes [E, N] of nets theta [E, n] on images [N, ...]."""
    return torch.stack([zoo.host.predict(t, images, zoo.space).argmax(-1) for t in theta])
