"""What the JSON files of a model say, judged before transformers acts on them: sizes, code, quantisation, ends.

A value of another type or of no sensible size would end in a traceback far from its cause, or in memory for 10**12 tokens.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from transformers import CONFIG_MAPPING

from adadecode.errors import UnsupportedModelError
from adadecode.model.families import FAMILIES, check_decodable
from adadecode.model.files import CONFIG, ModelFiles, damage, is_pointer, shown
from adadecode.model.refusals import partial_rotary

Size = Annotated[int, Field(ge=1, le=2**24)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]

# Keys of config.json that mean another model, or other files, than the families of the engine have.
OTHER_MODELS = {
    "auto_map": "names custom code, which is never run; give a model that transformers itself knows",
    "configuration_files": "points to another configuration; make that one config.json",
    "transformers_weights": "points to other weights; give them the usual names",
    "per_layer_config": "makes layers differ, which is not done by the engine",
    "fusion_config": "changes the layers, which is not done by the engine",
}
QUANTISED_KEYS = ("quantization_config", "compression_config", "quantization")
QUANTISED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
ADAPTER = "adapter_config.json"
TOKENIZER_CONFIG, GENERATION_CONFIG = "tokenizer_config.json", "generation_config.json"
TOKENIZER_FILES = ("tokenizer.json", TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json")
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


class Rotary(BaseModel):
    """The numbers of rotary embeddings, where they are given; other keys are transformers' to judge."""

    model_config = ConfigDict(strict=True, frozen=True)

    rope_type: str | None = None
    rope_theta: Positive | None = None
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    attention_factor: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    original_max_position_embeddings: Size | None = None
    partial_rotary_factor: Annotated[float, Field(gt=0.0, le=1.0)] | None = None


class ConfigFile(BaseModel):
    """What of config.json decides shapes, memory and time, where it is given; else transformers' default holds."""

    model_config = ConfigDict(strict=True, frozen=True)

    model_type: str
    vocab_size: Size = 1
    hidden_size: Annotated[int, Field(ge=1, le=2**18)] = 1
    intermediate_size: Annotated[int, Field(ge=1, le=2**20)] = 1
    num_hidden_layers: Annotated[int, Field(ge=1, le=1024)] = 1
    num_attention_heads: Annotated[int, Field(ge=1, le=4096)] = 1
    num_key_value_heads: Annotated[int, Field(ge=1, le=4096)] | None = None
    head_dim: Annotated[int, Field(ge=1, le=4096)] | None = None
    max_position_embeddings: Annotated[int, Field(ge=1, le=2**22)] = 1
    rms_norm_eps: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: Size | None = None
    layer_types: list[str] | None = None
    rope_theta: Positive | None = None
    rope_parameters: Rotary | None = None
    rope_scaling: Rotary | None = None
    partial_rotary_factor: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    eos_token_id: int | list[int] | None = None

    @model_validator(mode="after")
    def _heads_share_keys_evenly(self) -> Self:
        num_heads, num_kv_heads = self.num_attention_heads, self.num_key_value_heads
        if num_kv_heads is not None and num_heads % num_kv_heads:
            raise ValueError(f"num_attention_heads {num_heads} is no multiple of num_key_value_heads {num_kv_heads}")
        return self


class Ends(NamedTuple):
    """The ids that end a sequence, and notes on what of the files was left out."""

    token_ids: list[int]
    notes: list[str]


def read_config(files: ModelFiles) -> dict[str, Any]:
    """The content of config.json, when a model of its kind can be decoded; raises UsageError when not.

    Also for an adapter in place of a model, for code of its own and for quantised weights.
    """
    with files.refused():
        if files.folder is not None and (files.folder / ADAPTER).exists():
            raise ValueError(f"it is an adapter ({ADAPTER}): merge it into its base model and give that")
        config = files.json(CONFIG)
        if config is None:
            raise ValueError(f"it has no {CONFIG}; give a folder that transformers' save_pretrained wrote")
        for why in _refusals(files, config):
            raise ValueError(why)
    check_config(files, config)
    return config


def check_config(files: ModelFiles, config: dict[str, Any]) -> None:
    """Raises UsageError when the values in `config` are none that a model can be made of and decoded."""
    with files.refused():
        try:
            kind = ConfigFile.model_validate(config).model_type
        except ValidationError as error:
            raise ValueError(_first_error(error)) from error
        if kind in FAMILIES and partial_rotary in FAMILIES[kind].refused:
            why = partial_rotary(SimpleNamespace(**config))
            if why is not None:
                raise ValueError(f"{CONFIG}: {why}")
    if kind not in FAMILIES:
        check_decodable(SimpleNamespace(**config))
        if kind not in CONFIG_MAPPING:
            raise UnsupportedModelError(
                f"model type {kind!r}: its layers are not known to the engine; supported are {', '.join(FAMILIES)}"
            )


def check_tokenizer(files: ModelFiles) -> None:
    """Raises UsageError for a tokenizer that is missing or has code of its own."""
    with files.refused():
        if (files.json(TOKENIZER_CONFIG) or {}).get("auto_map"):
            raise ValueError(f"{TOKENIZER_CONFIG}: auto_map {OTHER_MODELS['auto_map']}")
        if files.folder is not None:
            vocabularies = [path for name in VOCABULARIES if (path := files.folder / name).exists()]
            if not vocabularies:
                raise ValueError("it has no tokenizer, such as tokenizer.json; download it")
            for path in filter(is_pointer, vocabularies):
                raise ValueError(f"{path.name} {damage(path, '')}")


def ends_of(files: ModelFiles, config: dict[str, Any], vocab_size: int) -> Ends:
    """The ids that end a sequence: those of generation_config.json, where there are any, else of config.json."""
    notes: list[str] = []
    try:
        generation = files.json(GENERATION_CONFIG) or {}
    except ValueError as error:
        notes.append(f"{error}; its eos_token_id is lost, that of {CONFIG} holds")
        generation = {}
    for file, value in ((GENERATION_CONFIG, generation.get("eos_token_id")), (CONFIG, config.get("eos_token_id"))):
        given = value if isinstance(value, list) else [] if value is None else [value]
        kept = [token_id for token_id in given if type(token_id) is int and 0 <= token_id < vocab_size]
        if len(kept) < len(given):
            notes.append(f"{file}: of eos_token_id {shown(value)} only token ids from 0 to {vocab_size - 1} are taken")
        if kept:
            return Ends(kept, notes)
    return Ends([], notes)


def _refusals(files: ModelFiles, config: dict[str, Any]) -> Iterator[str]:
    """Why the model is refused, most telling first."""
    quantised = next((quantisation(config[key]) or key for key in QUANTISED_KEYS if config.get(key) is not None), None)
    if quantised is None and files.folder is not None:
        quantised = next((name for name in QUANTISED_FILES if (files.folder / name).exists()), None)
    if quantised is not None:
        yield quantised_reason(quantised)
    yield from (f"{CONFIG}: {key} {why}" for key, why in OTHER_MODELS.items() if config.get(key))


def quantisation(value: object) -> str | None:
    """What a quantisation is called, as far as its configuration says."""
    if not isinstance(value, dict):
        return None
    named = next((value[key] for key in ("quant_method", "quant_algo") if isinstance(value.get(key), str)), None)
    return "bitsandbytes" if named is None and ("load_in_4bit" in value or "load_in_8bit" in value) else named


def quantised_reason(how: str) -> str:
    """Why weights that are quantised by `how` are refused."""
    return f"its weights are quantised ({shown(how)[1:-1]}): give the full-precision checkpoint"


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and part not in ("int", "list[int]"))
    if not field:
        return f"{CONFIG}: {first['msg'].removeprefix('Value error, ')}"
    if first["type"] == "missing":
        return f"{CONFIG}: it has no {field}"
    return f"{CONFIG}: {field} {shown(first['input'])}: {first['msg']}"
