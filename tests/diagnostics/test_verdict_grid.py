"""The grid scripts run small, and their truth is what theory says."""

from __future__ import annotations

import json
import math

import pytest

from experiments.benchmarks import theory_grid, verdict_grid
from experiments.benchmarks.grid_nets import FAMILIES
from torchnotes.diagnostics.theory_quadrature import activation_moments, as_elementwise


@pytest.mark.parametrize("name", ["tanh, 4/n", "sigmoid, 1/n", "SELU, 1/n", "leaky ReLU 0.1, 2/1.01n"])
def test_the_growth_written_down_is_the_fixed_point_of_the_theory(name):
    family = next(family for family in FAMILIES if family.name == name)
    function = as_elementwise(family.between[0](4))
    q = 1.0
    for _ in range(300):
        q = family.variance * activation_moments(function, 0.0, q).second
    chi = family.variance * activation_moments(function, 0.0, q).slope_second
    assert family.backward == pytest.approx(math.sqrt(chi), rel=1e-3)


def test_truth_leaves_a_gap_between_sound_and_broken():
    assert verdict_grid.truth(1.0, 100) == "healthy"
    assert verdict_grid.truth(math.sqrt(0.5), 5) == "either"
    assert verdict_grid.truth(math.sqrt(0.5), 50) == "vanishing"
    assert verdict_grid.truth(1.1, 100) == "exploding"


def test_a_small_verdict_grid(tmp_path):
    config = verdict_grid.Config(
        widths=(32,), depths=(5, 20), seeds=1, conv_width=0, json=tmp_path / "grid.json", markdown=tmp_path / "grid.md"
    )
    cases = verdict_grid.main(config)
    assert len(cases) == 2 * 2 * sum(family.kind != "conv" for family in FAMILIES)
    assert len(json.loads(config.json.read_text())) == len(cases)
    clear = [case for case in cases if case.truth != "either"]
    assert sum(case.truth != case.verdict for case in clear) <= 0.05 * len(clear)
    assert "| ReLU, 1/n | ×0.707 / ×0.707 |" in config.markdown.read_text()


def test_a_small_theory_grid(tmp_path):
    config = theory_grid.Config(widths=(256,), depth=4, batch=64, markdown=tmp_path / "grid.md")
    rows = theory_grid.main(config)
    # At width 256 a layer's rms scatters by up to √(5/256)/2 = 7 %; the mean of three by 4 %.
    assert max(row.worst_mean for row in rows) < 0.08
    assert "| residual, pre-norm | 256 |" in config.markdown.read_text()
