"""From a model's name to its decoder and tokenizer."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from adadecode.errors import UsageError, is_rust_panic
from adadecode.files import short_hash
from adadecode.model.checkpoint import check_folder, few, lacking, layers_too_many, wrong_shapes
from adadecode.model.config_file import TOKENIZER_FILES, check_config, check_tokenizer, ends_of, read_config
from adadecode.model.decoder import DecoderModel
from adadecode.model.families import FAMILIES, attention_of, check_one_device, check_supported, context_len
from adadecode.model.files import ModelFiles, find_model, reason
from adadecode.model.gguf import check_gguf
from adadecode.model.memory import SMALLER_MODEL, is_out_of_memory, out_of_memory_named
from adadecode.model.placement import check_device, devices_of, place
from adadecode.model.weight_files import fetch_weights
from adadecode.settings import Kernels, ModelSettings

log = logging.getLogger(__name__)

NO_CODE = {"trust_remote_code": False}  # None would ask on stdin
UNPACKED = {"quantization_config": GgufConfig(dequantize=True)}  # else a package for packed products would be used
Loaded = tuple[DecoderModel, PreTrainedTokenizerBase]
LoadModel = Callable[[ModelSettings, str], Loaded]  # what `load_model` is: settings, and the flag that errors name


@out_of_memory_named(SMALLER_MODEL)
def load_model(settings: ModelSettings, flag: str = "--model") -> Loaded:
    """The decoder and tokenizer that `settings` name, `flag` in errors; raises UsageError or UnsupportedModelError.

    What is odd about the model but no reason to refuse it is logged, and among the decoder's `notes`. Memory that runs
    out is an AdaDecodeError.
    """
    transformers_logging.disable_progress_bar()
    check_device(settings)
    files = find_model(settings.model, settings.revision, flag)
    raw, config = _read_config(files, settings.kernels)
    devices = devices_of(settings, config.num_hidden_layers)
    check_one_device(config, settings.kernels, len(devices))
    tokenizer = _read_tokenizer(files, config)
    with _explained(files, "what ends a sequence cannot be read"):
        ends = ends_of(files, raw, config.vocab_size)
    config.eos_token_id = ends.token_ids or None
    lm, unused = _read_weights(files, config, getattr(torch, settings.dtype))
    notes = [*ends.notes]
    if unused:
        where = "in the checkpoint and in no layer that config.json describes"
        notes.append(f"{where}: {few(unused)}; its outputs may be another model's")
    if (most := context_len(config)) < config.max_position_embeddings:
        notes.append(
            f"its context is {most} positions, longrope's short range: beyond it every cached key would change"
        )
    for note in notes:
        log.warning("%s %r: %s", files.flag, files.name, note)
    stages = place(lm, devices)
    return DecoderModel(lm, settings.kernels, tuple(notes), stages), tokenizer


def use_threads(threads: int | None) -> None:
    """Has torch compute with `threads` CPU threads in the calling thread; None leaves it as it is."""
    if threads is not None:
        torch.set_num_threads(threads)


def load_tokenizer(
    model: str, revision: str | None = None, flag: str = "--model", kernels: Kernels = "auto"
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The configuration and tokenizer of a model that `load_model` takes for `kernels`, `flag` in errors; no weights."""
    files = find_model(model, revision, flag)
    _, config = _read_config(files, kernels)
    return config, _read_tokenizer(files, config)


def chat_template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A 16-digit hash of the tokenizer's chat template, None when it has none."""
    template = tokenizer.chat_template
    return None if template is None else short_hash(json.dumps(template))


def _read_config(files: ModelFiles, kernels: Kernels = "auto") -> tuple[dict[str, Any], Any]:
    """The content of config.json and transformers' configuration made of it; raises UsageError when it is refused.

    A GGUF file has the latter only.
    """
    with _explained(files, "its configuration is not understood"):
        if files.gguf is None:
            raw = read_config(files)
            config = AutoConfig.from_pretrained(files.source, **files.where, **NO_CODE)
        else:
            with files.refused():
                check_gguf(Path(files.source) / files.gguf)
            config = AutoConfig.from_pretrained(files.source, **files.where, **NO_CODE)
            raw = config.to_dict()
            check_config(files, raw)
    check_supported(config, kernels)
    return raw, config


def _read_tokenizer(files: ModelFiles, config: Any) -> PreTrainedTokenizerBase:
    with _explained(files, "its tokenizer is not understood; was it saved by another version?", TOKENIZER_FILES):
        check_tokenizer(files)
        tokenizer = AutoTokenizer.from_pretrained(files.source, config=config, **files.where, **NO_CODE)
        template = tokenizer.chat_template
        if not (template is None or isinstance(template, str | dict)):
            raise files.refusal(f"its chat_template is a {type(template).__name__}, not text")
    return tokenizer


def _read_weights(files: ModelFiles, config: Any, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """The causal LM with its weights, and the names of tensors that have no place in it.

    Raises UsageError when tensors are missing, of other shapes, of more layers, quantised, or damaged.
    """
    with _explained(files, "its weights cannot be fetched"):
        fetch_weights(files)
    # a bar, which nothing else hides, goes to stderr while a GGUF file is unpacked
    unpacking = contextlib.nullcontext() if files.gguf is None else contextlib.redirect_stderr(io.StringIO())
    with _explained(files, "its weights cannot be loaded"), unpacking:
        if files.folder is not None:
            check_local(files, config)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            files.source,
            config=config,
            **files.where,
            **({} if files.gguf is None else UNPACKED),
            dtype=dtype,
            generation_config=GenerationConfig(eos_token_id=config.eos_token_id),
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
            use_safetensors=None if files.gguf else True,  # a pickle may hold code
            **NO_CODE,
            **attention_of(config),
        )
        lm, found = loaded
        unused = sorted(found["unexpected_keys"])
        for why in (
            *layers_too_many(unused, config.num_hidden_layers),
            *wrong_shapes(iter(sorted(found["mismatched_keys"]))),
            *lacking(iter(found["missing_keys"])),
        ):
            raise files.refusal(why)
    return lm, unused


def check_local(files: ModelFiles, config: Any) -> None:
    """Raises UsageError when the checkpoint in the model's folder is not what `config` describes; reads no weights."""
    assert files.folder is not None, files
    with torch.device("meta"):
        lm: Any = AutoModelForCausalLM.from_config(config, **NO_CODE, **attention_of(config))
    expected: dict[str, tuple[int, ...]] | None = None  # another family's files may have names that loading changes
    if config.model_type in FAMILIES:
        saved_as = FAMILIES[config.model_type].saved_as
        expected = {saved_as.get(name, name): tuple(parameter.shape) for name, parameter in lm.named_parameters()}
    with files.refused():
        check_folder(files.folder, expected, config.num_hidden_layers)


@contextlib.contextmanager
def _explained(files: ModelFiles, what: str, read: tuple[str, ...] = ()) -> Generator[None]:
    """Makes a UsageError that begins with `what` of whatever transformers and what is under it raise, and quiets them.

    They meet a user's files and raise errors of every family, in words that do not always name the file: one of the JSON
    files `read` that is damaged is named instead. What this program itself finds wrong is a UsageError before.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UsageError:
        raise
    except BaseException as error:
        if is_out_of_memory(error) or not (isinstance(error, Exception) or is_rust_panic(error)):
            raise
        log.debug("%s: %s", files.source, what, exc_info=True)
        damaged = next(filter(None, map(files.damage, read)), None)
        raise files.refusal(damaged or f"{what} ({reason(error)})") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
