"""The trained network of an adapter generator: encoder, basis and a denoiser of coordinates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltdi.adapters.basis import Basis
from ltdi.adapters.condition import Facts, TextEncoder, as_way
from ltdi.denoiser import TokenTransformer
from ltdi.denoiser.condition import Condition
from ltdi.recipe import Network
from ltdi.weights import WeightSpace

# Six tasks of GLUE, 128 rows of each: at most 0.55 of that distance away from their own runs where
# they are known, at least 0.74 from any others where they are not.
_NEAR = 0.65


class AdapterDenoiser(nn.Module):
    """f_phi(z_t, t, i/k, c) over the coordinates z of an adapter, one token per block."""

    def __init__(
        self,
        space: WeightSpace,
        base_width: int,
        shape: Network,
        steps: int,
        *,
        rank: int,
        rows: bool = True,
        text: bool = True,
        tasks: int = 0,
    ) -> None:
        super().__init__()
        self.basis = Basis(space, rank)
        self.encoder = TextEncoder(base_width, shape.width, rows=rows, text=text)
        self.of_stage = nn.Sequential(
            nn.Linear(1, shape.width), nn.SiLU(), nn.Linear(shape.width, shape.width)
        )
        self.denoiser = TokenTransformer(
            self.basis.latent(2),
            condition_width=shape.width,
            steps=steps,
            width=shape.width,
            depth=shape.depth,
            heads=shape.heads,
        )
        self.known_task = nn.Buffer(torch.zeros(tasks, self.encoder.seen + 1))
        self.known_outputs = nn.Buffer(torch.zeros(tasks, 2, self.encoder.seen))
        self.known_text = nn.Buffer(torch.zeros(tasks, base_width + 1))
        self.known_labelled = nn.Buffer(torch.ones(tasks, dtype=torch.bool))
        self._latent: dict[int, WeightSpace] = {}

    def latent(self, way: int) -> WeightSpace:
        """Space of the coordinates of adapters with `way` outputs."""
        if way not in self._latent:
            self._latent[way] = self.basis.latent(way)
        return self._latent[way]

    @torch.no_grad()
    def remember(self, number: int, known: Facts, *, labelled: bool = True) -> None:
        """Keep the condition of a known task: the mean of `Facts` of its runs."""
        self.get_buffer("known_labelled")[number] = labelled
        self.get_buffer("known_task")[number] = known.task.mean(0)
        self.get_buffer("known_outputs")[number] = as_way(known.outputs, 2).mean(0)
        self.get_buffer("known_text")[number] = known.text.mean(0)

    def recall(self, way: int) -> Facts:
        """Conditions of all known tasks, as they would be with `way` outputs."""
        return Facts(
            self.get_buffer("known_task"),
            as_way(self.get_buffer("known_outputs"), way),
            self.get_buffer("known_text"),
        )

    def familiar(self, own: Facts) -> bool:
        """Whether a task is a known one, by its rows or, where it has one, by its description.

        It is where it is nearer to a known one than known ones are to each other, by `_NEAR`.
        Where only one is known, every task is taken for it.
        """
        rows, text = self.get_buffer("known_task"), self.get_buffer("known_text")
        if len(rows) < 2:
            return len(rows) == 1
        told = text[text[:, -1] > 0]
        return _near(own.task, rows) or (bool(own.text[0, -1] > 0) and _near(own.text, told))

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        stage: Tensor,
        task: Tensor,
        outputs: Tensor,
        text: Tensor,
    ) -> Tensor:
        """Denoise z [B, m] at t [B], asked for local target stage = i/k [B], given `Facts`."""
        return self.denoise(z, t, stage, self.encoder(task, outputs, text))

    def denoise(self, z: Tensor, t: Tensor, stage: Tensor, code: Condition) -> Tensor:
        """`forward`, with the condition worked out once."""
        whole = code.task + self.of_stage(torch.log2(stage).unsqueeze(-1))
        out: Tensor = self.denoiser(
            z, t, Condition(whole, code.classes), self.latent(code.classes.shape[1])
        )
        return out


def _near(own: Tensor, known: Tensor) -> bool:
    """Whether own [1, F] is one of known [tasks, F]."""
    if len(known) < 2:
        return False
    apart = float(torch.pdist(known).min())
    return float(torch.cdist(own, known).min()) < _NEAR * apart
