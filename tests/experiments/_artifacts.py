"""What every experiment must leave behind, and how to run one small inside a test."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.console import Claim


def run_small(main: Callable[..., Any], config: Any) -> Any:
    """Run an experiment without a terminal."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        return main(config, Console(file=nowhere))


def events(folder: Path) -> EventAccumulator:
    """A variant's log, read back from disk: one file, whatever ran there before."""
    files = list(folder.glob("events.out.tfevents.*"))
    assert len(files) == 1, files
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def check_artifacts(folder: Path, results: Any, figures: Sequence[str]) -> None:
    """Reading, pictures with captions, and the summary in TensorBoard."""
    reading = json.loads((folder / "reading.json").read_text(encoding="utf-8"))
    assert [claim["text"] for claim in reading["claims"]] == [claim.text for claim in results.reading]
    assert reading["tables"]
    assert sorted(figure["file"] for figure in reading["figures"]) == sorted(figures)
    for figure in reading["figures"]:
        assert figure["title"]
        assert figure["caption"].endswith(".")
        assert (folder / figure["file"]).read_bytes().startswith(b"\x89PNG")
    overview = events(folder / "overview")
    assert len(overview.Tags()["images"]) == len(figures)
    (text,) = overview.Tensors("0 What was found/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert all(f"{claim.text} {claim.evidence}" in shown for claim in results.reading)


def outcome(claims: Sequence[Claim], words: str) -> bool | None:
    """Whether the one claim held whose text contains these words."""
    (claim,) = [claim for claim in claims if words in claim.text]
    return claim.held
