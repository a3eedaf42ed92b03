"""Builds udas_fast._C: the CPU operators always, the CUDA operators where nvcc can be used.

UDAS_FAST_CUDA=auto (default) | 1 (succeed or stop) | 0. TORCH_CUDA_ARCH_LIST chooses the architectures.
UDAS_FAST_STRICT=1 makes warnings errors: for CI, since a compiler that is not known yet may have new ones.
torch is the one of the environment that runs pip: nothing is downloaded. The stable ABI of torch 2.11 makes
the result load on that torch and every later one.
"""

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

NAME = "udas_fast"
OLDEST_TORCH = (2, 11)
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"
ARCHS = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
ARCHS_CUDA_12 = "6.1;7.0;" + ARCHS
STRICT = os.environ.get("UDAS_FAST_STRICT") == "1"
WARNINGS = ["-Wall", "-Wextra", *["-Werror"] * STRICT]
OPTIMISE = ["-O3", "-g0", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]


def stop(reason: str) -> None:
    sys.exit(f"{NAME}: {reason}")


def find_torch():
    """The installed torch. pip's isolated builds hide it from sys.path, but not from sysconfig."""
    try:
        import torch
    except ImportError:
        places = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib"), *site.getsitepackages()]
        home = next((p for p in places if Path(p, "torch", "__init__.py").exists()), None)
        if home is None:
            stop(
                f"no torch in {sys.prefix}: install torch >= 2.11 first, then install {NAME} into the same "
                "environment; if torch is there, add --no-build-isolation to the pip command"
            )
        sys.path.append(home)  # last, so that the build's own setuptools stays the one in use
        import torch
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST_TORCH:
        stop(f"found torch {torch.__version__}, expected torch >= {'.'.join(map(str, OLDEST_TORCH))}")
    return torch


def toolkit_home() -> str:
    """A folder with both nvcc and its headers (a bare nvcc on PATH may be a wrapper script), or ''."""
    tried = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if not any(tried):
        if found := shutil.which("nvcc"):
            tried.append(str(Path(found).resolve().parents[1]))
        tried.append("/usr/local/cuda")
    good = (
        h for h in tried if h and Path(h, "bin/nvcc").exists() and Path(h, "include/cuda_runtime.h").exists()
    )
    return next(good, "")


def cuda_toolkit(torch) -> tuple[str, str, str]:
    """(home, version, "") where CUDA sources are to be built, else ("", "", why not)."""
    mode = os.environ.get("UDAS_FAST_CUDA", "auto")
    if mode not in ("auto", "1", "0"):
        stop(f"UDAS_FAST_CUDA: found {mode!r}, expected auto, 1 or 0")
    home, version, why = toolkit_home(), "", ""
    if mode == "0":
        why = "UDAS_FAST_CUDA=0"
    elif torch.version.hip:
        why = "this torch is a ROCm build"
    elif not home:
        why = "no CUDA toolkit (nvcc and cuda_runtime.h) in CUDA_HOME, on PATH or in /usr/local/cuda"
    else:
        said = subprocess.run([f"{home}/bin/nvcc", "--version"], capture_output=True, text=True).stdout
        version = m[1] if (m := re.search(r"release (\d+\.\d+)", said)) else ""
        own = torch.version.cuda
        if not version:
            why = f"{home}/bin/nvcc --version was not understood"
        elif own and own.split(".")[0] != version.split(".")[0]:
            why = f"nvcc is {version} but torch {torch.__version__} has CUDA {own}; the majors must agree"
        elif own is None and mode != "1":
            why = f"torch {torch.__version__} is CPU-only (UDAS_FAST_CUDA=1 compiles the CUDA sources anyway)"
    if why and mode == "1":
        stop(f"UDAS_FAST_CUDA=1 but {why}")
    return ("", "", why) if why else (home, version, "")


def extension(torch, ce):
    home, version, why = cuda_toolkit(torch)
    csrc = Path("csrc")
    sources = [str(p) for pattern in ("*.cpp", "cpu/*.cpp") for p in sorted(csrc.glob(pattern))]
    import pybind11  # the package, not torch's copy: that one refuses TORCH_TARGET_VERSION up to 2.11

    system = [f"-isystem{path}" for path in (*ce.include_paths(), pybind11.get_include())]
    cxx = [*OPTIMISE, *WARNINGS, STABLE_ABI, *system, f'-DUDAS_TORCH_BUILT="{torch.__version__}"']
    cxx.append(f'-DUDAS_CUDA_REASON="{why}"')
    nvcc, link, library_dirs = [], ["-Wl,--no-as-needed", "-ltorch"], []
    if home:
        ce.CUDA_HOME = home  # torch leaves it None in a CPU-only torch
        archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or (ARCHS_CUDA_12 if version < "13" else ARCHS)
        os.environ["TORCH_CUDA_ARCH_LIST"] = archs
        sources += [str(p) for pattern in ("cuda/*.cu", "cuda/*.cpp") for p in sorted(csrc.glob(pattern))]
        cxx += [
            "-DUDAS_WITH_CUDA",
            f'-DUDAS_CUDA_VERSION="{version}"',
            f'-DUDAS_CUDA_ARCHS="{archs}"',
            f"-isystem{home}/include",
        ]
        nvcc = ["-O3", "-std=c++17"]  # the .cu files include nothing of torch
        nvcc += ["-Werror", "all-warnings"] * STRICT
        nvcc += [
            "-Xcompiler=-fvisibility=hidden",
            "-Xfatbin=-compress-all",
            f"--threads={os.environ.get('NVCC_THREADS', '2')}",
        ]
        library_dirs = [f"{home}/lib64"]
        link += ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]  # static: no libcudart.so to find at import
    cuda = f"on (nvcc {version}, {archs})" if home else f"off ({why})"
    print(f"{NAME}: torch {torch.__version__}; CUDA operators {cuda}", file=sys.stderr)
    # CppExtension even with .cu sources: CUDAExtension links libraries that a CPU-only torch lacks.
    ext = ce.CppExtension(
        f"{NAME}._C",
        sources,
        library_dirs=library_dirs,
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        extra_link_args=link,
        depends=[str(p) for p in sorted(csrc.rglob("*.*h"))],  # .h and .cuh
    )
    ext.include_dirs = []  # given with -isystem: only our own code is warned about
    ext.libraries = ["torch", "torch_cpu"]  # the C shim alone: neither c10 nor torch_python
    return ext


def main() -> None:
    if {"sdist", "egg_info"} & set(sys.argv):
        setup()  # metadata needs no torch
        return
    torch = find_torch()
    from torch.utils import cpp_extension

    setup(
        ext_modules=[extension(torch, cpp_extension)],
        cmdclass={"build_ext": cpp_extension.BuildExtension.with_options(use_ninja=True)},
    )


if __name__ == "__main__":
    main()
