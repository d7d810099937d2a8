"""One generation as a person sees it: text coloured by draft depth, and its statistics."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adadecode.records import Generation
from adadecode.report.generation import DEPTH_STYLES, coloured_text, statistics_lines
from tests.folders import word_tokenizer

NUM_LAYERS = 8


def generation(token_ids: list[int], depths: list[int], exits: tuple[int, ...] = (2, 4), **changed: Any) -> Generation:
    """`token_ids` given at `depths`, every draft accepted, in 1 + 4 seconds."""
    accepted = tuple(depths.count(e) for e in exits)
    values: dict[str, Any] = {
        "output_token_ids": tuple(token_ids),
        "finish_reason": "length",
        "ttft_s": 1.0,
        "e2e_s": 5.0,
        "step_gaps_s": (4.0,),
        "num_rounds": len(depths) - 1 - sum(accepted),
        "layers_run": 6 * (len(depths) - 1),
        "exits": exits,
        "drafted_per_exit": accepted,
        "accepted_per_exit": accepted,
        "draft_depths": tuple(depths),
    }
    return Generation(**(values | changed))


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(50)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def spans(text) -> list[tuple[str, str]]:
    return [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]


def test_each_run_of_one_depth_has_that_exits_colour_and_the_full_models_none(tokenizer):
    found = coloured_text(generation([10, 11, 12, 13, 14, 15], [8, 2, 2, 8, 4, 8]), tokenizer, NUM_LAYERS)
    shallow, deeper = DEPTH_STYLES[:2]
    assert spans(found)[:2] == [(" w11 w12", shallow), (" w14", deeper)]
    output, legend = found.plain.split("\n\n")
    assert output == "w10 w11 w12 w13 w14 w15"
    assert legend == "drafted at layer 2 4 or given by all 8"


def test_the_legend_shows_each_exit_in_its_own_colour(tokenizer):
    found = coloured_text(generation([10], [8]), tokenizer, NUM_LAYERS)
    assert [(text.strip(), style) for text, style in spans(found)] == [("2", DEPTH_STYLES[0]), ("4", DEPTH_STYLES[1])]


def test_more_exits_than_colours_begin_again(tokenizer):
    exits = tuple(range(1, len(DEPTH_STYLES) + 2))
    found = coloured_text(generation([10, 11], [8, exits[-1]], exits), tokenizer, NUM_LAYERS)
    assert ("w11", DEPTH_STYLES[0]) in [(text.strip(), style) for text, style in spans(found)]


def test_a_character_whose_bytes_were_given_at_two_depths_is_whole():
    """A byte-level tokenizer: the second and third byte of the euro sign are drafted, then a letter."""
    tokenizer = byte_tokenizer()
    token_ids = tokenizer("a€b€").input_ids
    assert len(token_ids) == 8
    found = coloured_text(generation(token_ids, [8, 8, 2, 2, 4, 8, 8, 2]), tokenizer, NUM_LAYERS)
    assert found.plain.startswith("a€b€\n\n")
    assert spans(found)[:2] == [("€", DEPTH_STYLES[0]), ("b", DEPTH_STYLES[1])]


def test_an_output_cut_within_a_character_ends_as_the_tokenizer_shows_it():
    tokenizer = byte_tokenizer()
    found = coloured_text(generation(tokenizer("a€").input_ids[:-1], [8, 8, 2]), tokenizer, NUM_LAYERS)
    assert found.plain.startswith("a\ufffd\n\n")


def test_text_of_vanilla_is_plain(tokenizer):
    found = coloured_text(generation([10, 11], [8, 8], exits=()), tokenizer, NUM_LAYERS)
    assert spans(found) == []
    assert found.plain == "w10 w11\n\ndrafted at layer or given by all 8"


def test_statistics_say_speed_rounds_and_what_was_drafted_where():
    lines = statistics_lines("adadecode", generation([1, 2, 3, 4, 5], [8, 2, 4, 8, 8], drafted_per_exit=(3, 1)))
    assert lines == [
        "adadecode: 5 tokens in 5.000 s (1.0 tokens/s), TTFT 1000.0 ms, TPOT 1000.00 ms, finish reason length",
        "  2 rounds, 6.00 layers per token, accepted/drafted layer 2: 1/3, layer 4: 1/1",
    ]


def test_statistics_of_a_generation_that_drafted_nothing_show_zeros():
    _, line = statistics_lines("adadecode", generation([1, 2, 3], [8, 8, 8]))
    assert line == "  2 rounds, 6.00 layers per token, accepted/drafted layer 2: 0/0, layer 4: 0/0"


def test_statistics_of_one_token_have_no_tpot_and_no_layers_per_token():
    one = generation([1], [8], e2e_s=1.0, step_gaps_s=(), finish_reason="eos")
    assert statistics_lines("adadecode", one) == [
        "adadecode: 1 tokens in 1.000 s (1.0 tokens/s), TTFT 1000.0 ms, TPOT -, finish reason eos",
        "  0 rounds, - layers per token, accepted/drafted layer 2: 0/0, layer 4: 0/0",
    ]


def test_statistics_of_a_method_without_exits_are_one_line():
    assert len(statistics_lines("vanilla", generation([1, 2], [8, 8], exits=()))) == 1
