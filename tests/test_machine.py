"""Precisions that a processor computes natively."""

import pytest

from normbench import machine


@pytest.mark.parametrize(
    ("present", "native"),
    [
        ("avx2 fma f16c", {"float32"}),
        ("avx512f avx512_vnni avx512_bf16", {"float32", "mixed_bfloat16"}),
        ("avx512f amx_bf16 avx512_fp16", {"float32", "mixed_bfloat16", "mixed_float16"}),
        ("asimd asimdhp", {"float32", "mixed_float16"}),
        ("", {"float32", "mixed_bfloat16", "mixed_float16"}),  # unknown: not Linux
    ],
)
def test_half_precision_is_native_only_with_matching_instructions(
    present: str, native: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "instructions", lambda: frozenset(present.split()))
    precisions = ("float32", "mixed_bfloat16", "mixed_float16")
    assert {precision for precision in precisions if machine.is_native(precision)} == native
