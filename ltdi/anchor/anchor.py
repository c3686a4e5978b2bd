"""Anchors that are given: nothing, a shared initialisation, centres, class means."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.anchor.frame import Frame
from ltdi.errors import InputError
from ltdi.tasks import FeatureBank
from ltdi.weights import WeightSpace, prototype_head


class Anchor(nn.Module):
    """Maps the support of B tasks to the weights [B, n] that their residuals are added to."""

    name = "none"
    # Whether `task_mean` is the task's own; those that earlier versions fitted have not learnt so.
    own_mean = False

    def forward(self, support: Tensor, mask: Tensor, space: WeightSpace) -> Tensor:
        """Weights of the anchor.

        Args:
            support: [B, way, shot, D] features.
            mask: [B, way, shot] 1 for real samples.
            space: Weight space of the tasks.
        """
        return self.local(support, mask, space)

    def local(self, z: Tensor, mask: Tensor, space: WeightSpace) -> Tensor:
        """Weights in the coordinates of `frame`, from a support in those coordinates."""
        return z.new_zeros(len(z), space.size)

    def frame(self, width: int) -> Frame:
        """The coordinates that generation takes place in, for features of a width."""
        return Frame.identity(width)

    def task_mean(self, z: Tensor, mask: Tensor, frame: Frame) -> Tensor:
        """Where tasks lie as a whole, [B, D] in a frame; its origin, here.

        Heads are solved, learnt and generated as seen from there.

        Args:
            z: [B, way, shot, D] support in the frame's coordinates.
            mask: [B, way, shot] 1 for real samples.
            frame: That of this anchor, or of one that was refitted.
        """
        return z.new_zeros(len(z), z.shape[-1])

    def refit(self, bank: FeatureBank) -> Anchor:
        """The same anchor had it been fitted on other classes; itself if it learns nothing."""
        return self


class SharedAnchor(Anchor):
    """One meta-learned initialisation theta_0 for every task.

    Where it has no class rows, those of the task start at zero: classes are alike before their
    samples are seen, and one theta_0 serves any way.
    """

    name = "shared"

    def __init__(self, theta_0: Tensor) -> None:
        super().__init__()
        self.theta_0 = nn.Buffer(theta_0)

    def local(self, z: Tensor, mask: Tensor, space: WeightSpace) -> Tensor:
        """See `Anchor.local`."""
        theta: Tensor = self.theta_0
        rows = space.class_size
        if len(theta) == space.size - rows:
            theta = F.pad(theta, (0, rows))
        if len(theta) != space.size:
            raise InputError(
                f"the shared initialisation has {len(self.theta_0)} numbers, the task needs "
                f"{space.size}, or {space.size - rows} without its class rows",
                where="anchor",
                fix="use the way that theta_0 was learned for",
            )
        return theta.expand(len(z), -1)


class Centres(Anchor):
    """Some fixed weights to start from, at every local target; who generates says which.

    Args:
        theta: [k, C, n] of C centres at each local target.
    """

    name = "centres"

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Buffer(theta)

    def local(self, z: Tensor, mask: Tensor, space: WeightSpace) -> Tensor:
        """Weights [B, n] of the centres with numbers z [B], at the last local target."""
        return self.near(1.0)[z]

    def near(self, end: float) -> Tensor:
        """[C, n] at the local target nearest to a share of the trajectory."""
        stages = len(self.theta)
        return self.theta[max(1, round(end * stages)) - 1]


class PrototypeAnchor(Anchor):
    """Nearest class mean (Snell et al., 2017) with a calibrated inverse temperature."""

    name = "prototype"

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Buffer(torch.tensor(float(scale)))

    def local(self, z: Tensor, mask: Tensor, space: WeightSpace) -> Tensor:
        """See `Anchor.local`."""
        return space.flatten(prototype_head(masked_mean(z, mask), self.scale))


def masked_mean(support: Tensor, mask: Tensor) -> Tensor:
    """Class means [B, way, D] of support [B, way, shot, D] under mask [B, way, shot]."""
    keep = mask.unsqueeze(-1)
    # Not only multiplied away: 0 * inf and 0 * nan would reach the class.
    return torch.where(keep > 0, support, 0.0).sum(-2) / keep.sum(-2)
