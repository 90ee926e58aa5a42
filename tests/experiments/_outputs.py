"""What every experiment leaves behind, read back from disk."""

import json
import re
from pathlib import Path

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def events(folder: Path) -> EventAccumulator:
    (file,) = folder.glob("events.out.tfevents.*")
    return EventAccumulator(str(file), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def check_outputs(folder: Path, results, *, variant: str) -> None:
    """Pictures that are not blank, each with title and caption; curves of a variant; the reading as it was returned."""
    left = json.loads((folder / "reading.json").read_text(encoding="utf-8"))
    pictures = {figure["file"]: figure for figure in left["figures"]}
    assert pictures.keys() == {path.name for path in folder.glob("*.png")}
    for name, figure in pictures.items():
        with Image.open(folder / name) as image:
            assert len(image.convert("RGB").resize((200, 150)).getcolors(200 * 150)) > 10, name
        assert re.fullmatch(r"[A-Z].{5,}", figure["title"])
        assert re.fullmatch(r"[A-Z].{40,}\.", figure["caption"])
    assert [claim["text"] for claim in left["claims"]] == [claim.text for claim in results.reading]
    assert left["tables"]
    assert all(claim.text.endswith(".") and claim.evidence.endswith(".") for claim in results.reading)
    tags = events(folder / variant).Tags()["scalars"]
    assert tags
    assert all(re.match(r"\d+ ", tag) for tag in tags)
    assert len(events(folder / "overview").Tags()["images"]) == len(pictures)
    assert "0 What was found/text_summary" in events(folder / "overview").Tags()["tensors"]


def outcome(claims, words: str) -> bool | None:
    """How the one claim was judged whose text holds these words."""
    (held,) = [claim.held for claim in claims if words in claim.text]
    return held
