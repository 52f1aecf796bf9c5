"""The page of results: one file, complete, escaped, with the pictures in it."""

import base64
import hashlib
import io
import json
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from emu_edit.errors import InputError
from emu_edit.evaluation.figures import read_items
from emu_edit.evaluation.gallery import choose
from emu_edit.evaluation.page import MOST_ITEMS, write_page
from emu_edit.images import save_png
from emu_edit.metrics.published import PACKAGED, load_published
from tests.evaluation.benchmark_example import cell, emu_results, item, magicbrush_results

EVIL = "<script>alert(1)</script> & \"quoted\" 'text' </style><img src=x onerror=alert(2)>"
EMPTY = {"br", "img", "input", "link", "meta"}


@dataclass(frozen=True)
class Pictures:
    """What the scorer knows of an item (`emu_edit.evaluation.outputs.ItemPictures`)."""

    source: UInt8[Tensor, "3 h w"]
    output: UInt8[Tensor, "3 h w"]
    target: UInt8[Tensor, "3 h w"] | None = None


class Reader(HTMLParser):
    """Collects elements, their attributes and the text, and checks that all ends are there."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            found
            for name, found in self.elements
            if name == tag and all(found.get(k.rstrip("_")) == v for k, v in attributes.items())
        ]


def noise(seed: int, side: int = 16) -> UInt8[Tensor, "3 h w"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator)


def page_of(folder: Path, *arguments: Any) -> Reader:
    return Reader(write_page(folder, *arguments).read_text(encoding="utf-8"))


def folder_with(
    tmp_path: Path, results: dict[str, Any], items: list[dict[str, Any]] | None = None
) -> Path:
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    if items is not None:
        lines = [json.dumps(item, ensure_ascii=False) for item in items]
        (tmp_path / "items.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return tmp_path


def test_a_folder_alone_gives_a_page_with_its_numbers_and_edited_pictures(tmp_path: Path):
    folder = folder_with(tmp_path, emu_results(), [item("test-0"), item("test-1", task="global")])
    (folder / "images").mkdir()
    save_png(folder / "images" / "test-0.png", noise(0))
    path = write_page(folder)
    page = Reader(path.read_text(encoding="utf-8"))
    assert path == folder / "index.html"
    assert "emu-l14" in page.text
    assert "0.090 to 0.110" in page.text
    assert "copy-input" in page.text
    assert [found["alt"] for found in page.all("img")] == ["edited"]
    assert "no picture" in page.text


def test_input_output_and_ground_truth_are_in_the_page_bit_for_bit_when_small(tmp_path: Path):
    shown = {"1001_1": Pictures(noise(1), noise(2), noise(3))}
    lines = [item("1001_1", block=["all turns", "final turns"], task="")]
    page = page_of(tmp_path, magicbrush_results(), lines, shown.__getitem__)
    found = page.all("img", class_="tiny")
    assert [one["alt"] for one in found] == ["input", "edited", "ground truth"]
    for one, seed in zip(found, (1, 2, 3), strict=True):
        data = base64.b64decode((one["src"] or "").removeprefix("data:image/png;base64,"))
        with Image.open(io.BytesIO(data)) as picture:
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        assert torch.equal(pixels.reshape(16, 16, 3).permute(2, 0, 1), noise(seed))


def test_large_pictures_are_made_256_px_and_few_bytes(tmp_path: Path):
    big = torch.nn.functional.interpolate(noise(0, 64)[None].float(), (300, 600), mode="bicubic")
    wide = big[0].clamp(0, 255).to(torch.uint8)
    page = page_of(tmp_path, emu_results(), [item("a")], lambda _: Pictures(wide, wide))
    for found in page.all("img"):
        assert (found["width"], found["height"]) == ("256", "128")
        assert (found["src"] or "").startswith("data:image/jpeg;base64,")
        assert len(found["src"] or "") < 60_000


def test_texts_of_strangers_are_escaped_everywhere(tmp_path: Path):
    results = emu_results()
    results["model"]["name"] = results["data"]["split"] = EVIL
    results["failed"] = [{"key": EVIL, "reason": EVIL}]
    results["filtered"] = results["resampled"]["keys"] = [EVIL]
    results["settings"] = {EVIL: EVIL}
    rows = results["blocks"]["single edits"]["rows"]
    for row in rows.values():
        row["all"][EVIL] = cell(0.5)
        row["by_task"][EVIL] = row["by_task"]["add"]
    results["blocks"][EVIL] = results["blocks"]["single edits"]
    lines = [
        item(EVIL, instruction=EVIL, task=EVIL, status="failed", reason=EVIL, block=[EVIL]),
        item("b", instruction=EVIL, scores={EVIL: 0.5}),
    ]
    published = replace(load_published(PACKAGED)[0], model=EVIL, source=EVIL, note=EVIL)
    page = page_of(tmp_path, results, lines, None, [published])
    assert len(page.all("script")) == 1
    assert len(page.all("style")) == 1
    assert page.all("img") == []
    assert not any("onerror" in found for _, found in page.elements)
    assert page.text.count(EVIL) > 12
    cards = page.all("article", class_="edit")
    assert EVIL in {found["data-task"] for found in cards}
    assert [EVIL] in [json.loads(found["data-blocks"] or "") for found in cards]


def test_the_page_loads_nothing_and_only_its_own_script_may_run(tmp_path: Path):
    page = page_of(tmp_path, emu_results(), [item("a")], lambda _: Pictures(noise(0), noise(1)))
    addresses = [v for _, found in page.elements for k, v in found.items() if k in {"src", "href"}]
    assert addresses
    assert all((one or "").startswith(("data:", "#")) for one in addresses)
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"] or ""
    assert "default-src 'none'" in policy
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "url(" not in text
    assert "@import" not in text


def test_links_of_the_page_lead_somewhere(tmp_path: Path):
    results = emu_results()
    results["failed"] = [{"key": "a", "reason": "broken"}]
    page = page_of(tmp_path, results, [item("a")], None, load_published(PACKAGED))
    places = {found.get("id") for _, found in page.elements}
    links = [(found["href"] or "").removeprefix("#") for found in page.all("a")]
    assert set(links) == {"published", "failed", "pictures", "settings"}
    assert set(links) <= places


def test_failures_limits_and_undefined_scores_are_said(tmp_path: Path):
    results = emu_results(items=3, of=3589)
    results["failed"] = [{"key": "test-0", "reason": "out of memory"}]
    results["filtered"] = ["test-7", "test-8"]
    results["resampled"] = {"count": 1, "keys": ["test-2"]}
    results["blocks"]["single edits"]["rows"]["model"]["all"]["clip_dir"] = cell(None, undefined=3)
    lines = [
        item("test-0", status="failed", reason="out of memory"),
        item("test-2", scores={"clip_dir": None, "l1": 0.25}),
    ]
    text = page_of(tmp_path, results, lines).text
    assert "A part of the benchmark: 3 of 3,589 edits. Not comparable" in text
    assert "failed, scored as copy-input: out of memory" in text
    assert "2 edits left out by the protocol" in text
    assert "1 edit of another size" in text
    assert "undefined for 3" in text
    assert "0.250" in text


def test_both_settings_of_magicbrush_have_their_tables_and_turns(tmp_path: Path):
    text = page_of(tmp_path, magicbrush_results()).text
    for words in ("All turns (single-turn)", "Final turns (multi-turn)", "oracle", "1,053 edits"):
        assert words in text
    assert text.count("By turn") == 2
    assert "By task" not in text


def test_published_rows_are_shown_when_asked_for(tmp_path: Path):
    rows = load_published(PACKAGED)
    asked = page_of(tmp_path, magicbrush_results(), [], None, rows).text
    assert "same benchmark and protocol" in asked
    assert "not comparable: this run follows magicbrush" in asked
    assert "GenArtist" in asked
    assert "Published" not in page_of(tmp_path, magicbrush_results(), []).text


def test_of_every_task_the_worst_and_the_best_come_first():
    lines = [
        item(f"{task}-{n}", task=task, scores={"clip_dir": n / 10, "l1": n / 10})
        for task in ("add", "style")
        for n in range(4)
    ]
    unknown = item("none", task="add", scores={"clip_dir": None, "l1": None})
    up = [one["key"] for one in choose([unknown, *lines], "clip_dir", 9)]
    assert up[:4] == ["add-0", "style-0", "add-3", "style-3"]
    assert up[-1] == "none"
    down = [one["key"] for one in choose(lines, "l1", 4)]
    assert down == ["add-3", "style-3", "add-0", "style-0"]
    assert [one["key"] for one in choose(lines, None, 3)] == ["add-0", "style-0", "add-1"]


def test_every_edit_is_chosen_once_up_to_the_limit(tmp_path: Path):
    lines = [item(f"test-{n}", scores={"clip_dir": n / 500}) for n in range(MOST_ITEMS + 7)]
    assert {one["key"] for one in choose(lines, "clip_dir", 10**6)} == {i["key"] for i in lines}
    page = page_of(tmp_path, emu_results(), lines)
    assert len(page.all("article")) == MOST_ITEMS
    assert f"{MOST_ITEMS} of 207 edits, the worst and the best by CLIPdir first" in page.text


def world_row(name: str, success: float, outside: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "count": 2,
        "clean": success / 2,
        "clean_low": 0.1,
        "clean_high": 0.9,
        "success": success,
        "success_low": 0.0,
        "success_high": 1.0,
        "l1": 0.1,
        "inside_l1": 0.2,
        "copy_l1": 0.3,
        "outside_l1": outside,
        "relative_error": 0.66,
    }


def test_the_world_benchmark_has_a_page_too(tmp_path: Path):
    summary = {
        "tasks": [world_row("add", 0.5, 0.01), world_row("style", 1.0, None)],
        "families": [world_row("region", 0.5, 0.01), world_row("free_form", 1.0, None)],
        "overall": world_row("overall", 0.75, 0.01),
    }
    results = {
        "model": "runs/tiny/model",
        "benchmark": "world",
        "split": "heldout",
        "seconds": 300.0,
        "report": {"model": summary, "copy-input": summary, "oracle": summary},
    }
    folder = folder_with(tmp_path, results)
    save_png(folder / "grid.png", noise(0, 32))
    page = page_of(folder)
    assert "75 %" in page.text
    assert "38 %" in page.text  # clean, before success
    assert "10 % to 90 %" in page.text
    assert "free form" in page.text
    assert "5 min" in page.text
    assert [found["alt"] for found in page.all("img")] == ["some of the edits"]


def test_results_from_before_the_share_clean_still_have_a_page(tmp_path: Path):
    row = {k: v for k, v in world_row("overall", 0.75, 0.01).items() if "clean" not in k}
    summary = {"tasks": [], "families": [], "overall": row}
    report = dict.fromkeys(("model", "copy-input", "oracle"), summary)
    results = {"model": "m", "benchmark": "world", "split": "heldout", "seconds": 1.0}
    page = page_of(folder_with(tmp_path, {**results, "report": report}))
    assert "75 %" in page.text
    assert "clean" not in page.text


def test_a_key_cannot_lead_out_of_the_folder(tmp_path: Path):
    (tmp_path / "images").mkdir()
    save_png(tmp_path / "secret.png", noise(0))
    page = page_of(folder_with(tmp_path, emu_results(), [item("../secret")]))
    assert page.all("img") == []


def test_a_line_separator_in_an_instruction_does_not_end_its_line(tmp_path: Path):
    folder = folder_with(tmp_path, emu_results(), [item("a", instruction="one\u2028two\x85three")])
    assert [one["instruction"] for one in read_items(folder)] == ["one\u2028two\x85three"]


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path):
    with pytest.raises(InputError, match=r"has no results.json; give the folder that `evaluate`"):
        write_page(tmp_path)
    (tmp_path / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"results.json is not JSON"):
        write_page(tmp_path)
    (tmp_path / "results.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="holds a list, needs an object"):
        write_page(tmp_path)
    folder = folder_with(tmp_path, emu_results(), [item("a")])
    with (folder / "items.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"key": "b"')
    with pytest.raises(InputError, match=r"items.jsonl:2 is not JSON"):
        write_page(folder)
    (folder / "items.jsonl").write_text("3\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"items.jsonl:1 is no object"):
        write_page(folder)
    assert not (folder / "index.html").exists()
