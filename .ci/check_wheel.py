"""Checks the packages of ``make wheel``: ``python .ci/check_wheel.py dist``, in an environment with torch.

Tags, links and symbols of the library, the files of every package, and an installation of each wheel in a fresh
environment whose PATH has no compiler: the operators run, and nothing stays after the removal.
"""

import json
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 40_000_000  # bytes; an index takes 100 MB
LIBRARY = "udas_fast/_ops.so"
OF_THE_REPOSITORY = {".gitignore", ".pre-commit-config.yaml", ".github/workflows/release.yml"}
LIBRARIES = {"libtorch.so", "libtorch_cpu.so"}  # beside the system's own
SYSTEM = re.compile(r"(libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+|ld-linux-.*)\.so(\.\d+)?$")


def expect(holds: object, what: str) -> None:
    if not holds:
        raise SystemExit(f"check_wheel: {what}")


def said(*command: object) -> str:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True).stdout


def check_library(library: Path) -> None:
    """No Python, no torch beyond the stable ABI, no CUDA library, no path of this machine."""
    symbols = said("nm", "-D", "--undefined-only", "-C", library)
    wrong = [line for line in symbols.splitlines() if re.search(r" _?Py|\b(c10|at|torch)::", line)]
    expect(not wrong, f"{library.name} needs {wrong[:3]}")
    dynamic = said("readelf", "-d", library)
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    others = {name for name in needed - LIBRARIES if not SYSTEM.match(name)}
    expect(needed >= LIBRARIES, f"{library.name} is not linked to {LIBRARIES - needed}")
    expect(not others, f"{library.name} is linked to {others}")
    expect("RPATH" not in dynamic and "RUNPATH" not in dynamic, f"{library.name} has a path of this machine")
    exported = said("nm", "-D", "--defined-only", library)
    expect(" cuda" not in exported, f"{library.name} exports names of the CUDA runtime")


def check_files(wheel: Path, folder: Path) -> None:
    """The wheel has the files of the package, the licences and nothing else."""
    tracked = set(said("git", "-C", ROOT, "ls-files", "udas_fast").split())
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        archive.extractall(folder)
    package = {name for name in names if name.startswith("udas_fast/")} - {LIBRARY}
    expect(package == tracked, f"{wheel.name} differs from the package in {sorted(package ^ tracked)[:5]}")
    licences = {name.partition(".dist-info/licenses/")[2] for name in names}
    expect(
        {"LICENSE", "NOTICE", "csrc/third_party/torch-2.11/LICENSE"} <= licences,
        f"{wheel.name} lacks a licence",
    )


def check_sources(archive: Path) -> None:
    """The sources are complete: whoever has them builds and tests as from a checkout."""
    wanted = {
        name for name in said("git", "-C", ROOT, "ls-files").splitlines() if name not in OF_THE_REPOSITORY
    }
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    lacking = sorted(wanted - names)
    expect(not lacking, f"{archive.name} lacks {lacking[:5]}")


def check_installed(wheel: Path, folder: Path) -> dict[str, object]:
    """Install without compiler or index, run, remove; torch is that of the environment which runs this."""
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "torch_is_here.pth").write_text(str(Path(torch.__file__).parents[1]))
    environment = {"PATH": str(folder / "bin"), "OMP_NUM_THREADS": "1"}

    def inside(*command: object) -> str:
        done = subprocess.run(
            [str(c) for c in command],
            capture_output=True,
            text=True,
            env=environment,
            cwd=folder,
            check=False,
        )
        expect(done.returncode == 0, f"{wheel.name}: {command[1:]} ended with {done.stderr[-2000:]}")
        return done.stdout

    inside(python, "-m", "pip", "install", "--no-index", "--no-deps", "--ignore-installed", wheel.resolve())
    version = inside(folder / "bin/udas-fast", "--version").split()[-1]
    reads = "import importlib.metadata as m; print(m.version('udas-fast'))"
    expect(inside(python, "-c", reads).strip() == version, f"{wheel.name}: --version prints {version}")
    found: dict[str, object] = json.loads(inside(python, ROOT / ".ci/smoke.py"))
    inside(python, "-m", "pip", "uninstall", "--yes", "udas-fast")
    left = [*packages.glob("*udas*"), *(folder / "bin").glob("*udas*")]
    expect(not left, f"{wheel.name} leaves {left} behind")
    return found


def main() -> None:
    dist = Path(sys.argv[1])
    found = {}
    platform, anywhere = sorted(dist.glob("*.whl"), key=lambda wheel: wheel.name.endswith("-none-any.whl"))
    expect(re.search(r"-py3-none-manylinux_2_\d+_\w+\.whl$", platform.name), f"{platform.name}: another tag")
    expect(anywhere.name.endswith("-py3-none-any.whl"), f"{anywhere.name}: another tag")
    for wheel in (platform, anywhere):
        expect(wheel.stat().st_size < LARGEST, f"{wheel.name} has {wheel.stat().st_size} bytes")
        with tempfile.TemporaryDirectory() as folder:
            check_files(wheel, Path(folder, "files"))
            has_library = Path(folder, "files", LIBRARY).exists()
            expect(has_library == (wheel is platform), f"{wheel.name}: found a library: {has_library}")
            if has_library:
                check_library(Path(folder, "files", LIBRARY))
            found[wheel] = check_installed(wheel, Path(folder, "installed"))
        print(f"{wheel.name}: {wheel.stat().st_size:,} bytes, {json.dumps(found[wheel])}")
    expect(found[platform]["extension"], f"{platform.name}: the extension does not load")
    expect(not found[anywhere]["extension"], f"{anywhere.name}: it has an extension")
    (sources,) = dist.glob("*.tar.gz")
    check_sources(sources)
    print(f"{sources.name}: {sources.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
