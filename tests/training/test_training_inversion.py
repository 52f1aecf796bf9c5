"""Task inversion: one vector learns, nothing else changes."""

from dataclasses import replace

import pytest
import torch

from emu_edit.batch import EditBatch
from emu_edit.editing.editor import Editor
from emu_edit.errors import InputError
from emu_edit.models.fingerprints import model_hash
from emu_edit.training import inversion as inversion_file
from emu_edit.training.draws import Phase
from emu_edit.training.few_shot import batch_at, check_batches, names_of, split, views
from emu_edit.training.inversion import InversionSettings, Learner, invert, optimizer_settings
from emu_edit.training.new_task import NewTask, beginning, frozen
from emu_edit.training.objective import Objective
from emu_edit.training.optim import adamw, copy_of
from tests.training.few_shot import QUICK, edits, make_base, make_contrast_base, make_pairs
from tests.training.stage import TASKS, make_batch, make_module


def make_task(editor: Editor) -> NewTask:
    return NewTask(editor, Objective.of_editor(editor))


def test_the_vector_of_a_new_task_is_found() -> None:
    settings = InversionSettings(steps=80, batch_size=4, check_every=20, lr=0.3, init="mean")
    inverted = invert(make_contrast_base(), make_pairs(8), settings)
    torch.testing.assert_close(inverted.vector[:2], torch.tensor([-2.0, 0.0]), atol=0.02, rtol=0)
    first, last = inverted.history[0], inverted.history[-1]
    assert last.train < 1e-3 < first.train
    assert first.held_out is not None
    assert last.held_out is not None
    assert last.held_out < 1e-3 < first.held_out


def test_every_beginning_that_is_found_can_be_named() -> None:
    editor = make_base()
    with frozen(editor.networks):
        task = make_task(editor)
        zero = beginning(task, "none", [])
    assert zero.name == "none"
    assert torch.equal(zero.vector, torch.zeros(editor.networks.task_embedding.dim))
    inverted = invert(editor, make_pairs(2), replace(QUICK, init="none"))
    assert inverted.began_at == "none"


def test_the_base_edits_bit_by_bit_as_before() -> None:
    editor = make_base()
    before, base = edits(editor, TASKS), model_hash(editor.networks)
    state = {name: value.clone() for name, value in editor.networks.state_dict().items()}
    learns = {name: p.requires_grad for name, p in editor.networks.named_parameters()}
    invert(editor, make_pairs(3), QUICK)
    assert torch.equal(edits(editor, TASKS), before)
    assert model_hash(editor.networks) == base
    after = editor.networks.state_dict()
    assert state.keys() == after.keys()
    for name, value in state.items():
        assert torch.equal(after[name], value), name
        assert after[name].stride() == value.stride(), name
    assert {name: p.requires_grad for name, p in editor.networks.named_parameters()} == learns
    assert all(p.grad is None for p in editor.networks.parameters())


def test_a_step_computes_the_gradient_of_the_vector_and_of_no_weight() -> None:
    editor = make_base()
    task = make_task(editor)
    batch = batch_at(views(make_pairs(2)), 0, 2, seed=0)
    with frozen(editor.networks):
        loss = task.step(task.drawn(batch, seed=0, phase=Phase.train))["loss"]
        leaves = set()
        seen, queue = set(), [loss.grad_fn]
        while queue:
            node = queue.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)  # of autograd's AccumulateGrad
            if leaf is not None:
                leaves.add(leaf)
            queue += [entry for entry, _ in node.next_functions]
        assert leaves == {task.vector}
        loss.backward()
    assert task.vector.grad is not None
    assert task.vector.grad.abs().sum() > 0


def test_only_the_vector_is_in_optimizer_and_average() -> None:
    editor = make_contrast_base()
    task = Learner(editor, seed=0).task
    (group,) = adamw(task, optimizer_settings(0.3)).param_groups
    assert group["params"] == [task.vector]
    assert group["weight_decay"] == 0
    assert list(copy_of(task)) == ["vector"]
    assert [name for name, _ in task.named_parameters()] == ["vector"]


def test_the_error_is_that_of_the_training_module() -> None:
    module = make_module()
    module.objective = Objective(timestep_shift=3.0, balance=0.5, huber_c=0.2)
    batch = make_batch([1])
    drawn = module.drawn(batch, Phase.train)
    expected = module.step(drawn, dropout=None)
    task = NewTask(module.make_editor(), module.objective)
    task.begin(module.networks.task_vectors([TASKS[int(batch.task[0])]])[0])
    found = task.step(task.drawn(batch, seed=module.seed, phase=Phase.train))
    for name in ("loss", "error", "t"):
        torch.testing.assert_close(found[name], expected[name])


def test_frozen_features_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    editor = make_contrast_base()
    encoded = []
    posterior = editor.networks.codec.posterior

    def counting(images):
        encoded.append(len(images))
        return posterior(images)

    monkeypatch.setattr(editor.networks.codec, "posterior", counting)
    invert(editor, make_pairs(6), replace(QUICK, flip=True, steps=20))
    # PatchCodec encodes a source by its posterior, too; of six pairs, one is held out
    assert sum(encoded) == 2 * (2 * 5 + 1)


def test_texts_of_different_length_may_meet_in_a_batch() -> None:
    editor = make_base()
    pairs = make_pairs(2)
    pairs[1] = replace(pairs[1], instruction="invert it " * 4)
    task = make_task(editor)
    samples = views(pairs)
    alone = [
        task.drawn(batch_at([sample], i, 1, seed=0), seed=0, phase=Phase.train)
        for i, sample in enumerate(samples)
    ]
    together = task.drawn(
        EditBatch.collate([replace(sample, position=i) for i, sample in enumerate(samples)]),
        seed=0,
        phase=Phase.train,
    )
    vector = editor.networks.task_embedding.table[0].detach()
    with torch.no_grad():
        apart = torch.cat([task.errors(batch, vector)[0] for batch in alone])
        torch.testing.assert_close(task.errors(together, vector)[0], apart)


def test_the_same_seed_gives_the_same_vector_and_another_seed_another() -> None:
    vectors = [
        invert(make_contrast_base(), make_pairs(3), replace(QUICK, seed=seed)).vector
        for seed in (1, 1, 2)
    ]
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])


def test_learning_ends_when_held_out_pairs_get_no_better() -> None:
    pairs = make_pairs(5)
    (held_out,) = split(pairs, 0.2, seed=0)[1]
    # all others teach the opposite of what is held out
    pairs = [p if p is held_out else replace(p, target=p.source) for p in pairs]
    settings = InversionSettings(steps=60, check_every=4, patience=2, init="add", lr=0.1)
    calls = []
    inverted = invert(make_contrast_base(), pairs, settings, lambda *call: calls.append(call))
    errors = {check.step: check.held_out for check in inverted.history}
    assert inverted.stopped_early
    assert inverted.history[-1].step == inverted.best_step + 8 < 60
    assert errors[inverted.best_step] == min(error for error in errors.values() if error)
    assert inverted.held_out == (held_out.name,)
    last = inverted.history[-1].step
    assert calls[-1] == (last, last)


def test_without_held_out_pairs_the_last_vector_is_kept() -> None:
    inverted = invert(make_contrast_base(), make_pairs(4), QUICK)
    assert inverted.held_out == ()
    assert not inverted.stopped_early
    assert inverted.best_step == QUICK.steps
    assert [check.step for check in inverted.history] == [0, 2, 4, 6]
    assert all(check.held_out is None for check in inverted.history)


@pytest.mark.parametrize(("ema", "moves"), [(0.0, True), (0.999, False)])
def test_the_average_is_what_is_kept(ema: float, moves: bool) -> None:
    editor = make_contrast_base()
    learner, samples = Learner(editor, seed=0), views(make_pairs(2))
    learner.set_checks(samples, [])
    with frozen(editor.networks):
        learner.begin("mean")
        kept = inversion_file._learn(learner, samples, replace(QUICK, ema=ema), None)
    assert torch.equal(kept, learner.task.vector) == moves
    inverted = invert(make_contrast_base(), make_pairs(2), replace(QUICK, ema=ema))
    assert torch.equal(inverted.vector, kept)


def test_one_pair_is_enough() -> None:
    inverted = invert(make_contrast_base(), make_pairs(1), QUICK)
    assert inverted.trained_on == ("pair-0",)
    assert inverted.vector.isfinite().all()


def test_views_of_one_pair_are_on_one_side_of_the_split() -> None:
    pairs = [pair for pair in make_pairs(10) for _ in range(3)]
    train, held_out = split(pairs, 0.2, seed=0)
    assert len(names_of(held_out)) == 2
    assert len(train) == 24
    assert not set(names_of(train)) & set(names_of(held_out))
    assert len({view.key for view in views(train)}) == 24
    assert split(pairs, 0.0, seed=0)[1] == []
    assert names_of(split(pairs, 0.2, seed=3)[1]) != names_of(held_out)


@pytest.mark.parametrize(("count", "held_out"), [(4, 0), (5, 1), (7, 1), (10, 2), (100, 20)])
def test_a_share_is_held_out_from_five_pairs_on(count: int, held_out: int) -> None:
    assert len(split(make_pairs(count), 0.2, seed=0)[1]) == held_out


def test_mirrored_views_mirror_both_sides() -> None:
    pairs = make_pairs(2)
    assert len(views(pairs)) == 2
    mirrored = views(pairs, flip=True)[2:]
    for pair, view in zip(pairs, mirrored, strict=True):
        assert view.source is not None
        assert torch.equal(view.source, pair.source.flip(-1))
        assert torch.equal(view.target, pair.target.flip(-1))


def test_mirrored_views_are_learnt_from_if_asked() -> None:
    plain, mirrored = (
        invert(make_base(), make_pairs(2), replace(QUICK, flip=flip)).vector
        for flip in (False, True)
    )
    assert not torch.equal(plain, mirrored)


def test_every_sample_comes_once_before_any_comes_again() -> None:
    samples = views(make_pairs(5))
    keys = [key for step in range(5) for key in batch_at(samples, step, 3, seed=0).key]
    for epoch in range(3):
        assert len(set(keys[5 * epoch : 5 * epoch + 5])) == 5
    positions = torch.cat([batch_at(samples, step, 3, seed=0).position for step in range(5)])
    assert positions.tolist() == list(range(15))


@pytest.mark.parametrize("count", [1, 24, 100])
def test_a_check_costs_the_same_for_any_number_of_pairs(count: int) -> None:
    batches = check_batches(views(make_pairs(count)))
    assert sum(len(batch) for batch in batches) == 24
    assert len({key for batch in batches for key in batch.key}) >= min(count, 20)


def begun(editor: Editor, init: str, instruction: str = "invert it") -> str:
    task = make_task(editor)
    pairs = [replace(pair, instruction=instruction) for pair in make_pairs(2)]
    batches = [
        task.drawn(batch, seed=0, phase=Phase.validate) for batch in check_batches(views(pairs))
    ]
    found = beginning(task, init, batches)
    if found.name in editor.networks.tasks.names:
        assert torch.equal(found.vector, editor.networks.task_vectors([found.name])[0])
    return found.name


def test_the_best_beginning_has_the_lowest_error() -> None:
    editor = make_contrast_base()
    assert begun(editor, "best") == "add"  # half the contrast: the nearest to inverting
    with torch.no_grad():
        editor.networks.task_embedding.table[1, 0] = 0.5
    assert begun(editor, "best") in {"local", "none"}  # both do nothing
    with torch.no_grad():
        editor.networks.task_embedding.table[0, 1] = -9.0
        editor.networks.task_embedding.table[1] = 0.0
        editor.networks.task_embedding.table[2] = torch.tensor([-6.0, 9.0, *[0.0] * 6])
    assert begun(editor, "best") == "mean"


def test_a_vector_may_begin_at_the_mean_or_at_a_task() -> None:
    editor = make_contrast_base()
    assert begun(editor, "mean") == "mean"
    assert begun(editor, "add") == "add"


def test_the_nearest_task_is_the_one_the_predictor_names() -> None:
    from emu_edit.editing.predictor import TaskPredictor
    from emu_edit.models.tiny import TinyText

    editor = make_contrast_base()
    predictor = TaskPredictor(TinyText(dim=16, num_layers=1, num_heads=2), editor.networks.tasks)
    predictor.head.bias.data[1] = 5.0
    editor.predictor = predictor.eval()
    assert begun(editor, "nearest") == TASKS[1]


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("nearest", "no task predictor to find the nearest task"),
        ("locale", "cannot begin at 'locale'; give one of best, mean, .*Did you mean 'local'"),
    ],
)
def test_an_unknown_beginning_is_refused(init: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        invert(make_contrast_base(), make_pairs(1), replace(QUICK, init=init))


def test_no_pairs_and_pairs_of_two_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="needs at least one pair to learn from, got none"):
        invert(make_contrast_base(), [], QUICK)
    pairs = make_pairs(2)
    pairs[1] = replace(pairs[1], source=pairs[1].source[:, :8], target=pairs[1].target[:, :8])
    with pytest.raises(InputError, match=r"need one size, got \[\(8, 16\), \(16, 16\)\]"):
        invert(make_contrast_base(), pairs, QUICK)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 0, "steps of an inversion must be at least 1"),
        ("patience", 0, "patience of an inversion must be at least 1"),
        ("lr", 0.0, r"lr of an inversion must be above 0, got 0\.0"),
        ("ema", 1.0, r"ema of an inversion must be in \[0, 1\)"),
        ("held_out", -0.1, r"held_out of an inversion must be in \[0, 1\)"),
    ],
)
def test_settings_that_learn_nothing_are_refused(name: str, value: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(QUICK, **{name: value})


def test_an_error_that_is_not_finite_ends_learning() -> None:
    with pytest.raises(InputError, match="not finite at step 2; lower its learning rate"):
        invert(make_contrast_base(), make_pairs(1), replace(QUICK, lr=1e30))


def test_a_frozen_network_lies_in_memory_as_before() -> None:
    """A 1x1 convolution keeps its strides, which decide the kernel and so the last bits."""
    wide = torch.nn.Conv2d(16, 16, 3)
    module = torch.nn.Sequential(torch.nn.Conv2d(32, 16, 1), wide)
    before = [(p.data_ptr(), p.stride()) for p in module.parameters()]
    with frozen(module):
        assert wide.weight.is_contiguous(memory_format=torch.channels_last)
    assert [(p.data_ptr(), p.stride()) for p in module.parameters()] == before
