"""Prompts become token ids through the chat template when there is one."""

import subprocess
import sys

import pytest

from adadecode.records import Example, Generation
from adadecode.tasks.encode import decode_output, encode_prompt
from tests.unit.tasks.conftest import TEMPLATE, WORDS

EXAMPLE = Example("0", prompt="add two", chat_prompt="please add two and two")


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def test_without_a_template_the_plain_prompt_is_encoded_with_the_tokenizers_special_tokens(tokenizer):
    assert encode_prompt(tokenizer, EXAMPLE) == ids("<bos> add two")


def test_with_a_template_the_chat_prompt_is_the_users_turn_and_the_model_is_next(tokenizer):
    tokenizer.chat_template = TEMPLATE
    assert encode_prompt(tokenizer, EXAMPLE) == ids("<bos> [user] please add two and two [model]")


@pytest.mark.parametrize(("reason", "text"), [("eos", "add two"), ("length", "add two and")])
def test_the_text_of_an_output_lacks_only_the_token_that_ended_it(tokenizer, reason, text):
    token_ids = tuple(ids("add two and"))
    generation = Generation(token_ids, reason, 0.0, 0.0, (), 0, 0, (), (), (), ())
    assert decode_output(tokenizer, generation) == text


def test_importing_encode_loads_no_transformers():
    code = "import sys, adadecode.tasks.encode; assert 'transformers' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
