"""Which functions and classes may a pickle of weights name? Data, all of them; every other name is told and refused."""

from typing import NamedTuple

from pipelines.errors import BadModel


class Name(NamedTuple):
    """What GLOBAL and its like ask for: `module.name`. Only ever compared with others."""

    text: str


STORAGES: dict[str, str] = {
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.DoubleStorage": "F64",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
    "torch.Float8_e4m3fnStorage": "F8_E4M3",
    "torch.Float8_e5m2Storage": "F8_E5M2",
    "torch.ComplexFloatStorage": "C64",
    "torch.ComplexDoubleStorage": "C128",
    "torch.storage.UntypedStorage": "U8",
}

DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
PLAIN = ("set", "dict", "list", "tuple", "int", "float")

ALLOWED = {
    *STORAGES,
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._tensor._rebuild_from_type_v2",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.Size",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",  # a key in the trainer's notes of 2022
    "torch.device",
    "torch.serialization._get_layout",
    "torch.storage.TypedStorage",
    "torch.storage._TypedStorage",
    *(f"torch.{name}" for name in DTYPES),
    "collections.OrderedDict",
    "collections.Counter",
    "collections.defaultdict",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in PLAIN),
}
"""Data, all of them. What torch.load(weights_only=True) takes, and no more than a sum of types."""


def allowed(module: str, name: str) -> Name:
    text = f"{module}.{name}"
    if text not in ALLOWED:
        raise BadModel(
            f"It asks to run {text}, which weights never need, so it may be malicious. Nothing of it was run. "
            "Get the model as .safetensors."
        )
    return Name(text)
