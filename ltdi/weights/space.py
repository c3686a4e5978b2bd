"""A description of weights, and how they become vectors and tokens."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ltdi.errors import InputError, MismatchError


@dataclass(frozen=True)
class Param:
    """One parameter tensor: its name in the state dict and its shape."""

    name: str
    shape: tuple[int, ...]

    @cached_property
    def units(self) -> int:
        """Output units, the length of the first dimension (1 for a scalar)."""
        return self.shape[0] if self.shape else 1

    @cached_property
    def row(self) -> int:
        """Numbers that belong to one output unit."""
        return prod(self.shape[1:])


@dataclass(frozen=True)
class Layer:
    """Parameters of one module that share their output units, such as weight and bias.

    Unit u of the layer is the row `[weight[u].flatten(), bias[u]]`. `per_class` says that a unit
    is a class: such a layer may change its number of units with the way of the task, and its
    rows carry no position, so permuting classes permutes rows.
    """

    params: tuple[Param, ...]
    per_class: bool = False

    @cached_property
    def units(self) -> int:
        """Output units of the layer."""
        return self.params[0].units

    @cached_property
    def row(self) -> int:
        """Numbers per unit over all parameters of the layer."""
        return sum(p.row for p in self.params)


@dataclass(frozen=True)
class Tokens:
    """Where each number of a flat weight vector sits in the token grid.

    Attributes:
        gather: [tokens, token_size] index into the flat vector; n marks padding.
        scatter: [n] index into the flattened grid.
        layer: [tokens] layer of the token.
        position: [tokens] place of the token in its layer; 0 for every whole class row.
        class_of: [tokens] class of a per-class token, -1 elsewhere.
    """

    gather: Tensor
    scatter: Tensor
    layer: Tensor
    position: Tensor
    class_of: Tensor


@dataclass(frozen=True)
class WeightSpace:
    """The generated parameters of a model, in a fixed order.

    The flat vector runs layer by layer and, inside a layer, unit by unit.

    Attributes:
        layers: The layers, in the order of the module.
        token_size: Width of a token. A longer row is split; several shorter rows share a token,
            except class rows, which always have tokens of their own.
    """

    layers: tuple[Layer, ...]
    token_size: int

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        include: str | Sequence[str] = "*",
        *,
        exclude: str | Sequence[str] = (),
        per_class: str | Sequence[str] = (),
        token_size: int | None = None,
    ) -> WeightSpace:
        """Choose parameters of `module` by glob over their names.

        Buffers (BatchNorm's running statistics) are not parameters and are never part of a space.

        Args:
            module: Any module; only names and shapes are read.
            include: Pattern(s) a parameter's name must match, such as `"*lora_*"`.
            exclude: Pattern(s) it must not match.
            per_class: Pattern(s) of parameters whose first dimension is the class.
            token_size: Width of a token; by default the longest row, at most 1024.

        Raises:
            InputError: If no parameter matches.
        """
        named = {name: tuple(p.shape) for name, p in module.named_parameters()}
        chosen = {
            name: shape
            for name, shape in named.items()
            if _matches(name, include) and not _matches(name, exclude)
        }
        if not chosen:
            raise InputError(
                f"no parameter matches include={include!r}, exclude={exclude!r}",
                where=f"{type(module).__name__} with parameters {', '.join(list(named)[:8])}",
                fix="give a glob that matches at least one of the names",
            )
        return cls.from_shapes(
            chosen, per_class=[n for n in chosen if _matches(n, per_class)], token_size=token_size
        )

    @classmethod
    def from_shapes(
        cls,
        shapes: Mapping[str, Sequence[int]],
        *,
        per_class: Iterable[str] = (),
        token_size: int | None = None,
    ) -> WeightSpace:
        """Build a space from names and shapes; see `from_module`."""
        classes = set(per_class)
        grouped: dict[tuple[str, int, bool], list[Param]] = {}
        for name, shape in shapes.items():
            param = Param(name, tuple(int(s) for s in shape))
            key = (name.rpartition(".")[0], param.units, name in classes)
            grouped.setdefault(key, []).append(param)
        layers = tuple(
            Layer(tuple(ps), per_class=is_class) for (_, _, is_class), ps in grouped.items()
        )
        longest = max(layer.row for layer in layers)
        return cls(layers, token_size or min(longest, 1024))

    @property
    def params(self) -> tuple[Param, ...]:
        """Every parameter, in the order of the flat vector's layers."""
        return tuple(p for layer in self.layers for p in layer.params)

    @property
    def class_params(self) -> tuple[Param, ...]:
        """The parameters with a row for each class."""
        return tuple(p for layer in self.layers if layer.per_class for p in layer.params)

    @cached_property
    def size(self) -> int:
        """n, the length of the flat vector."""
        return sum(layer.units * layer.row for layer in self.layers)

    @cached_property
    def class_size(self) -> int:
        """Numbers in the class rows that end the flat vector; 0 where others come after them."""
        kinds = [layer.per_class for layer in self.layers]
        if kinds != sorted(kinds):
            return 0
        return sum(layer.units * layer.row for layer in self.layers if layer.per_class)

    @property
    def way(self) -> int | None:
        """Classes of the per-class layers, or None where there are none."""
        return next((layer.units for layer in self.layers if layer.per_class), None)

    def with_way(self, way: int) -> WeightSpace:
        """The same space for tasks of another way.

        Raises:
            MismatchError: If the space has no per-class layer to resize.
        """
        if way == self.way:
            return self
        if self.way is None:
            raise MismatchError(
                f"this weight space has no per-class layer and cannot change its way to {way}",
                fix="mark the classifier's parameters with per_class=",
            )
        return replace(self, layers=tuple(_resize(layer, way) for layer in self.layers))

    def flatten(self, weights: Mapping[str, Tensor]) -> Tensor:
        """State dict with shapes [..., *shape] -> flat vectors [..., n].

        Raises:
            MismatchError: If a parameter is missing or has another shape.
        """
        parts = []
        for layer in self.layers:
            rows = [_rows(weights, p) for p in layer.params]
            parts.append(torch.cat(rows, -1).flatten(-2))
        return torch.cat(parts, -1)

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Flat vectors [..., n] -> state dict with shapes [..., *shape].

        Raises:
            MismatchError: If the last dimension is not n.
        """
        self._check(theta)
        batch, out = theta.shape[:-1], {}
        # One split: the gradient of a slice is a vector of n numbers, for every layer.
        flat = theta.split([layer.units * layer.row for layer in self.layers], -1)
        for layer, part in zip(self.layers, flat, strict=True):
            rows = part.unflatten(-1, (layer.units, layer.row))
            parts = rows.split([p.row for p in layer.params], -1)
            for p, weights in zip(layer.params, parts, strict=True):
                out[p.name] = weights.reshape((*batch, *p.shape))
        return out

    def tokenize(self, theta: Tensor) -> Tensor:
        """Flat vectors [..., n] -> tokens [..., tokens, token_size], zero-padded."""
        self._check(theta)
        if self.plain:
            out: Tensor = theta.unflatten(-1, (-1, self.token_size))
            return out
        padded = torch.cat([theta, theta.new_zeros(*theta.shape[:-1], 1)], -1)
        return padded[..., self.tokens.gather.to(theta.device)]

    def untokenize(self, tokens: Tensor) -> Tensor:
        """Tokens [..., tokens, token_size] -> flat vectors [..., n]; padding is dropped."""
        if self.plain:
            return tokens.flatten(-2)
        return tokens.flatten(-2)[..., self.tokens.scatter.to(tokens.device)]

    # What is kept may be asked for first in inference mode, and then by a training.
    @cached_property
    @torch.inference_mode(False)
    def tokens(self) -> Tokens:
        """The token layout."""
        gather: list[Tensor] = []
        layer_of: list[int] = []
        position: list[int] = []
        class_of: list[int] = []
        start, width = 0, self.token_size
        for number, layer in enumerate(self.layers):
            per = 1 if layer.per_class else max(1, width // layer.row)
            chunks = -(-layer.row // width)
            for place, first in enumerate(range(0, layer.units, per)):
                begin = start + first * layer.row
                end = start + min(first + per, layer.units) * layer.row
                for chunk in range(chunks):
                    index = torch.arange(begin + chunk * width, begin + (chunk + 1) * width)
                    gather.append(torch.where(index < end, index, self.size))
                    layer_of.append(number)
                    position.append(chunk if layer.per_class else place * chunks + chunk)
                    class_of.append(first if layer.per_class else -1)
            start += layer.units * layer.row
        grid = torch.stack(gather)
        real = (grid < self.size).flatten().nonzero().squeeze(1)
        scatter = torch.empty(self.size, dtype=torch.long)
        scatter[grid.flatten()[real]] = real
        return Tokens(
            grid, scatter, torch.tensor(layer_of), torch.tensor(position), torch.tensor(class_of)
        )

    @cached_property
    def plain(self) -> bool:
        """Whether tokens are the flat vector cut into pieces, as those of a head are."""
        return self.tokens.gather.numel() == self.size and bool(
            (self.tokens.gather.flatten() == torch.arange(self.size)).all()
        )

    @cached_property
    @torch.inference_mode(False)
    def param_of(self) -> Tensor:
        """[n] number of the parameter that each entry of the flat vector belongs to."""
        parts, first = [], 0
        for layer in self.layers:
            row = torch.cat([torch.full((p.row,), first + i) for i, p in enumerate(layer.params)])
            parts.append(row.repeat(layer.units))
            first += len(layer.params)
        return torch.cat(parts)

    @cached_property
    @torch.inference_mode(False)
    def layer_of(self) -> Tensor:
        """[n] number of the layer that each entry of the flat vector belongs to."""
        sizes = [layer.units * layer.row for layer in self.layers]
        return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))

    @property
    def fingerprint(self) -> str:
        """Short hash of names, shapes and tokens; it does not depend on the way."""
        text = json.dumps((self if self.way is None else self.with_way(1)).to_dict())
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able description."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WeightSpace:
        """The inverse of `to_dict`."""
        layers = tuple(
            Layer(
                tuple(Param(p["name"], tuple(p["shape"])) for p in layer["params"]),
                per_class=bool(layer["per_class"]),
            )
            for layer in data["layers"]
        )
        return cls(layers, int(data["token_size"]))

    def _check(self, theta: Tensor) -> None:
        if theta.shape[-1] != self.size:
            raise MismatchError(
                f"a weight vector of {theta.shape[-1]} numbers does not fit this weight space, "
                f"which has {self.size}",
                fix="use the weight space the vector was made with (see its way and layers)",
            )


def _matches(name: str, patterns: str | Sequence[str]) -> bool:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatchcase(name, p) for p in patterns)


def _resize(layer: Layer, way: int) -> Layer:
    if not layer.per_class:
        return layer
    return replace(layer, params=tuple(replace(p, shape=(way, *p.shape[1:])) for p in layer.params))


def _rows(weights: Mapping[str, Tensor], param: Param) -> Tensor:
    """[..., *shape] -> [..., units, row]."""
    if param.name not in weights:
        raise MismatchError(
            f"parameter {param.name!r} is missing",
            where=f"state dict with {', '.join(list(weights)[:8])}",
            fix="pass the state dict of the model that the weight space was made from",
        )
    value = weights[param.name]
    dims = len(param.shape)
    if tuple(value.shape[value.ndim - dims :]) != param.shape or value.ndim < dims:
        raise MismatchError(
            f"parameter {param.name!r} has shape {tuple(value.shape)}, "
            f"this weight space expects [..., {', '.join(map(str, param.shape))}]",
            fix="use the model (and the way) that the weight space was made from",
        )
    return value.reshape(*value.shape[: value.ndim - dims], param.units, param.row)
