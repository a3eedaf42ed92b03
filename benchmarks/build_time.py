"""What it costs to compile the operators, from nothing and again without a change.

    python benchmarks/build_time.py 8.6        # the CPU operators, then with CUDA operators for each ARCH that is given

Times are CPU time of all compilers together, which a build on N idle cores takes about an Nth of. Memory is that of the
largest compiler; MAX_JOBS of them run at a time. Writes results/build-time.json and prints its table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("csrc", "udas_fast", "setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE")
# A build of its own process, as the memory of finished processes is that of the largest since this one began.
BUILD = (
    "import json, resource, subprocess, sys; "
    "subprocess.run([sys.executable, 'setup.py', 'build_ext', '--inplace'], check=True, stdout=sys.stderr); "
    "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
    "print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss]))"
)


def build(folder: Path, arch: str | None) -> tuple[float, int, int]:
    """Build in ``folder``; return CPU seconds, the largest process's KiB, and the number of objects made."""
    cuda = {"UDAS_FAST_CUDA": "0"} if arch is None else {"UDAS_FAST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": arch}
    objects = {path: path.stat().st_mtime_ns for path in folder.glob("build/objects/**/*.o")}
    done = subprocess.run(
        [sys.executable, "-c", BUILD],
        cwd=folder,
        env={**os.environ, **cuda},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds, kib = json.loads(done.stdout)
    made = sum(objects.get(path) != path.stat().st_mtime_ns for path in folder.glob("build/objects/**/*.o"))
    return seconds, kib, made


def measured(arch: str | None) -> dict[str, Any]:
    """Build a copy of the sources twice; return what both builds took, and the library's size."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in SOURCES:
            if (ROOT / name).is_dir():
                shutil.copytree(
                    ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__")
                )
            else:
                shutil.copy(ROOT / name, folder)
        seconds, kib, made = build(folder, arch)
        again, _, made_again = build(folder, arch)
        return {
            "arch": arch,
            "cpu_s": round(seconds, 1),
            "largest_mib": round(kib / 1024),
            "objects": made,
            "cpu_s_again": round(again, 1),
            "objects_again": made_again,
            "library_bytes": (folder / "udas_fast" / "_ops.so").stat().st_size,
        }


def table(document: dict[str, Any]) -> str:
    """Return a line for each build."""
    rows = [
        [
            "CPU operators" if row["arch"] is None else f"CPU, and CUDA for {row['arch']}",
            row["objects"],
            f"{row['cpu_s']:.0f}",
            row["largest_mib"],
            f"{row['library_bytes'] / 1e6:.1f}",
            f"{row['objects_again']}, {row['cpu_s_again']:.1f} s",
        ]
        for row in document["builds"]
    ]
    header = [
        "operators",
        "files",
        "CPU s",
        "MiB of the largest compiler",
        "library, MB",
        "files, CPU s again",
    ]
    return f"{harness.table(header, rows)}\n\n{document['compiler']}; `{document['command']}`."


def main() -> None:
    """Measure, write the JSON and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archs", nargs="*", metavar="ARCH", help="such as 8.6; needs nvcc")
    archs = parser.parse_args().archs
    compiler = subprocess.run(["c++", "--version"], capture_output=True, text=True, check=True)
    document = {
        "command": " ".join(["python benchmarks/build_time.py", *archs]),
        "environment": harness.environment("cpu"),
        "compiler": compiler.stdout.splitlines()[0],
        "builds": [measured(arch) for arch in (None, *archs)],
    }
    print(table(document))
    harness.write(Path(__file__).parent / "results" / "build-time.json", document)


if __name__ == "__main__":
    main()
