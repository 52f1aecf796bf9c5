"""`evaluate --drift` from the command line, and the options that change how a model is sampled."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules.world.sessions import make_session
from emu_edit.cli.main import main
from emu_edit.diffusion.guidance import Guidance
from emu_edit.editing.editor import Editor
from emu_edit.editing.threshold import keep_unchanged
from emu_edit.errors import InputError
from emu_edit.evaluation.drift import DriftBenchmark, drift_table, evaluate_drift, truth_of
from emu_edit.evaluation.world import Scenes
from emu_edit.tasks import TaskTable

KINDS = ("without", "with")
FEW = DriftBenchmark(sessions=2, turns=3, scenes=Scenes(size=24))


@pytest.fixture(scope="module")
def editor(model: Path) -> Editor:
    return Editor.from_pretrained(model)


def test_drift_writes_numbers_table_curves_and_pictures(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["evaluate", str(model), "--drift", "--turns", "3", "--sessions", "1"]
    assert main([*arguments, "--size", "24", "-o", str(out)]) == 0
    told = capsys.readouterr().out
    assert "error outside the edits after turn 3: " in told
    assert "success inside, all edits: " in told
    assert f"wrote {out} in " in told
    numbers = json.loads((out / "drift.json").read_text())
    assert (numbers["turns"], numbers["sessions"]) == (3, 1)
    assert numbers["by_session"][0]["key"] == "session-heldout-1-00000000"
    assert set(numbers["summary"]) == {
        "outside_l1_without",
        "outside_l1_with",
        "error_ratio",
        "error_ratio_low",
        "error_ratio_high",
        "success_without",
        "success_with",
    }
    for kind in ("without", "with"):
        assert [point["turn"] for point in numbers["curves"][kind]] == [1, 2, 3]
        assert [point["success"] is None for point in numbers["curves"][kind]] == [
            False,
            True,
            False,
        ]
    table = (out / "drift.md").read_text()
    assert table.startswith(f"# {model}, drift over 3 turns, 1 session\n")
    for name in ("drift.png", "sessions.png"):
        with Image.open(out / name) as picture:
            picture.load()


def test_both_conditions_have_the_same_noise_and_differ_by_the_threshold_alone(
    editor: Editor,
) -> None:
    result = evaluate_drift(editor, FEW)
    for without, kept in zip(
        result.drifts["without"].shown, result.drifts["with"].shown, strict=True
    ):
        assert len(without) == len(kept) == 4
        assert torch.equal(without[0], kept[0])
        assert torch.equal(kept[1], keep_unchanged(without[0], without[1]))
    assert not torch.equal(
        result.drifts["without"].shown[0][1], result.drifts["without"].shown[1][1]
    )


def test_the_ratio_and_the_table_say_what_the_curves_say(editor: Editor) -> None:
    result = evaluate_drift(editor, FEW)
    without, kept = (result.drifts[kind].curve[-1].outside_l1 for kind in ("without", "with"))
    assert result.summary["outside_l1_without"] == without
    assert result.summary["error_ratio"] == pytest.approx(without / kept)
    table = drift_table(result).splitlines()
    assert len({len(line) for line in table[:5]}) == 1  # header, rule and three turns line up
    assert table[4].split("|")[2].strip() == f"{without:.4f}"
    assert f"({without / kept:.1f} times less, 95 % interval over sessions: " in table[-2]
    ends = [result.summary[f"error_ratio_{end}"] for end in ("low", "high")]
    apart = [
        a[-1].outside_l1 / b[-1].outside_l1
        for a, b in zip(*(result.drifts[kind].scores for kind in KINDS), strict=True)
    ]
    assert ends == pytest.approx([min(apart), max(apart)])  # two sessions: the ends are they


def test_faint_errors_of_a_good_editor_vanish_with_threshold_and_its_edits_stay(
    editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = DriftBenchmark(sessions=1, turns=5, scenes=Scenes(size=48))
    session = make_session(benchmark.scenes.seed, 0, turns=5, size=48)
    truths = {turn.instruction: truth_of(turn) for turn in session.turns}
    assert len(truths) == 5

    def edit_latents(
        latents: Tensor, instructions: list[str], _tasks: object, seeds: list[int], **_: object
    ) -> Tensor:
        """Make the edit exactly and disturb every pixel by two levels at most."""
        truth, image = truths[instructions[0]], editor.decode(latents, (48, 48))[0]
        right = torch.where(truth.mask, truth.target, image).int()
        generator = torch.Generator().manual_seed(seeds[0])
        noise = torch.randint(-2, 3, right.shape, generator=generator)
        return editor.encode((right + noise).clamp(0, 255).to(torch.uint8)[None])

    monkeypatch.setattr(editor, "edit_latents", edit_latents)
    result = evaluate_drift(editor, benchmark)
    assert result.summary["outside_l1_without"] > 1.5 / 255  # type: ignore[operator]
    assert result.summary["outside_l1_with"] == 0
    assert [result.summary[f"error_ratio{end}"] for end in ("", "_low", "_high")] == [None] * 3
    assert result.summary["success_without"] == result.summary["success_with"] == 1
    assert [point.kept for point in result.drifts["with"].curve] == [1.0] * 5
    assert "with threshold (no error is left)" in drift_table(result)


def test_every_edit_is_counted(editor: Editor) -> None:
    seen: list[tuple[int, int]] = []
    evaluate_drift(
        editor,
        DriftBenchmark(sessions=2, turns=2, scenes=Scenes(size=24)),
        lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 8) for done in range(1, 9)]


def test_a_model_without_the_tasks_of_the_sessions_is_refused(
    editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tuple(name for name in editor.networks.tasks.names if name not in {"add", "texture"})
    monkeypatch.setattr(editor.networks, "tasks", TaskTable(names))
    with pytest.raises(InputError, match="does not know the task add, texture; drift is measured"):
        evaluate_drift(editor, FEW)


@pytest.mark.parametrize("drift", [True, False])
@pytest.mark.slow
def test_steps_guidance_and_sampler_can_be_overridden_and_are_written_down(
    model: Path, tmp_path: Path, drift: bool
) -> None:
    what = ["--drift", "--turns", "1", "--sessions", "1"] if drift else ["--pairs", "1"]
    options = ["--steps", "2", "--guidance-text", "3", "--guidance-image", "1.25"]
    out = tmp_path / "out"
    arguments = ["evaluate", str(model), *what, *options, "--sampler", "euler_ancestral"]
    assert main([*arguments, "--size", "24", "-o", str(out)]) == 0
    numbers = json.loads((out / ("drift.json" if drift else "results.json")).read_text())
    assert numbers["editor"] == {
        "image_size": 16,
        "guidance_text": 3.0,
        "guidance_image": 1.25,
        "num_steps": 2,
        "sampler": "euler_ancestral",
    }


def test_the_models_own_settings_hold_when_nothing_is_said(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["evaluate", str(model), "--drift", "--turns", "1", "--sessions", "1"]
    assert main([*arguments, "--size", "24", "-o", str(out)]) == 0
    numbers = json.loads((out / "drift.json").read_text())
    assert numbers["editor"] == Editor.from_pretrained(model).settings.to_dict()
    assert (numbers["editor"]["guidance_text"], Guidance().text) == (1.0, 5.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--turns", "3"], "--turns belongs to --drift; add --drift or leave it out"),
        (["--sessions", "3"], "--sessions belongs to --drift; add --drift or leave it out"),
        (["--drift", "--pairs", "3"], "--pairs counts pairs of single edits; with --drift give"),
        (["--drift", "--turns", "0"], "needs a whole number of at least 1, got '0'"),
        (["--sampler", "ddimm"], "unknown sampler 'ddimm'"),
        (["--guidance-text", "nan"], "guidance scales must be finite, got text=nan"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(
    model: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(model), *options]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
