"""The claims: arms that differ as they say, tables of seeds, and a training from end to end."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.claims import __main__ as command
from benchmarks.claims import measures, tables
from benchmarks.claims.arms import ALL, ARMS, EDITS, MAPS, MARKS, UNTOLD, Study, V
from benchmarks.claims.measures import Measured, brightness_error, means
from emu_edit.editing.sheets import GridRow
from emu_edit.editing.threshold import ALPHA, RADIUS, keep_unchanged
from emu_edit.evaluation.world import WorldBenchmark, truth_of, world_pairs
from emu_edit.metrics.world import score
from emu_edit.tasks import SIXTEEN

LEFT_OUT = {"no marks": MARKS, "no maps": MAPS}


def of_rows(name: str, **rows: list[float]) -> dict[str, list[dict[str, float]]]:
    return {row: [{name: value} for value in values] for row, values in rows.items()}


def line_of(study: Study, name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the command by which an arm is trained; nothing is."""
    lines: list[list[str]] = []

    def note(line: list[str], **_: object) -> subprocess.CompletedProcess:
        lines.append(line)
        return subprocess.CompletedProcess(line, 0)

    monkeypatch.setattr(subprocess, "run", note)
    study.train(name, seed)
    return lines[0]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_an_arm_without_vision_tasks_draws_all_others_evenly(name: str) -> None:
    for how in ("same steps", "same samples a task"):
        weights = ARMS[f"{name}, {how}"].weights
        assert weights == dict.fromkeys(set(SIXTEEN.names) - set(LEFT_OUT[name]), 1.0)
    assert set(ARMS[ALL].weights) == set(SIXTEEN.names)
    assert not set(EDITS) & {*MARKS, *MAPS}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_of_the_two_arms_one_has_the_steps_and_one_the_samples_of_a_task(name: str) -> None:
    everything = ARMS[ALL]
    assert ARMS[f"{name}, same steps"].share == everything.share == 1
    fewer = ARMS[f"{name}, same samples a task"]
    # tasks are drawn evenly: a task's samples are the steps over the number of tasks
    assert fewer.share / len(fewer.weights) == pytest.approx(1 / len(everything.weights))


def test_a_training_is_a_fit_with_its_own_run_seed_and_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(tmp_path, steps=160, flags=("--trainer.precision=32-true",))
    line = line_of(study, "no marks, same samples a task", 2, monkeypatch)
    assert line[line.index("--run") + 1] == "no-marks--same-samples-a-task-160-2"
    assert {"--seed_everything=2", "--model.seed=2", "--data.seed=2"} <= set(line)
    assert {"--data.steps_per_epoch=35", "--trainer.max_epochs=4"} <= set(line)  # 14/16 of 160
    assert "--trainer.precision=32-true" in line
    (weights,) = (word for word in line if word.startswith("--data.weights="))
    assert json.loads(weights.partition("=")[2]).keys().isdisjoint(MARKS)


def test_arms_differ_by_what_they_are_named_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(tmp_path)
    told, untold = (set(line_of(study, name, 0, monkeypatch)) for name in (ALL, UNTOLD))
    assert untold - told == {"--model.dropout.task=1", f"{study.run_of(UNTOLD, 0).name}"}
    with_zero, plain = (
        set(line_of(study, name, 0, monkeypatch)) for name in (V, "v, plain schedule")
    )
    run = study.run_of("v, plain schedule", 0).name
    assert plain - with_zero == {"--model.zero_terminal_snr=false", run}


def test_a_finished_training_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(tmp_path)
    run = study.run_of(ALL, 0)
    run.mkdir()
    (run / "results.json").write_text("{}")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("trained again"))
    assert study.train(ALL, 0) == run


def test_a_mean_over_seeds_has_students_interval() -> None:
    mean, low, high = tables.interval([1.0, 2.0, 3.0])
    # t of two degrees of freedom is 4.3027; standard error 1 / sqrt(3)
    assert mean == pytest.approx(2)
    assert (low, high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)
    assert tables.interval([0.5]) == (0.5, 0.5, 0.5)


def test_a_table_keeps_shares_between_none_and_all_and_shows_what_is_missing() -> None:
    rows = {"a": [{"made": 0.0, "outside": 0.5}, {"made": 0.1, "outside": 0.5}], "b": [{"made": 1}]}
    table = tables.table_of(rows)
    assert "5% (0% to 69%)" in table
    assert "0.5 (0.5 to 0.5)" in table
    assert table.splitlines()[-1].split("|")[3].strip() == "-"


def test_rows_keep_their_order_and_their_seeds() -> None:
    measured: list[Measured] = [("b", 0, {"made": 1.0}), ("a", 0, {"made": 0.0})]
    measured += [("b", 1, {"made": 0.5})]
    rows = tables.by_row(measured)
    assert list(rows) == ["b", "a"]
    assert [numbers["made"] for numbers in rows["b"]] == [1.0, 0.5]


def test_the_conclusion_says_which_share_of_the_gap_the_predictor_closes() -> None:
    rows = of_rows("error/copy", given=[0.4, 0.4], predicted=[0.5, 0.5], none=[0.8, 0.8])
    gap, closed = tables.conclusions(rows)
    assert gap == "error/copy, none less given: 0.400 (0.400 to 0.400)"
    assert closed.endswith("closes: 75%")


def test_no_share_is_told_of_a_gap_that_is_not_there() -> None:
    rows = of_rows("error/copy", given=[0.8], predicted=[0.6], none=[0.5])
    assert [line for line in tables.conclusions(rows) if "closes" in line] == []


def test_the_conclusion_of_thresholds_is_how_many_times_less_is_damaged() -> None:
    rows = of_rows("outside", **{"none": [0.04, 0.02], "alpha 0.03, 5 px": [0.01, 0.01]})
    assert tables.conclusions(rows)[1] == (
        "alpha 0.03, 5 px: 3.0 times less outside (2.0 to 4.0 by seed)"
    )


def test_a_claim_is_written_as_numbers_table_and_plot(tmp_path: Path) -> None:
    measured: list[Measured] = [
        (row, seed, {"made": 0.5, "error/copy": error + seed / 10})
        for row, error in (("given", 0.4), ("predicted", 0.5), ("none", 0.8))
        for seed in range(2)
    ]
    table = tables.write_claim(Study(tmp_path, steps=7), "task-embedding", measured)
    assert "closes: 75%" in table
    assert (tmp_path / "task-embedding.md").read_text() == table
    assert (tmp_path / "task-embedding.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "task-embedding.json").read_text())
    assert written["study"]["steps"] == 7
    assert len(written["rows"]) == 6
    assert str(tmp_path) not in json.dumps(written)


def test_targets_are_perfect_edits_and_copies_are_none() -> None:
    pairs = world_pairs(WorldBenchmark(1), ["local", "sketch"], 32)
    truths = [truth_of(pair) for pair in pairs]

    def edited(name: str) -> list[measures.Edited]:
        pictures = [getattr(truth, name) for truth in truths]
        both = zip(pairs, pictures, truths, strict=True)
        return [(pair, picture, score(picture, truth)) for pair, picture, truth in both]

    right, copied = edited("target"), edited("source")
    assert brightness_error(right) == pytest.approx(0, abs=1e-12)
    assert brightness_error(copied) > 0
    best, floor = means(right), means(copied)
    assert (best["made"], best["clean"], best["error/copy"]) == (1, 1, 0)
    assert (floor["made"], floor["clean"], floor["error/copy"]) == (0, 0, 1)


def test_a_wider_neighbourhood_lets_a_single_pixel_count_less() -> None:
    before = torch.zeros(3, 9, 9, dtype=torch.uint8)
    after = before.clone()
    after[:, 4, 4] = 5  # 15 / 255 = 0.059 at one pixel, a twenty-fifth of it in 5 x 5
    assert torch.equal(keep_unchanged(before, after, alpha=ALPHA, radius=0), after)
    assert torch.equal(keep_unchanged(before, after, alpha=ALPHA, radius=RADIUS), before)
    assert torch.equal(keep_unchanged(before, after), before)


def test_an_unknown_claim_ends_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(["inversion", "-o", str(tmp_path)])
    assert end.value.code == 2
    assert "invalid choice: 'inversion'" in capsys.readouterr().err


@pytest.mark.slow
def test_an_arm_is_trained_read_and_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "ARMS", {ALL: ARMS[ALL]})
    flags = ("--data.pairs=32", "--data.global_batch=2", "--trainer.precision=32-true")
    sizes = ("--steps", "2", "--seeds", "1", "--pairs", "1")
    assert command.main(["vision-tasks", "-o", str(tmp_path), *sizes, *flags]) == 0
    written = json.loads((tmp_path / "vision-tasks.json").read_text())
    assert [row["row"] for row in written["rows"]] == [ALL]
    assert 0 <= written["rows"][0]["made"] <= 1
    assert next(tmp_path.glob("all-tasks-*-0/results.json")).is_file()


def test_the_pictures_beside_the_numbers_begin_with_the_worst_of_the_first_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[GridRow] = []

    def note(rows: list[GridRow], title: str) -> Image.Image:  # noqa: ARG001
        drawn.extend(rows)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(measures, "picture_grid", note)
    pairs = measures.pairs_of(1, EDITS)
    truths = [truth_of(pair) for pair in pairs]
    copies = [(p, t.source, score(t.source, t)) for p, t in zip(pairs, truths, strict=True)]
    right = [(p, t.target, score(t.target, t)) for p, t in zip(pairs, truths, strict=True)]
    measures.worst_grid(Study(tmp_path), "guidance", {"copies": copies, "right": right})
    assert (tmp_path / "guidance-worst.png").is_file()
    assert [row.task for row in drawn] == ["copies", "right"] * measures.SHOWN
    worst = max(copies, key=lambda each: each[2].inside_l1)[0]
    assert {row.instruction for row in drawn[:2]} == {worst.instruction}
    assert torch.equal(drawn[1].edited, drawn[1].target)
