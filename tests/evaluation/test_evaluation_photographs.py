"""`evaluate FOLDER --benchmark`: pictures someone else made, scored by a protocol."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPModel, ViTModel

from emu_edit.metrics.protocols import CLIP_B32, DINO_S16, EMU_METRICS, PROTOCOLS
from tests.datamodules.benchmark_files import EMU_KEYS, EMU_ROWS, SESSIONS, picture
from tests.evaluation.benchmark_runs import evaluate, refused

pytestmark = pytest.mark.usefixtures("quick_intervals")

MEAN = {"clip": (0.48145466, 0.4578275, 0.40821073), "dino": (0.485, 0.456, 0.406)}
STD = {"clip": (0.26862954, 0.26130258, 0.27577711), "dino": (0.229, 0.224, 0.225)}


def by_hand(kind: str, image: Image.Image) -> np.ndarray:
    """Resize, crop and normalise with Pillow and numpy alone."""
    short = {"clip": 224, "dino": 256}[kind]
    width, height = image.size
    scale = short / min(width, height)
    image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    left, top = (round((side - 224) / 2) for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), dtype=np.float64) / 255
    return ((pixels - MEAN[kind]) / STD[kind]).transpose(2, 0, 1)


class ByHand:
    """The features, asked of transformers' whole models, in float64."""

    def __init__(self, backbones: Path) -> None:
        folder = backbones / CLIP_B32.replace("/", "--")
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.clip_model = CLIPModel.from_pretrained(folder).eval().double()
        dino = ViTModel.from_pretrained(
            backbones / DINO_S16.replace("/", "--"), add_pooling_layer=False
        )
        self.dino_model = dino.eval().double()

    @torch.no_grad()
    def clip(self, image: Image.Image) -> np.ndarray:
        pixels = torch.from_numpy(by_hand("clip", image))[None]
        tokens = self.tokenizer("a", return_tensors="pt")
        return self.clip_model(pixel_values=pixels, **tokens).image_embeds[0].numpy()

    @torch.no_grad()
    def text(self, text: str) -> np.ndarray:
        tokens = self.tokenizer(text, return_tensors="pt")
        pixels = torch.zeros(1, 3, 224, 224, dtype=torch.float64)
        return self.clip_model(pixel_values=pixels, **tokens).text_embeds[0].numpy()

    @torch.no_grad()
    def dino(self, image: Image.Image) -> np.ndarray:
        pixels = torch.from_numpy(by_hand("dino", image))[None]
        return self.dino_model(pixels).last_hidden_state[0, 0].numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def distance(a: Image.Image, b: Image.Image, power: int) -> float:
    difference = np.asarray(a.resize(b.size), dtype=np.float64) - np.asarray(b)
    return float((np.abs(difference / 255) ** power).mean())


def test_the_five_emu_metrics_agree_with_a_second_computation(
    emu: Path, made: Path, backbones: Path
) -> None:
    run = evaluate(made, emu, backbones, "--protocol", "emu-b32")
    network = ByHand(backbones)
    for index, (_, _, _, _, before, after) in enumerate(EMU_ROWS[:4]):
        source, edited = picture(index), picture(50 + index)
        f_source, f_edited = network.clip(source), network.clip(edited)
        wanted = {
            "clip_im": cosine(f_source, f_edited),
            "clip_out": cosine(f_edited, network.text(after)),
            "l1": distance(edited, source, 1),
            "dino": cosine(network.dino(source), network.dino(edited)),
        }
        if before != after:
            moved = network.text(after) - network.text(before)
            wanted["clip_dir"] = cosine(f_edited - f_source, moved)
        found = {k: v for k, v in run.items[EMU_KEYS[index]]["scores"].items() if v is not None}
        assert found == pytest.approx(wanted, abs=2e-5)
        assert found["l1"] == pytest.approx(wanted["l1"], abs=1e-12)
    assert run.items["test-remove-5"]["scores"]["clip_dir"] is None  # its two captions are equal
    assert "CLIPdir is not defined for 1 edit, whose captions are missing or do not" in run.table
    assert "CLIPout is not defined" not in run.table
    cell = run.results["blocks"]["single edits"]["rows"]["model"]["all"]["clip_dir"]
    assert (cell["n"], cell["undefined"]) == (3, 1)
    scores = [run.items[key]["scores"]["clip_dir"] for key in EMU_KEYS[:3]]
    assert cell["mean"] == pytest.approx(np.mean(scores), abs=1e-12)


def test_the_magicbrush_metrics_agree_with_a_second_computation(
    brush: Path, brushed: Path, backbones: Path
) -> None:
    run = evaluate(brushed, brush, backbones)
    network = ByHand(backbones)
    captions = json.loads((brush / "test/local_descriptions.json").read_text())
    for key, turn in (("1001_1", 1), ("1001_inde_3", 3), ("1001_iter_3", 3), ("2001_iter_2", 2)):
        session = key.partition("_")[0]
        edited = Image.open(brushed / session / f"{key}.png")
        truth = Image.open(brush / f"test/images/{session}/{session}-output{turn}.png")
        text = network.text(captions[session][f"{session}-output{turn}.png"])
        assert run.items[key]["scores"] == pytest.approx(
            {
                "l1": distance(edited, truth, 1),
                "l2": distance(edited, truth, 2),
                "clip_i": cosine(network.clip(edited), network.clip(truth)),
                "dino": cosine(network.dino(edited), network.dino(truth)),
                "clip_t": cosine(network.clip(edited), text),
            },
            abs=2e-5,
        )


def test_all_turns_and_final_turns_are_averages_over_their_pictures(
    brush: Path, brushed: Path, backbones: Path
) -> None:
    run = evaluate(brushed, brush, backbones)
    blocks = run.results["blocks"]
    assert {name: block["items"] for name, block in blocks.items()} == {
        "all turns": 6,
        "final turns": 3,
    }
    for name, keys in {
        "all turns": ("1001_1", "1001_inde_2", "1001_inde_3", "1002_1", "2001_1", "2001_inde_2"),
        "final turns": ("1001_iter_3", "1002_1", "2001_iter_2"),
    }.items():
        l1 = [run.items[key]["scores"]["l1"] for key in keys]
        assert run.mean("model", "l1", name) == pytest.approx(np.mean(l1), abs=1e-12)
    assert run.items["1002_1"]["block"] == ["all turns", "final turns"]
    assert "1001_iter_2" not in run.items  # a turn in between is in no table
    turns = blocks["all turns"]["rows"]["model"]["by_turn"]
    assert {turn: row["l1"]["n"] for turn, row in turns.items()} == {"1": 3, "2": 2, "3": 1}


def test_copy_input_and_oracle_score_what_their_definitions_say(
    emu: Path, made: Path, brush: Path, brushed: Path, backbones: Path, tmp_path: Path
) -> None:
    run = evaluate(made, emu, backbones)
    row = {name: run.mean("copy-input", name) for name in EMU_METRICS}
    assert row.pop("clip_out") != 0
    assert row == pytest.approx({"clip_dir": 0, "clip_im": 1, "l1": 0, "dino": 1}, abs=1e-12)
    assert set(run.results["blocks"]["single edits"]["rows"]) == {"model", "copy-input"}
    (tmp_path / "out").rename(tmp_path / "emu-out")
    run = evaluate(brushed, brush, backbones)
    for block in ("all turns", "final turns"):
        oracle = {name: run.mean("oracle", name, block) for name in ("l1", "l2", "clip_i", "dino")}
        assert oracle == pytest.approx({"l1": 0, "l2": 0, "clip_i": 1, "dino": 1}, abs=1e-12)
    # copying through a session leaves its first picture
    copies = [
        distance(
            Image.open(brush / f"test/images/{session}/{session}-input.png"),
            Image.open(brush / f"test/images/{session}/{session}-output{len(turns)}.png"),
            1,
        )
        for session, turns in SESSIONS.items()
    ]
    assert run.mean("copy-input", "l1", "final turns") == pytest.approx(np.mean(copies), abs=1e-12)


def test_copied_pictures_score_like_the_row_copy_input(
    emu: Path, made: Path, backbones: Path
) -> None:
    for index, key in enumerate(EMU_KEYS[:4]):
        picture(index).save(made / f"{key}.png", compress_level=1)
    rows = evaluate(made, emu, backbones).results["blocks"]["single edits"]["rows"]
    assert rows["model"] == rows["copy-input"]


def test_everything_the_numbers_depend_on_is_written_down(
    emu: Path, made: Path, backbones: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = evaluate(made, emu, backbones).results
    assert results["protocol"]["clip_preprocess"]["filter"] == "bicubic"
    assert results["protocol"]["caption_filter"] == "none"
    assert set(results["backbones"]) == {"openai/clip-vit-large-patch14", "facebook/dino-vits16"}
    data = results["data"]
    assert (data["name"], data["split"], data["items"], data["of"]) == ("emu", "test", 4, 4)
    assert [line.split()[0] for line in results["inputs"]] == [
        "test-add-0",
        "test-global-0",
        "test-add-2",
        "test-remove-5",
    ]
    hashes = {len(part) for line in results["inputs"] for part in line.split()[1:2]}
    assert hashes == {64}
    assert results["model"]["kind"] == "pictures"
    assert results["device"] == "cpu"
    assert str(made.parent) not in json.dumps(results)
    told = capsys.readouterr().out
    assert "| copy-input | 4 " in told
    assert f"wrote {made.parent / 'out'} in " in told
    page = (made.parent / "out" / "index.html").read_text()
    assert "add a hat to the cat" in page


def test_a_changed_caption_or_picture_changes_the_hash_of_the_data(
    emu: Path, made: Path, backbones: Path
) -> None:
    first = evaluate(made, emu, backbones).results["data"]["sha256"]
    assert evaluate(made, emu, backbones).results["data"]["sha256"] == first
    text = (emu / "metadata.jsonl").read_text()
    (emu / "metadata.jsonl").write_text(text.replace("a cat on grass", "a cat on the grass"))
    second = evaluate(made, emu, backbones).results["data"]["sha256"]
    picture(99).save(emu / "1.png")
    assert len({first, second, evaluate(made, emu, backbones).results["data"]["sha256"]}) == 3


def test_wrong_captions_are_left_out_by_the_filtered_protocol_in_every_row(
    emu: Path, made: Path, backbones: Path
) -> None:
    run = evaluate(made, emu, backbones, "--protocol", "emu-l14-filtered")
    assert run.results["filtered"] == ["test-add-2", "test-remove-5"]
    assert set(run.items) == {"test-add-0", "test-global-0"}
    for row in run.results["blocks"]["single edits"]["rows"].values():
        assert {cell["n"] for cell in row["all"].values()} == {2}
    assert "2 edits left out: wrong captions" in run.table
    assert (run.results["data"]["items"], run.results["data"]["of"]) == (2, 2)


def test_the_emu_metrics_on_magicbrush_are_about_single_turns_and_global_captions(
    brush: Path, brushed: Path, backbones: Path
) -> None:
    run = evaluate(brushed, brush, backbones, "--protocol", "emu-b32")
    assert list(run.results["blocks"]) == ["all turns"]
    assert run.items["1001_1"]["source_caption"] == "a city in the day"
    assert set(run.results["blocks"]["all turns"]["rows"]) == {"model", "copy-input", "oracle"}


def test_a_limit_is_told_and_never_comparable(brush: Path, brushed: Path, backbones: Path) -> None:
    run = evaluate(brushed, brush, backbones, "--limit", "1")
    assert set(run.items) == {"1001_1", "1001_inde_2", "1001_inde_3", "1001_iter_3"}
    assert (run.results["data"]["items"], run.results["data"]["of"]) == (4, 8)
    assert "Only 4 of 8 edits: not comparable" in run.table


def test_results_of_another_size_are_resampled_for_pixels_and_counted(
    emu: Path, made: Path, backbones: Path
) -> None:
    small = picture(50, (12, 16))
    small.save(made / "test-add-0.png")
    run = evaluate(made, emu, backbones)
    assert run.results["resampled"] == {"count": 1, "keys": ["test-add-0"]}
    wanted = distance(small.resize((32, 24), Image.Resampling.BICUBIC), picture(0), 1)
    assert run.items["test-add-0"]["scores"]["l1"] == pytest.approx(wanted, abs=1e-12)
    assert "1 result of another size, resampled (bicubic)" in run.table


def test_a_missing_final_turn_leaves_the_turn_before(
    brush: Path, brushed: Path, backbones: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (brushed / "1001" / "1001_iter_3.png").unlink()
    assert "lacks 1 of 8 pictures (1001_iter_3)" in refused(capsys, brushed, brush, backbones)
    run = evaluate(brushed, brush, backbones, "--allow-missing", status=1)
    before = Image.open(brushed / "1001" / "1001_iter_2.png")
    truth = Image.open(brush / "test/images/1001/1001-output3.png")
    assert run.items["1001_iter_3"]["scores"]["l1"] == pytest.approx(distance(before, truth, 1))
    (brushed / "1001" / "1001_iter_2.png").unlink()  # nobody asks for turns in between
    run = evaluate(brushed, brush, backbones, "--allow-missing", status=1)
    before = Image.open(brushed / "1001" / "1001_1.png")
    assert run.items["1001_iter_3"]["scores"]["l1"] == pytest.approx(distance(before, truth, 1))
    assert [one["key"] for one in run.results["failed"]] == ["1001_iter_3"]


def test_published_rows_are_printed_below_their_protocol(
    emu: Path, made: Path, backbones: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = evaluate(made, emu, backbones, "--compare", "published")
    told = capsys.readouterr().out
    assert "not comparable" in told
    assert "InstructPix2Pix" in run.table
    assert told.index("| copy-input") < told.index("InstructPix2Pix")


def test_captions_that_the_protocol_mends_and_nothing_here_can_are_counted(
    brush: Path, brushed: Path, backbones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = brush / "test" / "local_descriptions.json"
    path.write_text(path.read_text().replace("the cat", "the caf\u00c3\u00a9 cat"))
    monkeypatch.setattr("emu_edit.metrics.backbone_texts.fix_text", None)
    run = evaluate(brushed, brush, backbones)
    assert run.results["protocol"]["captions_read"] == "mended"
    assert run.results["unmended_captions"] == 1
    assert "1 caption with other letters than ASCII read as written: ftfy, with which" in run.table
    monkeypatch.setattr("emu_edit.metrics.backbone_texts.fix_text", lambda text: text)
    assert "ftfy" not in evaluate(brushed, brush, backbones).table
    others = [protocol for name, protocol in PROTOCOLS.items() if name != "magicbrush"]
    assert {protocol.captions_read for protocol in others} == {"as written"}


def test_every_protocol_pins_everything() -> None:
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert all(getattr(protocol, field) for field in protocol.__dataclass_fields__)
