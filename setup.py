"""Builds udas_fast/_ops.so: the CPU operators always, the CUDA operators where nvcc is.

The library links no Python and is compiled with the headers of the oldest torch that it runs on (csrc/third_party), so
that one file serves every Python and every torch from 2.11 on, and neither has to be there for the build.

UDAS_FAST_CUDA=auto (default) | 1 (succeed or stop) | 0. UDAS_FAST_EXTENSION=0 builds a package without the library,
for any platform, as every platform but Linux does. UDAS_FAST_STRICT=1 makes warnings errors: for CI, since a compiler
that is not known yet may have new ones. TORCH_CUDA_ARCH_LIST chooses the architectures, MAX_JOBS how many compilers
run at a time; CXX, CXXFLAGS and LDFLAGS are as everywhere.
"""

import os
import re
import runpy
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:  # which reads no licence as pyproject.toml states it
    sys.exit(
        f"udas_fast: found setuptools {setuptools.__version__}, expected at least 77: run "
        "`pip install 'setuptools>=77'`, then the same command again, or it without --no-build-isolation"
    )
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NAME = "udas_fast"
HEADERS = "csrc/third_party/torch-2.11"
INFO = "csrc/info.cpp"  # the source that is told what is built
OBJECTS = Path("build/objects")  # nothing in them depends on a Python, so that all of them share it
ARCHS = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
ARCHS_CUDA_12 = "6.1;7.0;" + ARCHS
STRICT = os.environ.get("UDAS_FAST_STRICT") == "1"
CXX_FLAGS = ["-O3", "-g0", "-std=c++17", "-fPIC", "-DNDEBUG", "-fvisibility=hidden"]
# wrap: exp and log compute with the bits of a float
CXX_FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-fwrapv"]
CXX_FLAGS += ["-Wall", "-Wextra", *["-Werror"] * STRICT]
CXX_FLAGS += ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-isystem{HEADERS}"]
NVCC_FLAGS = ["-O3", "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xfatbin=-compress-all"]
NVCC_FLAGS += [*["-Werror", "all-warnings"] * STRICT, f"--threads={os.environ.get('NVCC_THREADS', '2')}"]
# The libraries that hold torch's side of the stable ABI; empty ones of their names stand for them at link time.
TORCH_LIBRARIES = ("torch", "torch_cpu")
# static: no libcudart.so to find, and none of its names exported, so that torch's own cannot take their place
CUDA_LIBRARIES = ["-lcudart_static", "-ldl", "-lrt", "-lpthread", "-Wl,--exclude-libs,ALL"]


def stop(reason: str) -> None:
    sys.exit(f"{NAME}: {reason}")


def compiler() -> list[str]:
    """The command of the C++ compiler."""
    tried = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    found = next((command for command in map(shlex.split, tried) if shutil.which(command[0])), None)
    if found is None:
        stop(
            f"no C++ compiler ({', '.join(tried)}): install one (`apt install g++`) and run the same command again, or "
            "run it with UDAS_FAST_EXTENSION=0 to install without compiled operators"
        )
    return found


def torch_cuda() -> str | None:
    """The CUDA version of the torch beside which this installs, "" if it has none; None where no torch is seen.

    pip's isolated builds hide torch from sys.path, but not from sysconfig.
    """
    for place in (sysconfig.get_path("platlib"), sysconfig.get_path("purelib"), *site.getsitepackages()):
        if (version := Path(place, "torch/version.py")).exists():
            return runpy.run_path(str(version))["cuda"] or ""
    return None


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


def cuda_toolkit(torch: str | None) -> tuple[str, str, str]:
    """(home, version, "") where CUDA sources are to be built, else ("", "", why not); ``torch`` as of torch_cuda."""
    mode = os.environ.get("UDAS_FAST_CUDA", "auto")
    if mode not in ("auto", "1", "0"):
        stop(f"UDAS_FAST_CUDA: found {mode!r}, expected auto, 1 or 0")
    home, version, why = toolkit_home(), "", ""
    if mode == "0":
        why = "UDAS_FAST_CUDA=0"
    elif not home:
        why = "no CUDA toolkit (nvcc and cuda_runtime.h) in CUDA_HOME, on PATH or in /usr/local/cuda"
    elif torch == "" and mode != "1":
        why = "the installed torch has no CUDA (UDAS_FAST_CUDA=1 compiles the CUDA operators anyway)"
    else:
        said = subprocess.run([f"{home}/bin/nvcc", "--version"], capture_output=True, text=True).stdout
        version = m[1] if (m := re.search(r"release (\d+\.\d+)", said)) else ""
        if not version:
            why = f"{home}/bin/nvcc --version was not understood"
        elif torch and torch.split(".")[0] != (major := version.split(".")[0]):
            print(
                f"{NAME}: warning: nvcc is {version} and the installed torch has CUDA {torch}; the operators bring "
                f"their own CUDA runtime and need a driver for CUDA {major}",
                file=sys.stderr,
            )
    if why and mode == "1":
        stop(f"UDAS_FAST_CUDA=1 but {why}")
    return ("", "", why) if why else (home, version, "")


def architectures(version: str) -> list[str]:
    """Those of TORCH_CUDA_ARCH_LIST, else all that are common for a toolkit of ``version``."""
    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST") or (ARCHS_CUDA_12 if version < "13" else ARCHS)
    return re.split(r"[;, ]+", chosen.strip())


def gencode(archs: list[str]) -> list[str]:
    """nvcc's options for architectures such as "8.6", "9.0a" and "12.0+PTX"."""
    flags = []
    for arch in archs:
        if not (m := re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", arch)):
            stop(f"TORCH_CUDA_ARCH_LIST: found {arch!r}, expected architectures such as 8.6;12.0+PTX")
        number = m[1] + m[2]
        flags += [
            f"-gencode=arch=compute_{number},code={kind}_{number}"
            for kind in ["sm", *["compute"] * bool(m[3])]
        ]
    return flags


def is_current(made: Path, command: list[str]) -> bool:
    """Whether ``made`` is of this command and newer than every file that the compiler noted beside it."""
    record, files = made.with_suffix(".command"), made.with_suffix(".d")
    if not (
        made.exists() and files.exists() and record.exists() and record.read_text() == shlex.join(command)
    ):
        return False
    used = files.read_text().partition(":")[2].replace("\\\n", " ").split()
    return all(Path(f).exists() and Path(f).stat().st_mtime <= made.stat().st_mtime for f in used)


def run(command: list[str], made: Path | str) -> None:
    print(f"{shlex.join(command)}\n", end="", flush=True)  # in one piece: several threads print
    if subprocess.run(command).returncode:
        stop(f"the compiler failed to make {made}; its messages are above")


def object_of(source: str) -> Path:
    return OBJECTS / f"{'-'.join(Path(source).parts[1:])}.o"


def compile_command(source: str, cxx: list[str], home: str, version: str, why: str) -> list[str]:
    """The command that makes the object of ``source``; the last three are of cuda_toolkit."""
    archs = architectures(version)
    if source.endswith(".cu"):
        command = [
            f"{home}/bin/nvcc",
            *NVCC_FLAGS,
            *gencode(archs),
            *[f"-ccbin={cxx[0]}"] * ("CXX" in os.environ),
        ]
    else:
        command = [*cxx, *CXX_FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
        if home and source.startswith(("csrc/cuda/", INFO)):
            command.append(f"-isystem{home}/include")
    if source == INFO:
        command.append(f'-DUDAS_CUDA_REASON="{why}"')
        if home:
            command += ["-DUDAS_WITH_CUDA", f'-DUDAS_CUDA_VERSION="{version}"']
            command.append(f'-DUDAS_CUDA_ARCHS="{";".join(archs)}"')
    made = object_of(source)
    return [*command, "-MD", "-MF", str(made.with_suffix(".d")), "-c", source, "-o", str(made)]


def compile_source(source: str, command: list[str]) -> None:
    """Run ``command`` unless what it makes is there already."""
    made = object_of(source)
    if not is_current(made, command):
        made.with_suffix(".command").unlink(missing_ok=True)
        run(command, source)
        made.with_suffix(".command").write_text(shlex.join(command))


def link_command(sources: list[str], cxx: list[str], home: str, made: str) -> list[str]:
    command = [*cxx, "-shared", *(str(object_of(s)) for s in sources), "-o", made, f"-L{OBJECTS}"]
    command += ["-Wl,--no-as-needed", *(f"-l{library}" for library in TORCH_LIBRARIES), "-Wl,--as-needed"]
    command += [f"-L{home}/lib64", *CUDA_LIBRARIES] * bool(home)
    return [*command, *shlex.split(os.environ.get("LDFLAGS", ""))]


class Build(build_ext):
    """Compile what has changed since the last build, and link it."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"  # no name of a Python in it

    def build_extension(self, ext: Extension) -> None:
        cxx = compiler()
        home, version, why = cuda_toolkit(torch_cuda())
        cuda = f"on (nvcc {version}, {' '.join(architectures(version))})" if home else f"off ({why})"
        print(f"{NAME}: CUDA operators {cuda}", flush=True)
        OBJECTS.mkdir(parents=True, exist_ok=True)
        sources = [source for source in ext.sources if home or not source.startswith("csrc/cuda/")]
        commands = [compile_command(source, cxx, home, version, why) for source in sources]
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            list(pool.map(compile_source, sources, commands))
        for library in TORCH_LIBRARIES:
            stub = f"{OBJECTS}/lib{library}.so"
            run([*cxx, "-shared", f"-Wl,-soname,lib{library}.so", "-x", "c++", "/dev/null", "-o", stub], stub)
        made = self.get_ext_fullpath(ext.name)
        Path(made).parent.mkdir(parents=True, exist_ok=True)
        run(link_command(sources, cxx, home, made), made)


class Wheel(bdist_wheel):
    """py3-none-PLATFORM: any Python can load the library, a free-threaded one too."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def main() -> None:
    builds = sys.platform == "linux" and os.environ.get("UDAS_FAST_EXTENSION") != "0"
    if builds and {"build_ext", "bdist_wheel", "editable_wheel"} & set(sys.argv):
        compiler()  # first, so that its sentence does not end a page of other lines
    patterns = ("*.cpp", "cpu/*.cpp", "cuda/*.cpp", "cuda/*.cu")
    sources = [str(path) for pattern in patterns for path in sorted(Path("csrc").glob(pattern))]
    setup(
        ext_modules=[Extension(f"{NAME}._ops", sources)] if builds else [],
        cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
    )


if __name__ == "__main__":
    main()
