"""Training of a backbone as a classifier of the training classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.backbone.augment import MIXES, Augmentation, augment, mix
from ltdi.backbone.backbone import Backbone
from ltdi.backbone.training import Progress, descend, forward, trainable
from ltdi.backbone.transform import InputTransform
from ltdi.data import ImageSet
from ltdi.errors import InputError, check

OPTIMISERS = ("sgd", "adamw")
CLASSIFIERS = ("cosine", "linear")
# Of ImageNet's pixels, the usual ones for natural images.
NATURAL = InputTransform(64, 3, "keep", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class ClassifierTraining:
    """Training of a residual backbone by classification of the training classes.

    Attributes:
        epochs: Passes over the images.
        batch: Images per step.
        optimiser: "sgd", with Nesterov momentum 0.9, or "adamw".
        lr: Peak step size; AdamW wants one of about 0.002.
        weight_decay: Of the optimiser.
        warmup: Share of the steps in which the step size rises; then it falls as a cosine to 0.
        smoothing: Label smoothing.
        classifier: "cosine", with a learnt scale, or "linear"; dropped after training.
        rotation_weight: Of a second loss: which of four quarter turns is a quarter of the batch
            seen in? It makes a step 1.75 times as long; 0 for none.
        mix: "none", "mixup" or "cutmix".
        augmentation: Random changes of single images.
        widths: Of the `ResNet12`.
        stride: Of its stem.
        seed: Of initialisation, order and random changes.
    """

    epochs: int = 40
    batch: int = 64
    optimiser: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    warmup: float = 0.1
    smoothing: float = 0.1
    classifier: str = "cosine"
    rotation_weight: float = 0.0
    mix: str = "none"
    augmentation: Augmentation = field(default_factory=Augmentation)
    widths: tuple[int, ...] = (32, 64, 128, 256)
    stride: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        names = {"optimiser": OPTIMISERS, "classifier": CLASSIFIERS, "mix": MIXES}
        least = {"epochs": 1, "batch": 2, "stride": 1, "rotation_weight": 0}
        ranges = {name: (low, math.inf) for name, low in least.items()}
        ranges |= {"warmup": (0, 1), "smoothing": (0, 1)}
        check("training", self, known=names, ranges=ranges)


class CosineClassifier(nn.Module):
    """Logits by the cosine between a feature and each class's weight (Gidaris, Komodakis, 2018)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, width))
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, z: Tensor) -> Tensor:
        """[n, D] -> [n, classes]."""
        return self.scale * F.linear(F.normalize(z, dim=-1), F.normalize(self.weight, dim=-1))


def train_classifier_backbone(
    images: ImageSet,
    training: ClassifierTraining,
    *,
    transform: InputTransform | None = None,
    progress: Progress | None = None,
) -> Backbone:
    """Train a residual net to classify the classes of a set, and keep its features.

    With `rotation_weight` it also tells by which quarter turn an image was rotated, which helps
    features of unseen classes (Gidaris et al., 2019, "Boosting few-shot visual learning with
    self-supervision").

    Images are seen at 64 pixels, RGB, normalised as natural images, where no transform says
    otherwise.

    Raises:
        InputError: For fewer than two classes.
        DivergedError: If the loss is not finite.
    """
    p, transform = training, transform or NATURAL
    if len(images.classes) < 2:
        raise InputError(
            f"{len(images.classes)} class cannot be told apart",
            where=images.name,
            fix="give images of at least two classes",
        )
    config: dict[str, object] = {
        "kind": "resnet12",
        "channels": transform.channels,
        "widths": list(p.widths),
        "stride": p.stride,
    }
    rng = torch.Generator().manual_seed(p.seed)
    net = trainable(config, p.seed)
    heads = _heads(p, len(images.classes), rng)
    batches = _batches(len(images), min(p.batch, len(images)), rng)
    targets = torch.eye(len(images.classes))[images.labels]

    def loss() -> Tensor:
        index = next(batches)
        x = augment(transform(images.images[index]), p.augmentation, rng)
        x, target = mix(x, targets[index], p.mix, rng)
        return classification_loss(net, heads, x, target, p)

    steps = p.epochs * (len(images) // min(p.batch, len(images)))
    rising = max(1, round(p.warmup * steps))

    def rate(step: int) -> float:
        done = (step - rising) / max(1, steps - rising)
        return (step + 1) / rising if step < rising else 0.5 * (1 + math.cos(math.pi * done))

    descend(_optimiser([*net.parameters(), *heads.parameters()], p), loss, rate, steps, progress)
    return Backbone(net, transform, config)


def classification_loss(
    net: nn.Module, heads: nn.ModuleDict, x: Tensor, target: Tensor, training: ClassifierTraining
) -> Tensor:
    """Cross entropy of classes, and of quarter turns where there is a head for them.

    The net maps x [n, channels, size, size] to [n, D]; the heads "classes", and perhaps "turns",
    give logits of that. The target is [n, classes] probabilities.
    """
    n = len(x)
    part = -(-n // 4) if "turns" in heads else 0
    # One pass: batch normalisation sees upright and turned images together.
    turned = [torch.rot90(x[:part], k, (2, 3)) for k in (1, 2, 3)]
    z = forward(net, torch.cat([x, *turned]))
    loss = F.cross_entropy(heads["classes"](z[:n]), target, label_smoothing=training.smoothing)
    if part:
        turns = torch.arange(4).repeat_interleave(part)
        logits = heads["turns"](torch.cat([z[:part], z[n:]]))
        loss = loss + training.rotation_weight * F.cross_entropy(logits, turns)
    return loss


def _heads(p: ClassifierTraining, classes: int, rng: torch.Generator) -> nn.ModuleDict:
    width = p.widths[-1]

    def linear(outputs: int) -> nn.Module:
        # Its own initialisation would read the global state of randomness.
        out: nn.Module = nn.utils.skip_init(nn.Linear, width, outputs)
        return out

    cosine = p.classifier == "cosine"
    heads = nn.ModuleDict(
        {"classes": CosineClassifier(width, classes) if cosine else linear(classes)}
    )
    if p.rotation_weight > 0:
        heads["turns"] = linear(4)
    for name, value in heads.named_parameters():
        if name.endswith("weight"):
            nn.init.normal_(value, std=width**-0.5, generator=rng)
        elif name.endswith("bias"):
            nn.init.zeros_(value)
    return heads


def _optimiser(parameters: list[nn.Parameter], p: ClassifierTraining) -> torch.optim.Optimizer:
    if p.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=p.lr, weight_decay=p.weight_decay)
    return torch.optim.SGD(
        parameters, lr=p.lr, momentum=0.9, nesterov=True, weight_decay=p.weight_decay
    )


def _batches(n: int, size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Index batches of whole epochs, without end; what does not fill a batch is left out."""
    while True:
        yield from torch.randperm(n, generator=rng)[: n - n % size].split(size)
