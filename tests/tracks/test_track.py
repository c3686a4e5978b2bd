"""`ltdi.tracks.track`: what every track asks of its preset and of the names of its methods."""

from __future__ import annotations

import pytest

from ltdi.errors import InputError
from ltdi.tracks import TRACKS
from ltdi.tracks.track import chosen_preset, side_of


def test_a_preset_of_ones_own_is_called_custom():
    assert chosen_preset("smoke", {"smoke": 1, "paper": 2}) == ("smoke", 1)
    assert chosen_preset(3, {"smoke": 1}) == ("custom", 3)


@pytest.mark.parametrize("name", TRACKS)
def test_every_track_refuses_unknown_names_with_the_nearest(name: str):
    bench, methods = TRACKS[name].bench, TRACKS[name].methods
    options = {} if name in ("transfer", "llm") else {"dataset": "glyphs"}
    with pytest.raises(InputError, match="smoke"):
        bench(**options, methods=methods[:1], preset="smoek")
    with pytest.raises(InputError, match="lt-di"):
        bench(**options, methods=("lt-dj",), preset="smoke")
    with pytest.raises(InputError, match="no method was named"):
        bench(**options, methods=(), preset="smoke")


def test_the_preset_speaks_of_one_backbone_and_the_user_of_any():
    assert side_of(None, 224, "efficientnet-lite0") == 224
    assert side_of(96, 224, "efficientnet-lite0") == 96
    assert side_of(None, 224, "timm:vit") is None and side_of(96, 224, "timm:vit") == 96
    assert side_of(None, 224, None) is None
    with pytest.raises(InputError, match="is trained here"):
        side_of(96, 224, None)
