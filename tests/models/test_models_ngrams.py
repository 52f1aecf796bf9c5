"""The n-gram encoder: words, pairs and pieces of words, by hand; files that are its own again."""

import json
from pathlib import Path

import pytest
import torch

from emu_edit.errors import InputError
from emu_edit.models.ngrams import NgramText, is_ngram_text, ngrams


def test_the_ngrams_of_a_text_by_hand() -> None:
    assert list(ngrams("No Dogs!")) == [
        *("no", "dogs", "~<do", "~dog", "~ogs", "~gs>", "~<dog", "~dogs", "~ogs>"),
        *("~<dogs", "~dogs>", "!", "< no", "no dogs", "dogs !", "! >"),
    ]
    assert list(ngrams("")) == ["< >"]


def test_the_feature_of_a_text_is_the_mean_of_its_rows() -> None:
    encoder = NgramText(dim=3, rows=50)
    (ids, _), (feature,) = encoder.tokenize(["a b"]), encoder(["a b"]).mean()
    torch.testing.assert_close(feature, encoder.table.weight[ids[0]].mean(dim=0))
    together = encoder(["a b", "a much longer text than the other"]).mean()
    torch.testing.assert_close(together[0], feature)


def test_a_slip_of_the_keyboard_leaves_most_of_a_text() -> None:
    right, slip = (set(ngrams(text)) for text in ("brighten the photograph", "brigthen the photo"))
    assert len(right & slip) / len(right) > 0.3


def test_what_is_written_is_read_again_and_given_as_it_was(tmp_path: Path) -> None:
    encoder = NgramText(dim=4, rows=64)
    encoder.round()
    encoder.write(tmp_path)
    assert is_ngram_text(tmp_path)
    again = NgramText.read(tmp_path)
    assert torch.equal(again.table.weight, encoder.table.weight)
    assert not is_ngram_text(tmp_path / "nowhere")


@pytest.mark.parametrize("change", [{"rows": 65}, {"hidden_size": "4"}, {"rows": None}])
def test_a_config_of_another_table_is_refused(tmp_path: Path, change: dict) -> None:
    NgramText(dim=4, rows=64).write(tmp_path)
    file = tmp_path / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match="they belong to different predictors"):
        NgramText.read(tmp_path)


def test_a_text_beyond_all_limits_is_refused_and_a_table_of_no_size_too() -> None:
    encoder = NgramText(dim=2, rows=8)
    encoder.max_tokens = 5
    with pytest.raises(InputError, match="text of 7 n-grams, the predictor takes at most 5"):
        encoder(["a b", "to be or"])
    with pytest.raises(InputError, match="cannot be built"):
        NgramText(dim=0)
