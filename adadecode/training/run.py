"""Training from a configuration: load model and prompts, then train."""

from collections.abc import Callable
from pathlib import Path

import torch

from adadecode.config import TrainConfig
from adadecode.model.decoder import load_model
from adadecode.model.exit_heads import HeadFacts
from adadecode.tasks import expand_task, load_examples
from adadecode.tasks.encode import encode_prompt
from adadecode.training.distill import train_heads


def train_from_config(config: TrainConfig, out: Path, say: Callable[[str], None]) -> HeadFacts:
    """Trains the heads `config` describes into `out`; returns their facts."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    examples = [
        example
        for task in expand_task(config.task)
        for example in load_examples(
            task,
            data_file=Path(config.data_file) if config.data_file else None,
            prompt_field=config.prompt_field,
            offset=config.offset,
            limit=config.limit,
            for_training=True,
        )
    ]
    model, tokenizer = load_model(
        config.model, dtype=config.dtype, device=config.device, revision=config.revision, kernels="eager"
    )
    return train_heads(model, [encode_prompt(tokenizer, example) for example in examples], config, out, say)
