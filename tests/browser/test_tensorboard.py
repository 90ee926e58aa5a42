"""What a user sees: the real TensorBoard server, its page in a real Chromium, the curves read from the drawing."""

import math
import re
from collections.abc import Iterator

import numpy as np
import pytest

from tests.browser._chromium import FLAGS, chromium_or_skip, tensorboard
from tests.experiments._runs import QuickRun

pytestmark = pytest.mark.browser

# Each card's title, and of each curve its colour and the points of its path. (SVG, not WebGL: it can be read back.)
CURVES = """() => [...document.querySelectorAll("card-view")].map(card => ({
    title: card.querySelector("tb-truncated-path")?.title ?? "",
    curves: [...card.querySelectorAll("line-chart .series-view svg path")].map(path => ({
        color: getComputedStyle(path).stroke,
        points: path.getAttribute("d"),
    })).filter(curve => curve.color !== "none"),
}))"""


@pytest.fixture(scope="module")
def cards(run: QuickRun) -> Iterator[dict[str, list[dict]]]:
    """Title of each card on the first screen → the curves drawn in it."""
    browser_path = chromium_or_skip()
    sync_api = pytest.importorskip("playwright.sync_api")
    with tensorboard(run.folder) as address, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=list(FLAGS), timeout=60_000)
        page = browser.new_page(viewport={"width": 1440, "height": 1300})
        page.goto(f"{address}/?smoothing=0&forceSVG=true#timeseries", timeout=60_000)
        page.wait_for_selector("card-view line-chart svg path", state="attached", timeout=60_000)
        # The curves arrive card by card: wait until the drawing no longer changes.
        before, drawn = None, page.evaluate(CURVES)
        for _ in range(60):
            if drawn == before and sum(bool(card["curves"]) for card in drawn) >= 4:
                break
            page.wait_for_timeout(1000)
            before, drawn = drawn, page.evaluate(CURVES)
        browser.close()
    return {card["title"]: card["curves"] for card in drawn}


def _points(curve: dict) -> np.ndarray:
    return np.array([[float(x), float(y)] for x, y in re.findall(r"[ML]([-\d.e]+),([-\d.e]+)", curve["points"])])


def _slope(curve: dict) -> float:
    """Rise per layer in pixels; a screen's y axis points down."""
    x, y = _points(curve).T
    return float(-np.polyfit(x, y, 1)[0])


def _card(cards: dict[str, list[dict]], ending: str) -> list[dict]:
    titles = [title for title in cards if title.endswith(ending)]
    assert len(titles) == 1, f"no card {ending!r} among {list(cards)}"
    return cards[titles[0]]


@pytest.mark.parametrize(("card", "sign"), [("1 linear nets: activations", 1), ("2 linear nets: gradients", -1)])
def test_linear_nets_are_drawn_with_the_slopes_of_their_factors(
    cards: dict[str, list[dict]], card: str, sign: int
) -> None:
    curves = _card(cards, card)
    assert [len(_points(curve)) for curve in curves] == [150] * 4
    for curve in curves:  # log c · layer is a straight line; half a pixel is what rounding may do
        x, y = _points(curve).T
        assert np.abs(y - np.polyval(np.polyfit(x, y, 1), x)).max() < 0.5
    slopes = np.array(sorted(sign * _slope(curve) for curve in curves))
    expected = np.log([0.5, 0.9, 1.1, 1.5])
    # The scale of the axis is TensorBoard's choice, so slopes are compared as shares of the steepest.
    np.testing.assert_allclose(slopes / slopes[0], expected / expected[0], atol=1e-3)


def test_he_is_drawn_flat_where_the_other_inits_fall(cards: dict[str, list[dict]]) -> None:
    curves = _card(cards, "3 ReLU nets: activations")
    assert [len(_points(curve)) for curve in curves] == [20] * 4
    small, lecun, xavier, he = sorted(_slope(curve) for curve in curves)
    # Known factors per layer at width 64: 0.01·√32 = 0.0566, √½, √½, 1. Chance may move each by 13 %.
    unit = small / math.log(0.01 * math.sqrt(32))
    assert lecun / unit == pytest.approx(math.log(math.sqrt(0.5)), abs=0.13)
    assert xavier / unit == pytest.approx(math.log(math.sqrt(0.5)), abs=0.13)
    assert he / unit == pytest.approx(0, abs=0.13)


def test_each_run_has_its_own_colour(cards: dict[str, list[dict]]) -> None:
    for ending in ("1 linear nets: activations", "3 ReLU nets: activations"):
        assert len({curve["color"] for curve in _card(cards, ending)}) == 4


def test_first_screen_tells_the_story_in_order(cards: dict[str, list[dict]]) -> None:
    titles = [title.rpartition("/")[2] for title in cards if title]
    assert titles[:6] == [
        "1 linear nets: activations",
        "2 linear nets: gradients",
        "3 ReLU nets: activations",
        "4 ReLU nets: gradients",
        "5 tanh nets: activations",
        "6 tanh nets: gradients",
    ]
    assert all(len(title) <= 30 for title in titles)  # what a card shows of its title


def test_missing_browser_skips_with_the_reason_unless_one_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.browser._chromium.find_chromium", lambda: None)
    monkeypatch.delenv("TORCHNOTES_REQUIRE_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Chromium found: install it"):
        chromium_or_skip()
    monkeypatch.setenv("TORCHNOTES_REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="no Chromium found: install it"):
        chromium_or_skip()
