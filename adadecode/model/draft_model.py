"""The smaller model that drafts for another one: found, loaded, and held against that one's tokens."""

from transformers import PreTrainedTokenizerBase

from adadecode.errors import UsageError
from adadecode.model.decoder import DecoderModel
from adadecode.model.load import LoadModel, load_model, load_tokenizer
from adadecode.settings import DecodingSettings

FLAG = "--draft-model"


def load_draft_model(
    config: DecodingSettings, tokenizer: PreTrainedTokenizerBase, load: LoadModel = load_model
) -> DecoderModel | None:
    """The draft model that `config` names, in its dtype and on its device, as `load` gives it; None where it names none.

    Raises UsageError where it cannot be loaded, or where its tokens are not those of `tokenizer`, the model's own.
    """
    name = config.decode.draft_model
    if name is None:
        return None
    named = {"model": name, "revision": config.decode.draft_revision, "gpus_per_worker": 1}  # the first one
    draft, of_draft = load(config.model_copy(update=named), FLAG)
    _check_tokens(config, tokenizer, of_draft)
    return draft


def check_draft_tokens(config: DecodingSettings) -> None:
    """Raises UsageError where the tokens of the draft model that `config` names are not the model's; loads no weights."""
    name = config.decode.draft_model
    if name is not None:
        _, tokenizer = load_tokenizer(config.model, config.revision)
        _, of_draft = load_tokenizer(name, config.decode.draft_revision, FLAG)
        _check_tokens(config, tokenizer, of_draft)


def _check_tokens(
    config: DecodingSettings, tokenizer: PreTrainedTokenizerBase, of_draft: PreTrainedTokenizerBase
) -> None:
    """Raises UsageError where the tokens of `config`'s draft model are not those of `tokenizer`, the model's own."""
    difference = token_difference(tokenizer, of_draft)
    if difference is not None:
        raise UsageError(
            f"{FLAG} {config.decode.draft_model!r}: its tokenizer is not that of --model {config.model!r}: {difference}; "
            "give a smaller model of the same family"
        )


def token_difference(tokenizer: PreTrainedTokenizerBase, of_draft: PreTrainedTokenizerBase) -> str | None:
    """Where the tokens of two tokenizers differ, the first and how many; None where each id has one token in both."""
    ours, theirs = ({idx: token for token, idx in of.get_vocab().items()} for of in (tokenizer, of_draft))
    differing = sorted(idx for idx in ours.keys() | theirs.keys() if ours.get(idx) != theirs.get(idx))
    if not differing:
        return None
    first = differing[0]
    here, there = ("nothing" if token is None else repr(token) for token in (ours.get(first), theirs.get(first)))
    return f"token {first} is {there} there and {here} here, and {len(differing)} of {len(ours)} differ"
