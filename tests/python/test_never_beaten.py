"""Nobody's formula finds a smaller error than the search, in groups of several distributions; ``benches/python/accuracy`` has more of them."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benches" / "python" / "accuracy"))

from never_beaten import groups, outcome, schemes

CASES = [(scheme, peer) for scheme in schemes() for peer in scheme.peers if not peer.name.startswith("ggml")]


@pytest.mark.parametrize(("scheme", "peer"), CASES, ids=[f"{scheme.name}-{scheme.size}-{peer.name}" for scheme, peer in CASES])
def test_no_formula_finds_a_smaller_error(scheme, peer):
    x, _ = groups(300, scheme.size)
    result = outcome(scheme, peer, x)
    assert result.beaten == 0, f"above it by {result.worst:.1e}"
    assert result.ratio > 1.05
