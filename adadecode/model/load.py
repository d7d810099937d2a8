"""From a model's name to its decoder and tokenizer."""

import json
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from adadecode.demo import resolve_model
from adadecode.errors import UsageError
from adadecode.files import short_hash
from adadecode.model.decoder import DecoderModel
from adadecode.model.families import check_supported
from adadecode.settings import ModelSettings


def load_model(settings: ModelSettings) -> tuple[DecoderModel, PreTrainedTokenizerBase]:
    """The decoder and tokenizer that `settings` name; raises UsageError or UnsupportedModelError."""
    transformers_logging.disable_progress_bar()
    model, revision = settings.model, settings.revision
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device 'cuda': no CUDA device is visible to this process; use --device cpu")
    _, tokenizer = load_tokenizer(model, revision)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            resolve_model(model), revision=revision, dtype=getattr(torch, settings.dtype), output_loading_info=True
        )
        lm, loading = loaded
        if loading["missing_keys"]:  # transformers would go on with random weights
            raise ValueError(f"the checkpoint lacks {', '.join(sorted(loading['missing_keys']))}")
    except (OSError, ValueError, SafetensorError) as error:
        raise _not_loadable(model, error) from error
    return DecoderModel(lm.to(settings.device), settings.kernels), tokenizer


def use_threads(threads: int | None) -> None:
    """Has torch compute with `threads` CPU threads in the calling thread; None leaves it as it is."""
    if threads is not None:
        torch.set_num_threads(threads)


def load_tokenizer(model: str, revision: str | None = None) -> tuple[Any, PreTrainedTokenizerBase]:
    """The configuration and the tokenizer of a model that `load_model` takes, without its weights."""
    source = resolve_model(model)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
        check_supported(config)
        return config, AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise _not_loadable(model, error) from error


def _not_loadable(model: str, error: Exception) -> UsageError:
    reason = " ".join(str(error).split())[:200]
    return UsageError(
        f"--model {model!r} cannot be loaded; give `demo`, a folder with a transformers model, or a hub id ({reason})"
    )


def chat_template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A 16-digit hash of the tokenizer's chat template, None when it has none."""
    template = tokenizer.chat_template
    return None if template is None else short_hash(json.dumps(template))
