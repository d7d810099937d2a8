"""The weights of a GGUF file as llama.cpp is to have them: BF16, bit for bit what the engine decodes with, and Q8_0 of it.

The format: docs/gguf.md of the ggml project.
"""

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType
from numpy.typing import NDArray

from adadecode.errors import UsageError
from adadecode.files import make_folder, short_hash, whole_file
from adadecode.model.decoder import DecoderModel
from adadecode.model.load import load_model
from adadecode.settings import ModelSettings

FILE_TYPES = {
    GGMLQuantizationType.BF16: LlamaFileType.MOSTLY_BF16,
    GGMLQuantizationType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
}
WRITTEN_ANEW = {"general.architecture", "general.file_type", "general.quantization_version"}


def llama_cpp_files(source: Path, model: DecoderModel, folder: Path) -> dict[str, Path]:
    """GGUF files with the weights of `source` by the name of their type, in `folder`; they are written and checked once.

    Raises UsageError unless they are the weights of `model`, which is loaded in bfloat16, bit for bit.
    """
    name = f"{source.stem}-{short_hash(model.model_hash, source.read_bytes())}"
    bf16, q8_0 = (folder / f"{name}.{kind.name}.gguf" for kind in FILE_TYPES)
    if not q8_0.exists():  # it is written last: where it is, the other was checked
        make_folder(folder)
        repack(source, bf16, GGMLQuantizationType.BF16)
        check_same_weights(bf16, model)
        repack(source, q8_0, GGMLQuantizationType.Q8_0)
    return {"BF16": bf16, "Q8_0": q8_0}


def check_same_weights(file: Path, model: DecoderModel) -> None:
    """Raises UsageError unless transformers unpacks `file` to the weights of `model`, bit for bit."""
    unpacked, _ = load_model(ModelSettings(model=str(file), kernels="eager"))
    one, other = dict(model.lm.named_parameters()), dict(unpacked.lm.named_parameters())
    if one.keys() != other.keys():
        raise UsageError(f"--gguf has another model than --model: {min(one.keys() ^ other.keys())} is in one only")
    if differing := [name for name in one if not torch.equal(one[name], other[name])]:
        raise UsageError(f"--gguf has other weights than --model: {len(differing)} differ, the first is {differing[0]}")


def repack(source: Path, target: Path, kind: GGMLQuantizationType) -> None:
    """Writes `source` to the GGUF file `target`: rounded to bfloat16, then matrices as `kind`, vectors as float32."""
    reader = GGUFReader(source)
    with whole_file(target) as unfinished:
        writer = GGUFWriter(unfinished, reader.fields["general.architecture"].contents())
        writer.add_file_type(FILE_TYPES[kind])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for field in reader.fields.values():
            if field.name not in WRITTEN_ANEW and not field.name.startswith("GGUF."):
                sub_type = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(field.name, field.contents(), field.types[0], sub_type)
        for tensor in reader.tensors:
            values = as_bfloat16(gguf.dequantize(tensor.data, tensor.tensor_type))
            if values.ndim > 1:
                writer.add_tensor(tensor.name, gguf.quantize(values, kind), raw_dtype=kind)
            else:
                writer.add_tensor(tensor.name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def as_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """`values` rounded to the nearest bfloat16, as torch rounds the weights it loads."""
    return torch.from_numpy(np.array(values)).to(torch.bfloat16).float().numpy()
