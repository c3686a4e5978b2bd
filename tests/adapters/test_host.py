from __future__ import annotations

import json

import pytest
import torch

from ltdi.adapters.host import LanguageHost
from ltdi.adapters.source import Source
from ltdi.data.text.metrics import measure
from ltdi.errors import InputError, MismatchError
from ltdi.lora import LoraSpec, adapter_logits, tiny_base
from tests.lora.conftest import other_base, some_weights


def test_a_host_comes_back_from_its_description(host: LanguageHost) -> None:
    config = json.loads(json.dumps(host.describe()))
    again = LanguageHost.from_config(config)
    assert again.describe() == host.describe() and again.spec == host.spec
    assert torch.equal(again.adapter(2).theta_0, host.adapter(2).theta_0)
    assert again.tensors() == {} and again.fingerprint == host.base.fingerprint


def test_another_base_is_refused_with_both_names(host: LanguageHost) -> None:
    again = LanguageHost.from_config(host.describe())
    with pytest.raises(MismatchError, match=r"tiny-0 .*given is tiny-3"):
        again.use(tiny_base(3))
    wider = other_base("Bert", hidden_size=64, num_hidden_layers=2, num_attention_heads=2)
    with pytest.raises(MismatchError, match=r"hidden size 32.*tiny-bert with hidden size 64"):
        again.use(wider)
    known = {**host.describe(), "lora": {**host.known["lora"], "target_modules": ["key"]}}
    with pytest.raises(MismatchError, match="target_modules"):
        LanguageHost.from_config(known).__class__.use(_with_spec(known, host.spec), tiny_base())
    lost = {k: v for k, v in host.describe().items() if k != "lora"}
    with pytest.raises(MismatchError, match="not complete"):
        LanguageHost.from_config(lost)


def _with_spec(known: dict, spec: LoraSpec) -> LanguageHost:
    host = LanguageHost.from_config(known)
    host.spec = spec
    return host


def test_what_a_head_sees_gives_the_logits(host: LanguageHost, sources: list[Source]) -> None:
    adapter, inputs = host.adapter(2), sources[0].dev_inputs
    theta = some_weights(adapter)
    weights = adapter.space.unflatten(theta)
    head = {n.rpartition(".")[2]: w for n, w in weights.items() if "modules_to_save" in n}
    hidden = host.hidden(theta, adapter.space, inputs)
    want = adapter_logits(adapter, theta, inputs)
    torch.testing.assert_close(hidden @ head["weight"].T + head["bias"], want, rtol=0.05, atol=0.05)


def test_a_fitted_head_is_better_than_none_and_leaves_the_factors(
    host: LanguageHost, sources: list[Source]
) -> None:
    for s in sources:
        adapter = host.adapter(s.outputs)
        theta = some_weights(adapter, scale=0.05)
        rows = s.fit[:64]
        found = host.refine(
            theta, adapter.space, s.inputs[rows], s.train.targets[rows], head="fitted"
        )
        new = found.theta
        before, after = (adapter.space.unflatten(t) for t in (theta, new))
        for name in before:
            assert torch.equal(before[name], after[name]) == ("modules_to_save" not in name)
        labels = s.dev.labels
        assert labels is not None and found.losses.shape == (64,) and found.loss < 2
        logits = (adapter_logits(adapter, t, s.dev_inputs) for t in (theta, new))
        scores = [measure(s.dev.metric, x, labels) for x in logits]
        assert scores[1] > scores[0]


def test_a_good_head_is_kept(host: LanguageHost, sources: list[Source]) -> None:
    """Fitted to many rows, a head is not thrown away for what eight rows say."""
    s = sources[0]
    adapter = host.adapter(2)
    fit, few = s.fit[:100], s.fit[100:108]
    good, _ = host.refine(
        adapter.theta_0, adapter.space, s.inputs[fit], s.train.targets[fit], head="fitted"
    )
    kept, _ = host.refine(good, adapter.space, s.inputs[few], s.train.targets[few])
    lone, _ = host.refine(good, adapter.space, s.inputs[few], s.train.targets[few], head="fitted")
    assert (kept - good).norm() < (lone - good).norm()


def test_heads_that_cannot_be(host: LanguageHost, sources: list[Source]) -> None:
    s, adapter = sources[0], host.adapter(2)
    with pytest.raises(InputError, match="generated"):
        host.refine(adapter.theta_0, adapter.space, s.inputs, s.train.targets, head="generate")
    whole = LanguageHost.of(host.base, LoraSpec(pooling="model"), "tiny")
    with pytest.raises(InputError, match="not linear"):
        whole.hidden(adapter.theta_0, adapter.space, s.inputs)
