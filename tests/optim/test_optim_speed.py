"""The benchmark of a step runs small and writes its rows."""

import json

from experiments.benchmarks.optim_speed import Config, main


def test_rows_are_written(tmp_path, capsys):
    config = Config(
        (400,), tensors=4, rules=("Adam",), seconds=0.01, json=tmp_path / "rows.json", markdown=tmp_path / "rows.md"
    )
    (row,) = main(config)
    assert row.ratio_to_foreach > 0
    assert row.ratio_to_fused > 0
    written = json.loads((tmp_path / "rows.json").read_text())
    assert written["rows"][0]["ratio_to_foreach"] == row.ratio_to_foreach
    assert (tmp_path / "rows.md").read_text().splitlines()[-1] in capsys.readouterr().out
