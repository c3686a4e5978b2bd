"""`ltdi.commands.evaluate`: what is refused before features take their time."""

from __future__ import annotations

import pytest
import torch

from ltdi.commands.evaluate import _ASIDE, _check_left
from ltdi.crossdomain import split_domain
from ltdi.errors import InputError
from ltdi.tasks import FeatureBank


@pytest.mark.parametrize("shot", [1, 3, 5])
def test_classes_are_counted_without_what_is_set_aside(shot: int):
    for fewest in range(shot + 1, 3 * shot + 3):
        bank = FeatureBank.by_class([torch.zeros(30, 2), torch.zeros(fewest, 2)], ("a", "b"))
        left = split_domain("x", bank, share=_ASIDE, seed=0).bank.offsets.diff()
        if int(left.min()) > shot:
            _check_left(bank.offsets.diff(), shot, "x")
        else:
            with pytest.raises(InputError, match=f"{int(left.min())} are left.*{shot} shots") as e:
                _check_left(bank.offsets.diff(), shot, "drawings/")
            assert e.value.where == "drawings/" and "--unlabelled" in e.value.fix
