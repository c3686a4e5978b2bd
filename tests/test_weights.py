"""`ltdi.weights`: vectors and tokens hold the same numbers as the parameters they came from."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from ltdi.errors import InputError, MismatchError
from ltdi.weights import Normaliser, WeightSpace, centre_classes, head_space, prototype_head

BATCHES = st.lists(st.integers(1, 3), max_size=2).map(tuple)
WIDTHS = st.none() | st.integers(1, 40)
few = settings(max_examples=30, deadline=None, derandomize=True)


class ConvNet(nn.Module):
    """A small whole network: convolution, GroupNorm, a scalar parameter and a head."""

    def __init__(self, channels: int = 4, way: int = 3, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, channels, kernel, padding=kernel // 2)
        self.norm = nn.GroupNorm(2, channels)
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.head = nn.Linear(channels, way)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.gain * F.relu(self.norm(self.conv(x))).mean((-2, -1)))
        return out


def linear(inputs: int = 6, way: int = 4, bias: bool = True) -> nn.Module:
    return nn.Linear(inputs, way, bias=bias)


MODULES: st.SearchStrategy[nn.Module] = st.one_of(
    st.builds(linear, st.integers(1, 9), st.integers(2, 5), st.booleans()),
    st.builds(ConvNet, st.sampled_from([2, 4, 6]), st.integers(2, 4), st.sampled_from([1, 3])),
)


@pytest.fixture(scope="module")
def lora_bert() -> nn.Module:
    """A tiny BERT with random weights and LoRA factors on query and value."""
    peft = pytest.importorskip("peft", reason="LoRA weight spaces are tested on a peft model")
    transformers = pytest.importorskip("transformers", reason="peft needs a model to adapt")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=12, num_labels=3,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(
            transformers.BertForSequenceClassification(config),
            peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS"),
        )
    result: nn.Module = model.eval()
    return result


def body_and_head(token_size: int | None = None, way: int = 3) -> WeightSpace:
    return WeightSpace.from_module(ConvNet(way=way), per_class="head.*", token_size=token_size)


def vector(space: WeightSpace, *batch: int, seed: int = 0) -> Tensor:
    """A vector without zeros, so that padding cannot pass for a weight."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, space.size, generator=rng) + 5.0


def check_round_trips(module: nn.Module, space: WeightSpace, batch: tuple[int, ...]) -> None:
    named = dict(module.named_parameters())
    state = {p.name: torch.randn((*batch, *named[p.name].shape)) for p in space.params}
    theta = space.flatten(state)
    assert theta.shape == (*batch, space.size)
    back = space.unflatten(theta)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    tokens = space.tokenize(theta)
    assert tokens.shape == (*batch, len(space.tokens.gather), space.token_size)
    assert torch.equal(space.untokenize(tokens), theta)
    padding = space.tokens.gather == space.size
    assert padding.sum() == padding.numel() - space.size
    assert not tokens[..., padding].any()


@few
@given(module=MODULES, batch=BATCHES, width=WIDTHS, per_class=st.sampled_from(["", "*"]))
def test_round_trips_on_random_modules(
    module: nn.Module, batch: tuple[int, ...], width: int | None, per_class: str
) -> None:
    space = WeightSpace.from_module(
        module, include=["head.*", "weight", "bias"] if per_class else "*",
        per_class=per_class, token_size=width,
    )  # fmt: skip
    check_round_trips(module, space, batch)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("width", [None, 3, 20])
def test_round_trips_on_lora_factors(
    lora_bert: nn.Module, batch: tuple[int, ...], width: int | None
) -> None:
    space = WeightSpace.from_module(lora_bert, "*lora_*", token_size=width)
    assert len(space.params) == 2 * 2 * 2  # layers x (query, value) x (A, B)
    assert space.size == 8 * 2 * 8  # pairs of 2 x 8 and 8 x 2
    check_round_trips(lora_bert, space, batch)


def test_the_flat_vector_runs_unit_by_unit() -> None:
    space = WeightSpace.from_shapes({"weight": (2, 3), "bias": (2,)})
    weights = {"weight": torch.tensor([[1.0, 2, 3], [4, 5, 6]]), "bias": torch.tensor([7.0, 8])}
    assert space.flatten(weights).tolist() == [1, 2, 3, 7, 4, 5, 6, 8]


def test_long_rows_are_split_and_short_rows_packed() -> None:
    split = WeightSpace.from_shapes({"weight": (2, 5)}, token_size=3)
    assert split.tokens.gather.tolist() == [[0, 1, 2], [3, 4, 10], [5, 6, 7], [8, 9, 10]]
    packed = WeightSpace.from_shapes({"weight": (3, 2)}, token_size=5)
    assert packed.tokens.gather.tolist() == [[0, 1, 2, 3, 6], [4, 5, 6, 6, 6]]
    assert split.tokens.position.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("change", [False, True])
def test_unflatten_serves_functional_call(change: bool) -> None:
    torch.manual_seed(1)
    module, x = ConvNet(), torch.randn(5, 2, 4, 4)
    space = WeightSpace.from_module(module)
    theta = space.flatten(dict(module.named_parameters())).detach() + 0.1 * change
    logits = functional_call(module, space.unflatten(theta), (x,))
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * change)
    torch.testing.assert_close(logits, module(x))


def test_unflatten_serves_functional_call_on_lora(lora_bert: nn.Module) -> None:
    space = WeightSpace.from_module(lora_bert, "*lora_*")
    ids = torch.tensor([[1, 2, 3, 4]])
    rng = torch.Generator().manual_seed(0)
    theta = torch.randn(space.size, generator=rng)
    with torch.no_grad():
        before = lora_bert(input_ids=ids).logits
        called = functional_call(
            lora_bert, space.unflatten(theta), (), kwargs={"input_ids": ids}
        ).logits
        old = {name: p.clone() for name, p in lora_bert.named_parameters()}
        lora_bert.load_state_dict(space.unflatten(theta), strict=False)
        loaded = lora_bert(input_ids=ids).logits
        lora_bert.load_state_dict(old, strict=False)
    torch.testing.assert_close(called, loaded)
    assert not torch.allclose(before, called, atol=1e-3)


@few
@given(width=st.integers(1, 30), way=st.integers(2, 6))
def test_class_rows_never_share_a_token(width: int, way: int) -> None:
    space = body_and_head(width, way)
    layout = space.tokens
    numbers = torch.arange(space.size)
    class_of_number = torch.full((space.size,), -1)
    state = space.unflatten(numbers)
    for c in range(way):
        class_of_number[state["head.weight"][c]] = c
        class_of_number[state["head.bias"][c]] = c
    for row, c in zip(layout.gather, layout.class_of, strict=True):
        owners = class_of_number[row[row < space.size]].unique().tolist()
        assert owners == [int(c)]


@few
@given(width=WIDTHS, permutation=st.permutations(range(4)))
def test_permuting_class_rows_permutes_class_tokens(
    width: int | None, permutation: list[int]
) -> None:
    space, order = body_and_head(width, way=4), torch.tensor(permutation)
    state = space.unflatten(vector(space))
    moved = {n: v[order] if n.startswith("head.") else v for n, v in state.items()}
    tokens, after = space.tokenize(vector(space)), space.tokenize(space.flatten(moved))
    class_of = space.tokens.class_of
    assert torch.equal(after[class_of == -1], tokens[class_of == -1])
    for c in range(4):
        assert torch.equal(after[class_of == c], tokens[class_of == order[c]])
        assert torch.equal(
            space.tokens.position[class_of == c], space.tokens.position[class_of == 0]
        )


def test_with_way_resizes_class_layers_only() -> None:
    space = body_and_head()
    wide = space.with_way(50)
    assert wide.way == 50 and wide == body_and_head(way=50)
    assert wide.with_way(3) == space
    assert wide.size - space.size == 47 * (4 + 1)
    with pytest.raises(MismatchError, match="no per-class layer"):
        WeightSpace.from_module(ConvNet()).with_way(5)


def test_fingerprint_sees_the_architecture_but_not_the_way() -> None:
    spaces = {
        "base": body_and_head(token_size=20),
        "token size": body_and_head(token_size=21),
        "channels": WeightSpace.from_module(ConvNet(6), per_class="head.*", token_size=20),
        "no classes": WeightSpace.from_module(ConvNet(), token_size=20),
        "fewer": WeightSpace.from_module(
            ConvNet(), exclude="norm.*", per_class="head.*", token_size=20
        ),
        "names": WeightSpace.from_shapes(
            {"h.weight": (3, 4), "h.bias": (3,)}, per_class=["h.weight", "h.bias"], token_size=20
        ),
    }
    prints = {space.fingerprint for space in spaces.values()}
    assert len(prints) == len(spaces)
    for way in (2, 5, 50):
        assert spaces["base"].with_way(way).fingerprint == spaces["base"].fingerprint
    plain = WeightSpace.from_module(ConvNet(way=3), token_size=20)
    assert plain.fingerprint != WeightSpace.from_module(ConvNet(way=4), token_size=20).fingerprint


@few
@given(module=MODULES, width=WIDTHS)
def test_to_dict_survives_json(module: nn.Module, width: int | None) -> None:
    space = WeightSpace.from_module(module, per_class="head.*", token_size=width)
    back = WeightSpace.from_dict(json.loads(json.dumps(space.to_dict())))
    assert back == space and back.fingerprint == space.fingerprint


def test_include_exclude_and_buffers() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    names = [p.name for p in WeightSpace.from_module(module, exclude="0.*").params]
    assert names == ["1.weight", "1.bias", "2.weight", "2.bias"]
    assert WeightSpace.from_module(module, ["2.*"]).size == 10


def test_no_match_names_pattern_and_parameters() -> None:
    with pytest.raises(InputError, match=r"\*lora_\*[\s\S]*head\.weight"):
        WeightSpace.from_module(ConvNet(), "*lora_*")


@pytest.mark.parametrize("name", ["conv.weight", "head.bias", "gain"])
def test_a_missing_parameter_is_named(name: str) -> None:
    space = body_and_head()
    state = space.unflatten(vector(space))
    del state[name]
    with pytest.raises(MismatchError, match=rf"'{name}' is missing"):
        space.flatten(state)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("conv.weight", (4, 2, 3)), ("conv.weight", (5, 2, 3, 3)), ("head.bias", (4,)),
     ("head.weight", (4,)), ("head.weight", (4, 3))],
)  # fmt: skip
def test_a_misshaped_parameter_is_named(name: str, shape: tuple[int, ...]) -> None:
    space = body_and_head()
    state = space.unflatten(vector(space)) | {name: torch.zeros(shape)}
    with pytest.raises(MismatchError, match=rf"'{name}' has shape"):
        space.flatten(state)


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("use", ["unflatten", "tokenize"])
def test_a_vector_of_another_length_is_refused(use: str, change: int) -> None:
    space = body_and_head()
    call: Callable[[Tensor], object] = getattr(space, use)
    with pytest.raises(MismatchError, match=rf"of {space.size + change} .*\n?.*{space.size}"):
        call(torch.zeros(2, space.size + change))


def test_param_of_follows_the_flat_vector() -> None:
    space = body_and_head()
    numbers = {p.name: torch.full(p.shape, i) for i, p in enumerate(space.params)}
    assert torch.equal(space.flatten(numbers), space.param_of)


@few
@given(scales=st.lists(st.floats(1e-3, 1e3), min_size=7, max_size=7), centre=st.booleans())
def test_normaliser_gives_every_parameter_unit_scale(scales: list[float], centre: bool) -> None:
    space = body_and_head()
    factor = torch.tensor(scales)[space.param_of]
    theta = factor * (vector(space, 20, 3) - 4.0)
    normaliser = Normaliser.fit(theta, space, centre=centre)
    out = normaliser.normalise(theta, space)
    torch.testing.assert_close(normaliser.denormalise(out, space), theta, rtol=1e-4, atol=1e-4)
    for i in range(len(space.params)):
        part = out[..., space.param_of == i].double()
        assert part.square().mean().sqrt().item() == pytest.approx(1.0, abs=1e-3)
        if centre:
            assert part.mean().item() == pytest.approx(0.0, abs=1e-3)
    if not centre:
        assert not normaliser.normalise(torch.zeros(space.size), space).any()


@pytest.mark.parametrize("value", [0.0, 0.1, -3.3e5])
def test_normaliser_keeps_a_constant_parameter(value: float) -> None:
    space = head_space(13, 7)
    theta = vector(space, 50)
    constant = space.param_of == 1
    theta[:, constant] = value
    normaliser = Normaliser.fit(theta, space)
    out = normaliser.normalise(theta, space)
    assert not out[:, constant].any()
    assert torch.equal(normaliser.scale(space)[constant], torch.ones(7))
    torch.testing.assert_close(normaliser.denormalise(out, space), theta)


@few
@given(seed=st.integers(0, 99), scale=st.floats(0.1, 10.0), way=st.integers(2, 9))
def test_prototype_head_is_the_nearest_prototype_classifier(
    seed: int, scale: float, way: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(2, way, 5, generator=rng, dtype=torch.float64)
    x = torch.randn(2, 11, 5, generator=rng, dtype=torch.float64)
    distance = (x[:, :, None] - prototypes[:, None]).square().sum(-1)
    head = prototype_head(prototypes, scale)
    logits = x @ head["weight"].mT + head["bias"][:, None]
    assert torch.equal(logits.argmax(-1), distance.argmin(-1))
    torch.testing.assert_close(logits.softmax(-1), (-scale * distance).softmax(-1))
    torch.testing.assert_close(head["weight"].mean(-2), torch.zeros(2, 5, dtype=torch.float64))
    torch.testing.assert_close(head["bias"].mean(-1), torch.zeros(2, dtype=torch.float64))
    assert head_space(5, way).flatten(head).shape == (2, way * 6)


def test_centring_classes_leaves_the_softmax_and_happens_once() -> None:
    torch.manual_seed(0)
    head = {"weight": torch.randn(3, 4, 5), "bias": torch.randn(3, 4)}
    x, centred = torch.randn(3, 6, 5), centre_classes(head)
    before = x @ head["weight"].mT + head["bias"][:, None]
    after = x @ centred["weight"].mT + centred["bias"][:, None]
    torch.testing.assert_close(after.softmax(-1), before.softmax(-1))
    assert not torch.allclose(after, before, atol=1e-2)
    shifted = {"weight": head["weight"] + torch.randn(3, 1, 5), "bias": head["bias"] + 2.0}
    again = centre_classes(shifted)
    for name, value in centred.items():
        torch.testing.assert_close(again[name], value)
