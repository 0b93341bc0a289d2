"""torch's private kernels are called only as they are known; without them rows are padded on a GPU, too."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pet.modeling import attention
from pet.modeling.attention import KERNELS, Reads, has_kernels, packed_attention, read_attention

SIZES, WIDTH = [5, 2, 7], 8


def operators(**changed: Any) -> SimpleNamespace:
    """torch's own, with some in another's place; `None`: missing."""
    found = {name: getattr(torch.ops.aten, name) for name in KERNELS} | changed
    return SimpleNamespace(**{name: one for name, one in found.items() if one is not None})


def operator(schema: str) -> SimpleNamespace:
    return SimpleNamespace(default=SimpleNamespace(_schema=torch._C.parse_schema(schema)))


def flash(change: Callable[[str], str]) -> SimpleNamespace:
    """The flash kernel with another schema."""
    schema = str(torch.ops.aten._flash_attention_forward.default._schema)
    assert change(schema) != schema
    return operator(change(schema))


STRANGE = {
    "missing": None,
    "an argument more": flash(lambda schema: schema.replace("Tensor value,", "Tensor value, Tensor sink,")),
    "an argument more by name": flash(lambda schema: schema.replace("*,", "*, Tensor sink,")),
    "an argument less": flash(lambda schema: schema.replace(" bool is_causal,", "")),
    "another order": flash(lambda schema: schema.replace("Tensor query, Tensor key", "Tensor key, Tensor query")),
    "another type": flash(lambda schema: schema.replace("SymInt max_q", "Tensor max_q")),
    "no scale": flash(lambda schema: schema.replace(" float? scale=None,", "")),
}


def test_the_kernels_of_this_torch_are_those_that_are_known(caplog):
    assert has_kernels(torch.ops.aten)
    assert has_kernels(
        operators(_flash_attention_forward=flash(lambda schema: schema.replace("SymInt max", "int max")))
    )
    assert caplog.text == ""


@pytest.mark.parametrize("how", STRANGE)
def test_a_kernel_that_is_not_as_it_is_called_is_not_used_and_one_line_says_so(caplog, how):
    assert not has_kernels(operators(_flash_attention_forward=STRANGE[how]))
    (record,) = caplog.records
    assert record.name.startswith("pet.")
    assert "lacks the operator _flash_attention_forward as pet calls it" in record.getMessage()


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


def rows_of(sizes: list[int]) -> dict[str, torch.Tensor]:
    starts = torch.tensor([0, *sizes]).cumsum(0).int()
    rows = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return {"starts": starts, "rows": rows, "places": torch.arange(sum(sizes)) - starts[rows]}


def by_hand(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention of the queries [1, h, q, d] of one row."""
    return ((query @ key.transpose(-1, -2)) * 0.3).softmax(-1) @ value


def test_without_the_kernels_attention_on_a_gpu_is_that_of_padded_rows(monkeypatch):
    torch.manual_seed(0)
    tensors = [torch.randn(1, 2, sum(SIZES), 16, dtype=torch.bfloat16) for _ in range(3)]
    on_gpu = [one.as_subclass(OnGpu) for one in tensors]
    exact = [by_hand(*one) for one in zip(*(one.float().split(SIZES, 2) for one in tensors), strict=True)]
    last = torch.tensor(SIZES).cumsum(0) - 1
    counts = torch.arange(len(SIZES))
    reads = Reads(last, counts, torch.zeros_like(counts), torch.arange(len(SIZES) + 1).int(), 1)
    call = rows_of(SIZES)

    def ask() -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value = on_gpu
        # Dropout that drops nothing: of the two kernels the one that is no operator of ours.
        found, _ = packed_attention(
            torch.nn.Module(), query, key, value, None, scaling=0.3, dropout=1e-9, **call, width=WIDTH
        )
        return found, read_attention(query[:, :, last], key, value, 0.3, 0.0, reads, **call, width=WIDTH)

    with pytest.raises(NotImplementedError, match="_flash_attention_forward"):
        ask()
    monkeypatch.setattr(attention, "HAS_KERNELS", False)
    everything, some = ask()
    expected = torch.cat(exact, 2).transpose(1, 2)
    torch.testing.assert_close(everything.float().as_subclass(torch.Tensor), expected, rtol=0.05, atol=0.02)
    torch.testing.assert_close(some.float().as_subclass(torch.Tensor), expected[:, last], rtol=0.05, atol=0.02)
