"""The compiled extension: loading it, registering its operators, calling them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from udas_fast._build import LIBRARY, __version__
from udas_fast.errors import InputError, bad

OLDEST_TORCH = (2, 11)


def _load() -> str:
    """Load the extension, which gives the operators to torch; return '' or the reason why that failed."""
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST_TORCH:
        return f"torch is {torch.__version__}, the compiled operators need 2.11 or later"
    if not LIBRARY.exists():
        return "the extension was not built"
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"the extension does not load: {error.__cause__ or error}"  # the cause is the loader's own message
    return ""


def _has_kernel(name: str, device: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"udas_fast::{name}", device.upper())


REASON = _load()
"""Why there are no compiled operators, or ''."""
COMPILED: dict[str, frozenset[str]] = {}
"""The devices ("cpu", "cuda") for which each operator is compiled. The operators' modules register them."""
ARGUMENTS: dict[str, tuple[str, ...]] = {}
"""The names of each compiled operator's arguments, in the order of its schema."""

if REASON and "not built" not in REASON:
    warnings.warn(f"udas_fast: {REASON}; plain PyTorch runs instead", RuntimeWarning, stacklevel=2)


def _facts() -> dict[str, str]:
    """Return what the extension reports of its build, of the driver and of the CPU."""
    names = ("cuda", "cuda_reason", "archs", "driver", "simd")
    return dict(zip(names, torch.ops.udas_fast.build_info().split("\n"), strict=True))


def cuda_reason() -> str:
    """Return why the compiled CUDA operators cannot run here, or ''; the GPUs are asked, which starts CUDA."""
    if REASON:
        return REASON
    built = _facts()
    if not built["cuda"]:
        return (
            f"no CUDA operators were built ({built['cuda_reason']}); run `UDAS_FAST_CUDA=1 pip install .` in a "
            "checkout of udas_fast, where a CUDA toolkit is"
        )
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    if torch.cuda.device_count() == 0:
        return "torch finds no GPU"
    driver, toolkit = int(built["driver"]), version_number(built["cuda"])
    # A driver runs every minor version of its major one (NVIDIA, "CUDA Compatibility").
    if driver // 1000 < toolkit // 1000:
        return (
            f"the NVIDIA driver runs CUDA up to {version_text(driver)} and the operators were built with CUDA "
            f"{built['cuda']}; update the driver"
        )
    archs = built["archs"].split(";")
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not runs_on(capability, archs, compiles=driver >= toolkit):
            number = "{}.{}".format(*capability)
            older = ", with a CUDA 12 toolkit" if capability < (7, 5) else ""
            return (
                f"{torch.cuda.get_device_name(index)} has compute capability {number} and the CUDA operators were "
                f"built for {', '.join(archs)}; run `TORCH_CUDA_ARCH_LIST={number} UDAS_FAST_CUDA=1 pip install .` "
                f"in a checkout of udas_fast{older}"
            )
    return ""


def runs_on(capability: tuple[int, int], archs: Sequence[str], *, compiles: bool) -> bool:
    """Return whether a GPU runs what was built for ``archs``.

    Machine code runs on its own and on later minor versions of its major one, PTX on every later version
    (CUDA C++ Programming Guide, "Compute Capability").

    Args:
        capability: the GPU's compute capability, major and minor.
        archs: architectures as of TORCH_CUDA_ARCH_LIST: "8.6", "9.0a" (of this GPU only), "12.0+PTX".
        compiles: whether the driver is new enough to compile the PTX.
    """
    for arch in archs:
        number, _, ptx = arch.partition("+")
        major, minor = (int(part) for part in number.rstrip("af").split("."))
        if number.endswith("a"):
            if capability == (major, minor):
                return True
        elif (capability[0] == major and capability[1] >= minor) or (
            ptx and compiles and capability >= (major, minor)
        ):
            return True
    return False


def version_number(text: str) -> int:
    """Return a CUDA version such as "12.9" as CUDA itself counts, 12090."""
    major, minor = text.split(".")
    return 1000 * int(major) + 10 * int(minor)


def version_text(number: int) -> str:
    """Return a CUDA version such as 12090 as "12.9"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def check_gpus() -> None:
    """Give up the compiled CUDA operators, with one warning, where they do not fit the GPUs or the driver."""
    if reason := cuda_reason():
        for name in COMPILED:
            COMPILED[name] -= {"cuda"}
        warnings.warn(
            f"udas_fast: plain PyTorch runs on the GPU, slower and with more memory: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )


def register(name: str, fake: Callable[..., Any]) -> None:
    """Register operator ``name`` and, where it is compiled, the function that gives its results' shapes."""
    devices = ("cpu", "cuda") if torch.version.cuda else ("cpu",)
    COMPILED[name] = frozenset(device for device in devices if not REASON and _has_kernel(name, device))
    if not REASON:
        ARGUMENTS[name] = tuple(argument.name for argument in schema(name).arguments)
        register_fake(name, fake)


def register_fake(name: str, fake: Callable[..., Any]) -> None:
    """Register the function that gives the shapes of the results of operator ``name``, for fake and meta tensors."""

    def shapes(*args: Any) -> Any:
        # torch comes here for any meta tensor; results of the device of another one would be made and never filled.
        tensors = [t for arg in args for t in (arg if isinstance(arg, (list, tuple)) else [arg])]
        devices = sorted({t.device.type for t in tensors if isinstance(t, Tensor)})
        if "meta" in devices and len(devices) > 1:
            raise bad(f"tensors of {name}", f"devices {' and '.join(devices)}", "one device")
        return fake(*args)

    torch.library.register_fake(f"udas_fast::{name}", shapes)


def schema(name: str) -> torch.FunctionSchema:
    """Return the schema of compiled operator ``name``."""
    return overload(name)._schema


def overload(name: str) -> torch._ops.OpOverload:
    """Return compiled operator ``name`` of torch."""
    return getattr(torch.ops.udas_fast, name).default


def backends() -> dict[str, dict[str, str]]:
    """Return for each operator which form runs on "cpu" and on "cuda": "compiled" or "reference"."""
    if torch.cuda.is_available():
        torch.cuda.init()  # which checks the GPUs
    return {
        name: {device: "compiled" if device in devices else "reference" for device in ("cpu", "cuda")}
        for name, devices in COMPILED.items()
    }


def build_info() -> dict[str, Any]:
    """Report what was built, what runs, and why there is no more.

    Returns:
        A dict: ``version``; ``extension`` (bool) and, if False, ``reason``; ``torch`` (running); ``cuda`` (toolkit
        version, None if no CUDA operators were built); ``cuda_reason`` (why they do not run here, None if they do);
        ``archs`` (list of CUDA architectures); ``driver`` (newest CUDA version that the NVIDIA driver runs, or None);
        ``simd`` ("AVX-512", "AVX2" or "baseline", chosen at run time); ``operators``, see
        :func:`udas_fast.ops.backends`.
    """
    built = {} if REASON else _facts()
    driver = int(built.get("driver", 0))
    return {
        "version": __version__,
        "extension": not REASON,
        "reason": REASON or None,
        "torch": torch.__version__,
        "cuda": built.get("cuda") or None,
        "cuda_reason": cuda_reason() or None,
        "archs": [arch for arch in built.get("archs", "").split(";") if arch],
        "driver": version_text(driver) if driver else None,
        "simd": built.get("simd"),
        "operators": backends(),
    }


def is_compiled(name: str, tensor: Tensor) -> bool:
    """Return whether operator ``name`` is compiled for the device of ``tensor``."""
    return tensor.device.type in COMPILED[name]


def call(name: str, *args: Any) -> Any:
    """Call compiled operator ``name``; values that it refuses (a label out of range) are an InputError."""
    operator = overload(name)
    if torch.compiler.is_compiling():
        return operator(*args)
    try:
        return operator(*args)
    except RuntimeError as error:
        sentence = re.sub(r"^.*?\.(h|cpp|cu):\d+, ", "", str(error).splitlines()[0])
        if ": found " in sentence:
            raise InputError(sentence) from None
        raise
