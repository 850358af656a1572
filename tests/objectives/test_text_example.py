"""The sentence example learns: what it prints is what its page says it shows."""

from __future__ import annotations

import importlib.util
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "fmicl_text.py"


def test_sentences_of_unseen_meanings_are_ordered_better_than_before() -> None:
    spec = importlib.util.spec_from_file_location("fmicl_text", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    before, warmed, after, _, _ = example.train("js", steps=60, warm=20, batch=64, seed=0)
    assert before < 0.3
    assert before < warmed < after
    assert after > 0.45
