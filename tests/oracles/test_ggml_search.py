"""The searches of ggml, with and without an importance, find no smaller error in their own objectives than the search does."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benches" / "python" / "accuracy"))

from never_beaten import groups, outcome, schemes

CASES = [(scheme, peer) for scheme in schemes() for peer in scheme.peers if peer.name.startswith("ggml")]


@pytest.mark.parametrize(("scheme", "peer"), CASES, ids=[f"{scheme.name}-{peer.name}" for scheme, peer in CASES])
def test_ggml_finds_no_smaller_error(scheme, peer):
    if scheme.missing:
        pytest.skip(scheme.missing)
    x, _ = groups(300 // (8 if scheme.size == 256 else 1), scheme.size)
    result = outcome(scheme, peer, x)
    assert result.ratio > 1
    assert scheme.in_total or result.beaten == 0, f"above it by {result.worst:.1e}"
