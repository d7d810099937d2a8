import random

import pytest
import torch

from adadecode.recipes.corpus import Document
from adadecode.recipes.pretrain import (
    BATCH_TOKENS,
    BOS,
    EOS,
    PEAK_LR,
    ROW_LENGTHS,
    encode,
    learning_rate,
    make_batches,
    to_tensors,
    train_tokenizer,
)

DOCUMENTS = [
    Document(f"Question: {i} apples and {i * 37} pears?\nAnswer:", f" {i * 38}\n#### {i * 38}") for i in range(99)
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(DOCUMENTS, tmp_path_factory.mktemp("tokenizer"))


def test_every_digit_is_a_token_of_its_own(tokenizer):
    assert tokenizer.tokenize("3774 pears") == ["3", "7", "7", "4", "Ġpears"]


def test_documents_are_encoded_from_bos_to_eos_and_decode_to_themselves(tokenizer):
    for row, document in zip(encode(tokenizer, DOCUMENTS), DOCUMENTS, strict=True):
        assert tokenizer.convert_ids_to_tokens([row[0], row[-1]]) == [BOS, EOS]
        assert tokenizer.decode(row, skip_special_tokens=True) == document.text


def test_prompt_and_continuation_encode_as_the_whole_document_does(tokenizer):
    """What the model is asked at decoding time must be a prefix, token for token, of what it was trained on."""
    for document in DOCUMENTS:
        prompt_ids = tokenizer(document.prompt)["input_ids"]
        assert tokenizer(document.text)["input_ids"][: len(prompt_ids)] == prompt_ids


def test_an_epoch_is_shuffled_batches_of_like_length_within_the_token_limit():
    rows = [[i] * (5 + 11 * i % 700) for i in range(400)]
    batches = make_batches(rows, random.Random(0))
    for batch in batches:
        length = to_tensors(batch)[0].shape[1]
        assert length in ROW_LENGTHS
        assert length * len(batch) <= BATCH_TOKENS
    seen = [row[0] for batch in batches for row in batch]
    assert len(seen) == len(set(seen))
    assert batches == make_batches(rows, random.Random(0)) != make_batches(rows, random.Random(1))


def test_labels_are_the_next_tokens_and_padding_is_ignored():
    inputs, labels = to_tensors([[1, 2, 3], [4, 5, 6, 7]])
    assert inputs.shape == labels.shape == (2, ROW_LENGTHS[0])
    assert inputs[0, :2].tolist() == [1, 2]
    assert labels[0, :3].tolist() == [2, 3, -100]
    assert labels[1, :4].tolist() == [5, 6, 7, -100]
    assert torch.all(labels[:, 3:] == -100)


def test_the_learning_rate_warms_up_stays_and_decays_to_zero():
    assert 0 < learning_rate(0.0, 0) < learning_rate(0.01, 50) < PEAK_LR
    assert learning_rate(0.3, 1000) == PEAK_LR
    assert learning_rate(0.7, 1000) == pytest.approx(PEAK_LR / 2)
    assert learning_rate(1.0, 1000) == 0
