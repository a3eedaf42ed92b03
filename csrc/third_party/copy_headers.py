"""Copies the headers of torch that csrc needs: ``python csrc/third_party/copy_headers.py``, where torch 2.11 is.

The oldest torch is the right one: what its headers declare, every later torch has. CUDA_HOME is the CUDA toolkit.
"""

import os
import re
import shutil
import subprocess
from importlib.metadata import distribution
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent
OLDEST = "2.11"


def headers(include: Path) -> list[Path]:
    """Return every header of torch that a C++ source of csrc includes, directly or not."""
    command = ["c++", "-M", "-std=c++17", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-DUDAS_WITH_CUDA"]
    command += [f"-isystem{include}", f"-isystem{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/include"]
    sources = [str(s) for s in (*CSRC.glob("*.cpp"), *CSRC.glob("c*/*.cpp"))]
    said = subprocess.run([*command, *sources], stdout=subprocess.PIPE, text=True, check=True).stdout
    return sorted({Path(f) for f in said.split() if Path(f).is_relative_to(include)})


def main() -> None:
    """Copy the headers and the licence."""
    torch = distribution("torch")
    if not torch.version.startswith(f"{OLDEST}."):
        raise SystemExit(f"found torch {torch.version}, expected {OLDEST}")
    include, to = Path(str(torch.locate_file("torch/include"))), HERE / f"torch-{OLDEST}"
    found = headers(include)
    shutil.rmtree(to, ignore_errors=True)
    for header in found:
        made = to / header.relative_to(include)
        made.parent.mkdir(parents=True, exist_ok=True)
        text = re.sub(r"[ \t]+$", "", header.read_text(encoding="utf-8"), flags=re.MULTILINE)
        made.write_text(text.rstrip() + "\n", encoding="utf-8")
    text = (
        torch.read_text("licenses/LICENSE") or ""
    )  # torch's own, without those of the parts it is built from
    own, end, _ = text.partition("POSSIBILITY OF SUCH DAMAGE.\n")
    (to / "LICENSE").write_text(own + end, encoding="utf-8")


if __name__ == "__main__":
    main()
