"""`ltdi.products`: the other library's products are those of float32, and the choice is local."""

from __future__ import annotations

import pytest
import torch

from ltdi import products
from ltdi.products import exact, fast_products

KNOWN = hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision")


@pytest.mark.parametrize("shape", [(4, 80, 128, 4), (1, 300, 200, 100), (3, 1, 7, 5)])
def test_products_are_as_exact_inside(shape: tuple[int, ...]) -> None:
    many, rows, inner, columns = shape
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(many, rows, inner, generator=rng)
    b = torch.randn(many, inner, columns, generator=rng)
    expected = a.double() @ b.double()
    with fast_products():
        found = a @ b, torch.stack([x @ y for x, y in zip(a, b, strict=True)])
    for product in found:
        torch.testing.assert_close(product.double(), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.skipif(not KNOWN, reason="PRODUCTS NOT TESTED: torch before 2.9 has no such setting")
def test_the_setting_is_put_back_whatever_happens() -> None:
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    with pytest.raises(ZeroDivisionError), fast_products():
        assert settings.fp32_precision == ("bf16" if exact() else before)
        raise ZeroDivisionError
    assert settings.fp32_precision == before


def test_where_products_would_be_rounded_nothing_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "exact", lambda: False)
    settings = getattr(torch.backends.mkldnn, "matmul", None)
    before = getattr(settings, "fp32_precision", None)
    with fast_products():
        assert getattr(settings, "fp32_precision", None) == before


def test_rounding_to_bfloat16_would_be_seen() -> None:
    """The numbers of the trial are not those of bfloat16, but of float32."""
    fine = torch.tensor(1 + 2.0**-20)
    assert fine != 1 and fine.bfloat16() == 1
