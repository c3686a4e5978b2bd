"""`ltdi.generator.images`: batches of any shots, and images of any kind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ltdi.errors import InputError
from ltdi.generator import Generator, HeadGenerator, View, images
from ltdi.tasks import Support
from tests.generator.made import Draw, close, flat


def test_a_list_equals_one_by_one(gen: Generator, draw: Draw):
    tasks = [
        draw([1, 1]),
        draw([1, 4, 2, 1, 5], first=7, size=40),
        draw([2] * 50, first=3),
        draw([3, 1], first=20, size=17),
        Support(*draw([5, 1, 1, 1, 1], first=30)),
        draw([1, 4, 2, 1, 5], first=40),
    ]
    together = gen.generate(tasks)
    assert [len(h["bias"]) for h in together] == [2, 5, 50, 2, 5, 5]
    for task, head in zip(tasks, together, strict=True):
        close(gen.generate(task), head)
    assert not torch.allclose(together[1]["weight"], together[4]["weight"], atol=1e-3)


def test_many_tasks_go_through_the_chain_in_parts(
    gen: HeadGenerator, monkeypatch: pytest.MonkeyPatch
):
    grid = torch.randn(7, 3, 2, gen.width, generator=torch.Generator())
    mask = torch.ones(7, 3, 2)
    mask[::2, :, 1] = 0
    whole, noisy = gen.weights(grid, mask), gen.weights(grid, mask, temperature=1.0)
    seen: list[int] = []
    view = gen.view

    def counted(grid: Tensor, mask: Tensor, copies: int) -> View:
        seen.append(len(grid))
        return view(grid, mask, copies)

    monkeypatch.setattr(images, "TOGETHER", 3)
    monkeypatch.setattr(gen, "view", counted)
    torch.testing.assert_close(gen.weights(grid, mask), whole, rtol=1e-5, atol=1e-6)
    assert seen == [3, 3, 1]
    # Noise is drawn for all of them at once.
    assert torch.equal(gen.weights(grid, mask, temperature=1.0), noisy) and seen[3:] == [7]


def test_images_may_be_bytes_or_floats_grey_or_colour(gen: Generator, draw: Draw):
    images, labels = draw([2, 2])
    head = gen.generate((images, labels))
    close(gen.generate((images.float() / 255, labels)), head)
    # Luma rounds, and so does bfloat16 where the processor has it.
    close(gen.generate((images.expand(-1, 3, -1, -1), labels)), head, atol=0.05)
    assert flat(head).abs().max() > 1
    close(gen.generate((images, labels.to(torch.int32))), head)


def test_features_give_the_same_weights_as_images(gen: Generator, draw: Draw):
    images, labels = draw([2, 2, 2])
    features = gen.backbone.features(images).unflatten(0, (1, 3, 2))
    head = gen.space(3).unflatten(gen.weights(features)[0])
    close(head, gen.generate((images, labels)))


def test_no_task_is_refused(gen: Generator):
    with pytest.raises(InputError, match="no task was given"):
        gen.generate([])
