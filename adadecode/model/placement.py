"""Where a transformers causal LM is: on one device, or its layers in stages over several."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adadecode.errors import UsageError
from adadecode.kernels.stages import Stage, balanced_stages
from adadecode.model.parts import body_of, norm_of, parts_at_home
from adadecode.settings import ModelSettings


def check_device(settings: ModelSettings) -> None:
    """Raises UsageError where this process does not see the GPUs that `settings` ask for."""
    wanted = settings.gpus_per_worker
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device 'cuda': no CUDA device is visible to this process; use --device cpu")
    if settings.device == "cuda" and wanted > (seen := torch.cuda.device_count()):
        raise UsageError(f"--gpus-per-worker {wanted}: this process sees {seen}; give 1..{seen}, or free others for it")


def devices_of(settings: ModelSettings, num_layers: int) -> list[torch.device]:
    """The devices over which a model of `num_layers` is spread by `settings`; raises UsageError for fewer layers."""
    num_gpus = settings.gpus_per_worker
    check_enough_layers(num_gpus, num_layers)
    return [torch.device("cuda", idx) for idx in range(num_gpus)] if num_gpus > 1 else [torch.device(settings.device)]


def check_enough_layers(num_gpus: int, num_layers: int) -> None:
    """Raises UsageError where a model of `num_layers` has none for some of `num_gpus` GPUs."""
    if num_gpus > num_layers:
        raise UsageError(
            f"--gpus-per-worker {num_gpus}: the model has {num_layers} layers, and each GPU holds one or more; "
            f"give 1..{num_layers}"
        )


def place(lm: Any, devices: Sequence[torch.device]) -> tuple[Stage, ...]:
    """Moves `lm` to `devices` and returns its stages; none where there is one device.

    Weights go straight to their device, one layer after the other. Then every layer, and what comes after the last, moves
    what it is called with to where its weights are, so that `lm` can be called as ever.
    """
    if len(devices) == 1:
        lm.to(devices[0])
        return ()
    layers, stages = body_of(lm).layers, divided(lm, devices)
    for stage in stages:
        for layer in layers[stage.start : stage.stop]:
            layer.to(stage.device)
    for part in parts_at_home(lm):
        part.to(devices[0])
    for module in (*layers, norm_of(lm)):
        module.register_forward_pre_hook(_follow, with_kwargs=True)
    return stages


def divided(lm: Any, devices: Sequence[torch.device]) -> tuple[Stage, ...]:
    """The stages of `lm` over `devices`: by the bytes of its layers, and on the first device of all the rest."""
    of_layers = [sum(parameter.nbytes for parameter in layer.parameters()) for layer in body_of(lm).layers]
    in_all = sum(parameter.nbytes for parameter in lm.parameters())
    return balanced_stages(of_layers, in_all - sum(of_layers), devices)


def _follow(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What `module` is called with, on the device of its weights; a cache stays as it is, for it has a device per layer."""
    device = next(module.parameters()).device
    return _moved(args, device), {name: _moved(value, device) for name, value in kwargs.items()}


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return tuple(_moved(part, device) for part in value) if type(value) is tuple else value
