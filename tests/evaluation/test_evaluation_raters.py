"""Human raters: a page that hides which set is which, and votes, intervals and agreement."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from emu_edit.cli.main import main
from emu_edit.errors import InputError
from emu_edit.evaluation.rater_page import key_of, write_page
from emu_edit.evaluation.raters import (
    QUESTIONS,
    Key,
    Vote,
    fleiss_kappa,
    outcome_of,
    read_votes,
)
from emu_edit.images import read_image, save_png
from tests.end_to_end.browser import open_browser, programs, request, wait_for

# ten things put into five categories by fourteen raters, worked by hand: P = 0.378, P_e = 0.213
HAND_WORKED = (
    (0, 0, 0, 0, 14),
    (0, 2, 6, 4, 2),
    (0, 0, 3, 5, 6),
    (0, 3, 9, 2, 0),
    (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0),
    (3, 2, 6, 3, 0),
    (2, 5, 3, 2, 2),
    (6, 5, 2, 1, 0),
    (0, 2, 2, 3, 7),
)
HOSTILE = "a star </script><script>document.title='x'</script> & \\u003c"


def two_sets(folder: Path, items: int = 6) -> tuple[Path, Path]:
    """Write a dark set "plain-model" and a light set "tuned-model" with captions."""
    sets = folder / "plain-model", folder / "tuned-model"
    for level, each in zip((40, 220), sets, strict=True):
        each.mkdir(parents=True)
        for number in range(items):
            save_png(each / f"{number}.png", torch.full((3, 16, 16), level, dtype=torch.uint8))
    rows = [
        {"file_name": f"{n}.png", "caption": HOSTILE if n == 0 else f"c{n}"} for n in range(items)
    ]
    (sets[0] / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return sets


def answer(key: Key, path: Path, choices: dict[int, int], question: str = "quality") -> Path:
    """Write the answers of a rater who chooses these sets."""
    given = [
        {
            "item": item,
            "question": question,
            "choice": "left" if key.items[item][1] == which else "right",
            "reasons": [QUESTIONS[question][1][which]],
        }
        for item, which in choices.items()
    ]
    told = {"version": 1, "page": key.page, "rater": path.stem, "answers": given}
    path.write_text(json.dumps(told))
    return path


def test_kappa_is_that_of_a_table_worked_by_hand() -> None:
    assert fleiss_kappa(HAND_WORKED) == pytest.approx(
        (0.378022 - 0.212755) / (1 - 0.212755), abs=1e-5
    )


def test_kappa_is_one_for_one_mind_zero_by_chance_and_below_for_quarrel() -> None:
    assert fleiss_kappa([(5, 0), (0, 5), (5, 0)]) == 1
    assert fleiss_kappa([(2, 2), (4, 0), (0, 4), (1, 3), (3, 1)]) == pytest.approx(1 / 3)
    assert fleiss_kappa([(1, 1), (1, 1)]) == -1
    assert fleiss_kappa([(5, 0), (5, 0)]) is None  # nothing but one answer: no chance to differ
    assert fleiss_kappa([(1, 0)]) is None
    assert fleiss_kappa([(5, 0), (0, 5), (0, 1)]) == 1  # one vote agrees with nobody


def test_most_votes_win_and_ties_are_neither_sets() -> None:
    chosen = {0: [0, 0, 0, 1, 1], 1: [1] * 5, 2: [0, 1, 0, 1], 3: [0, 0, 1]}
    votes = [Vote(i, "quality", c, (f"r{c}",)) for i, each in chosen.items() for c in each]
    found = outcome_of("quality", [*votes, Vote(0, "faithfulness", 1, ())])
    assert (found.items, found.votes, found.wins, found.ties) == (4, (3, 5), (2, 1), 1)
    assert found.share == pytest.approx(2 / 3)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < 2 / 3 < found.high < 1
    assert found.reasons == ({"r0": 7}, {"r1": 10})
    nothing = outcome_of("quality", [])
    assert (nothing.items, nothing.share, nothing.kappa) == (0, None, None)


def test_the_page_does_not_tell_which_is_which(tmp_path: Path) -> None:
    first, second = two_sets(tmp_path)
    key = write_page(first, second, tmp_path / "page", seed=3)
    assert Key.read(key_of(tmp_path / "page")) == key
    names = [file.name for file in sorted((tmp_path / "page").rglob("*")) if file.is_file()]
    assert len(names) == 1 + 2 * 6
    html = (tmp_path / "page" / "index.html").read_text()
    for told in ("plain-model", "tuned-model", "key", str(tmp_path)):
        assert not [name for name in names if told in name]
        assert told == "key" or told not in html
    levels = [_level(tmp_path / "page" / "files" / f"{i:04d}-left.png") for i in range(6)]
    assert levels == [40 if left == 0 else 220 for _, left in key.items]


def test_sides_are_drawn_by_a_fair_coin_of_seed_and_item(tmp_path: Path) -> None:
    first, second = two_sets(tmp_path, items=40)
    keys = [write_page(first, second, tmp_path / f"page{seed}", seed=seed) for seed in (0, 1)]
    lefts = [[left for _, left in key.items] for key in keys]
    assert all(10 <= Counter(left)[0] <= 30 for left in lefts)
    assert lefts[0] != lefts[1]
    assert keys[0].page != keys[1].page
    again = write_page(first, second, tmp_path / "again", seed=0)
    assert again == keys[0]


def test_a_caption_cannot_leave_its_place(tmp_path: Path) -> None:
    write_page(*two_sets(tmp_path), tmp_path / "page")
    html = (tmp_path / "page" / "index.html").read_text()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert HOSTILE in [item["caption"] for item in json.loads(data)["items"]]
    assert html.count("<script") == 2


def test_answers_of_five_raters_become_a_table_and_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    two_sets(tmp_path)
    assert main(["rate", "page", "plain-model", "tuned-model", "-o", "page"]) == 0
    key = Key.read(key_of(Path("page")))
    minds = [
        {0: 1, 1: 1, 2: 0},
        {0: 1, 1: 1, 2: 0},
        {0: 1, 1: 0, 2: 0},
        {0: 0, 1: 1, 2: 0},
        {0: 0, 1: 1, 2: 0},
    ]
    files = [str(answer(key, Path(f"r{n}.json"), mind)) for n, mind in enumerate(minds)]
    capsys.readouterr()
    assert main(["rate", "count", "page", *files]) == 0
    said = capsys.readouterr().out
    assert "plain-model wins  tuned-model wins" in said
    assert re.search(r"quality +3 +5 +1 +2 +0 +33\.3%", said)
    assert f"quality, for tuned-model: {QUESTIONS['quality'][1][1]} (7)" in said
    told = json.loads(Path("votes.json").read_text())
    assert told["raters"] == {f"r{n}": 3 for n in range(5)}
    quality, faithfulness = told["questions"]
    assert (quality["wins"], quality["ties"]) == ([1, 2], 0)
    assert quality["kappa"] == pytest.approx(fleiss_kappa([(2, 3), (1, 4), (5, 0)]))
    assert faithfulness["items"] == 0
    assert main(["rate", "count", "page", files[0], files[0]]) == 2
    assert "rater 'r0' has answered already" in capsys.readouterr().err


def test_answers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    key = write_page(*two_sets(tmp_path), tmp_path / "page")
    path = answer(key, tmp_path / "a.json", {0: 1})
    values = json.loads(path.read_text())
    (good,) = values["answers"]
    for changed, message in (
        ({**values, "page": "other"}, "are answers to another page"),
        ({**values, "answers": [good, good]}, "answer 2 is given twice"),
        ({**values, "answers": [{**good, "choice": "both"}]}, "answer 1 is none to this page"),
        ({**values, "answers": [{**good, "item": 6}]}, "answer 1 is none to this page"),
        ({**values, "answers": [{**good, "item": -1}]}, "answer 1 is given twice or to no"),
        ({**values, "answers": 3}, "answer 1 is none to this page"),
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=message):
            read_votes(path, key)
    with pytest.raises(InputError, match="is no key of"):
        Key.read(path)


def test_folders_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    first, second = two_sets(tmp_path)
    write_page(first, second, tmp_path / "page")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="page exists already"):
        write_page(first, second, tmp_path / "page")
    with pytest.raises(InputError, match=r"empty: has no \.mp4"):
        write_page(first, tmp_path / "empty", tmp_path / "other")
    (second / "1.txt").write_text("another text")
    with pytest.raises(InputError, match="1: its captions differ: 'c1' and 'another text'"):
        write_page(first, second, tmp_path / "other")
    (first / "captions.jsonl").unlink()
    with pytest.raises(InputError, match=r"have no caption of 0; put it into captions\.jsonl"):
        write_page(first, second, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.skipif(programs() is None, reason="needs chromium and chromedriver")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_rater_answers_with_keys_and_downloads_it(tmp_path: Path, width: int) -> None:
    key = write_page(*two_sets(tmp_path, items=2), tmp_path / "page")
    address = f"file://{tmp_path / 'page' / 'index.html'}"
    event = "new KeyboardEvent('keydown', Object.fromEntries([['key', key]]))"
    press = f"for (const key of arguments) document.dispatchEvent({event})"
    (tmp_path / "downloads").mkdir()
    with open_browser(tmp_path / "downloads") as browser:
        request("POST", f"{browser.session}/window/rect", {"width": width, "height": 900})
        browser.open(address)
        wait_for("a picture", lambda: browser.run("return document.images[0]?.naturalWidth") == 16)
        fits = "return document.documentElement.scrollWidth <= innerWidth"
        assert browser.run(fits)
        assert browser.run("return document.title") == "Which one?"
        browser.run(press, "ArrowLeft", "Enter")  # without a reason it does not go on
        assert browser.text("#count") == "0 of 4"
        browser.run(press, "2", "Enter", "ArrowRight", "1", "3", "3", "Enter")
        assert browser.text("#count") == "2 of 4"

        def is_kept() -> bool:  # another process may show the page, before it is told of the store
            browser.open(address)
            return browser.text("#count") == "2 of 4"

        wait_for("the answers", is_kept)
        browser.run(press, "ArrowLeft", "1", "Enter", "ArrowLeft", "1", "Enter")
        browser.type("#rater", "ann")
        told = browser.download("#download", "answers-ann.json")
    file = tmp_path / "answers.json"
    file.write_bytes(told)
    name, votes = read_votes(file, key)
    assert name == "ann"
    lefts = [left for _, left in key.items]
    assert [(v.item, v.choice) for v in votes] == [
        (0, lefts[0]),
        (0, 1 - lefts[0]),
        (1, lefts[1]),
        (1, lefts[1]),
    ]
    reasons = {question: each for question, (_, each) in QUESTIONS.items()}
    assert [v.reasons for v in votes[:2]] == [
        (reasons["quality"][1],),
        (reasons["faithfulness"][0],),
    ]


def _level(path: Path) -> int:
    return int(read_image(path)[0, 0, 0])
