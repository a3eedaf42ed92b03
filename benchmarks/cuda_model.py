"""Model of the CUDA kernels' time, from their machine code: no GPU is needed and nothing is measured.

    python benchmarks/cuda_model.py            # writes results/cuda-model.json; needs nvcc and nvdisasm
    python benchmarks/cuda_model.py --source   # and lists where the instructions of each kernel come from

nvcc compiles a kernel for each card's architecture, nvdisasm lists its instructions with the source lines they come
from, and ``rules`` says how often a line runs in a thread for float32 logits 19×90×160 and images 720×1280. Time is
that of the busiest part of a multiprocessor (instruction issue, or one of the FMA, integer, special-function and
load/store pipes) over ``REACHED``, times the rounding of tiles to multiprocessors, or that of the memory if it is more;
for a loss finish_kernel's is added. Expect ±25 %.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import site
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import harness

CSRC = Path(__file__).resolve().parents[1] / "csrc"
RESULT = Path(__file__).parent / "results" / "cuda-model.json"
CLASSES, HEIGHT, WIDTH, STRIDE = 19, 720, 1280, 8
COLUMNS = 128  # of a tile, and threads of its block
REACHED = 0.78  # share of its issue slots that a multiprocessor with 8 to 16 warps uses
REACHED_MEMORY = 0.85
SHARED_COLUMNS = (COLUMNS - 1) // STRIDE + 3  # low-resolution columns of SharedRows
SHARED_PITCH = 20  # floats of each: the classes, in fours


class Card(NamedTuple):
    """A GPU: its multiprocessors, boost clock, memory, cycles of one warp's FMA, and limits of a multiprocessor."""

    arch: str
    sms: int
    ghz: float
    tb_per_s: float
    fma_cycles: int
    warps: int
    shared_kib: int


CARDS = {
    "H200": Card("sm_90", 132, 1.98, 4.3, 1, 64, 227),
    "RTX 4090": Card("sm_89", 128, 2.52, 1.0, 1, 48, 99),
    "RTX 2080 Ti": Card("sm_75", 68, 1.635, 0.55, 2, 32, 64),
}


class Instruction(NamedTuple):
    """An opcode, its basic block, and its source from the kernel inwards: the scopes around the line, and the line."""

    op: str
    block: int
    where: str


@dataclass(frozen=True)
class Kernel:
    """A kernel of the model: its file, a pattern of its mangled name, bytes of memory a pixel, and its inputs.

    ``pixels`` is the number of pixels of a thread, of a kernel without tiles.
    """

    name: str
    source: str
    pattern: str
    bytes_per_pixel: float
    maps: int = 1
    teachers: int = 0
    gradients: int = 0
    views: int = 0
    pixels: int = 0
    blocks: int = 4  # that the registers of a multiprocessor hold, as choose_tiles takes it


def _loss(name: str, struct: str, maps: int = 1, teachers: int = 0, labels: int = 0) -> Kernel:
    logits = 4 * CLASSES / STRIDE**2
    return Kernel(
        name,
        f"{name}.cu",
        rf"loss_kernel.*{struct}ELi{CLASSES}ELb1E",
        labels + logits * (maps + teachers) + 5 * logits * maps,  # patches: 1.7 to 2.3 maps, written and read
        maps,
        teachers,
        maps,
        blocks=3 if maps == 1 else 2,
    )


KERNELS = [
    _loss("cross_entropy", "CrossEntropy", labels=1),
    _loss("entropy", "Entropy"),
    _loss("symmetric_kl", "SymmetricKl", maps=2),
    _loss("ensemble_kl", "EnsembleKl", maps=2),
    _loss("rectified_cross_entropy", "RectifiedCrossEntropy", maps=2, labels=1),
    _loss("distillation_kl", "DistillationKl", teachers=2),
    _loss("soft_cross_entropy", "SoftCrossEntropy", teachers=1),
    _loss("squared_error", "SquaredError", teachers=1),
    Kernel("pseudo_label max", "pseudo_label.cu", f"pseudo_label_kernelILi{CLASSES}ELb0E", 8.6, 3, views=3),
    Kernel(
        "pseudo_label mean",
        "pseudo_label.cu",
        f"pseudo_label_kernelILi{CLASSES}ELb1E",
        8.6,
        3,
        views=3,
        blocks=3,
    ),
    Kernel("confusion_matrix", "confusion_matrix.cu", f"confusion_matrix_kernelILi{CLASSES}E", 2.2),
    Kernel("upsample softmax", "upsample.cu", rf"upsample_kernelI.*E1ELi{CLASSES}E", 77.2),
    Kernel(
        "upsample_backward softmax",
        "upsample_backward.cu",
        rf"ActivationE1EEELi{CLASSES}E",
        83.2,
        gradients=1,
    ),
    Kernel("region_mix", "region_mix.cu", "region_mix_rgb_kernelIf", 3 + 3 * 4 + 3, maps=0, pixels=4),
]
FINISH = Kernel("finish", "finish.cu", "finish_kernel", 0.0)


# ---- machine code ----------------------------------------------------------------------------------------


def tool(name: str) -> str | None:
    """Return the path of nvcc or nvdisasm, of the toolkit or of the packages nvidia-cuda-*, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [Path(home) / "bin" for home in homes if home]
    for packages in site.getsitepackages():
        places += sorted(Path(packages).glob("nvidia/*/bin"))
    return shutil.which(name) or next((str(p / name) for p in places if os.access(p / name, os.X_OK)), None)


def nvcc_release() -> str:
    """Return the release of nvcc, as 13.0, or an empty string."""
    found = tool("nvcc")
    said = subprocess.run([found, "--version"], capture_output=True, text=True).stdout if found else ""
    match = re.search(r"release (\d+\.\d+)", said)
    return match[1] if match else ""


class Compiled(NamedTuple):
    """A kernel as compiled: registers of a thread, and the instructions in the order of the code."""

    registers: int
    instructions: list[Instruction]


def compile_file(source: str, arch: str) -> dict[str, Compiled]:
    """Return the kernels of ``csrc/cuda/source`` by mangled name, compiled for ``arch`` and one class count."""
    nvcc, nvdisasm = tool("nvcc"), tool("nvdisasm")
    if nvcc is None or nvdisasm is None:
        raise SystemExit("nvcc or nvdisasm is missing: install the CUDA toolkit, or nvidia-cuda-nvdisasm")
    with tempfile.TemporaryDirectory() as folder:
        cubin = f"{folder}/kernels.cubin"
        flags = ["-O3", "-std=c++17", "-lineinfo", "-Xptxas=-v", f"-DUDAS_UNROLLED={CLASSES}"]
        command = [nvcc, *flags, f"-arch={arch}", "-cubin", "-o", cubin, str(CSRC / "cuda" / source)]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        command = [nvdisasm, "--print-code", "--print-line-info-inline", cubin]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers = dict(re.findall(r"entry function '(\w+)'[\s\S]*?Used (\d+) registers", report))
    return {
        name: Compiled(int(registers[name]), code) for name, code in _functions(listing) if name in registers
    }


def _functions(listing: str) -> Iterator[tuple[str, list[Instruction]]]:
    """Yield each function's instructions from nvdisasm's listing, where lines of source stand before their code."""
    for section in re.split(r"\n\t\.section\t(?=\.text\.)", listing)[1:]:
        name = section.removeprefix(".text.").split(",", 1)[0]
        code, frames, where, block = [], list[str](), "", 0
        for line in section.splitlines():
            if match := re.search(r'^\t//## File "(.*?)", line (\d+)', line):
                frames.append(_scopes(match[1]).get(int(match[2]), "") if str(CSRC) in match[1] else "")
            elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line):
                if frames:
                    where, frames = " > ".join(reversed(frames)), []
                if match[1] != "NOP":
                    code.append(Instruction(match[1], block, where))
                block += bool(re.match(r"BRA|EXIT|RET|CALL|BSYNC|BAR", match[1]))
            else:
                block += line.startswith(".L_")
        yield name, code


@cache
def _scopes(path: str) -> dict[int, str]:
    """Return for each line of a source the heads of the braces around it, and the line."""
    found: dict[int, str] = {}
    open_: list[str] = []
    head = ""
    for number, full in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        line = "" if full.startswith("#") else full.split("//")[0]
        around = list(open_)
        for character in f"{line} ":
            if character == "{":
                open_.append(" ".join(head.split()))
                head = ""
            elif character == "}":
                open_ = open_[:-1]
                head = ""
            elif character == ";" and head.count("(") <= head.count(")"):
                head = ""
            else:
                head += character
        kept = [a for a, b in zip(around, open_, strict=False) if a == b]
        found[number] = " > ".join([*kept, " ".join(line.split())])
    return found


# ---- how often a line runs -------------------------------------------------------------------------------


class Rule(NamedTuple):
    """Lines whose place matches ``pattern`` run ``times`` as often; ``per`` opcodes ``op`` are one unrolled copy."""

    pattern: str
    times: float
    op: str = ""
    per: int = 1


def rules(rows: int, kernel: Kernel) -> list[Rule]:
    """Return how often lines run in a thread whose tile has ``rows`` rows of float32 maps at stride 8."""
    fresh, passes = rows / STRIDE, max(kernel.views, 1)
    quads = math.ceil(SHARED_PITCH // 4 * SHARED_COLUMNS / 32) * 32 / COLUMNS
    per_row = r"for \(int y = 0; y < tile_?\.rows; .*"
    return [
        Rule(r"source_in<int64_t>|first_position_in<int64_t>|> namespace cuda > (namespace > )?}$", 0),
        Rule(r"static_cast<const (__half|Brain)\*>", 0),
        Rule(r"int64_t load_label.*long long", 0),
        Rule(per_row + "{? > ", rows),
        Rule(r"for \(int view = 0; view < task_\.views; \+\+view\)", passes),
        Rule(r"for \(int k = 0; k < (count|task_\.teachers); \+\+k\)", kernel.teachers),
        Rule(r"void finish_loss\(", 0),  # of one block
        Rule(r"void recentre\(\)", 0),  # never, but for the sharpest logits
        # Low-resolution rows are read one at a time, the first two together.
        Rule(r"void move\(.* > if \(row\.fresh > 0( \|\| disagree\(\))?\) > ", (fresh + 1) / rows),
        Rule(r"for \(int rows = .*rows > 0; --rows\) > ", (fresh + 2) / (fresh + 1)),
        # They are left one at a time, the last two at the end of the walk.
        Rule(r"leave_rows\(m, row\(m, y - 1\)\.low, at_row\.left\);.* > for \(int r = low", fresh / rows),
        Rule(r"at_row\.high - at_row\.low \+ 1\);.* > for \(int r = low", 2),
        Rule(r"i < maps\(\) \* kTileHeight; ", (kernel.maps + kernel.teachers) * 32 / COLUMNS),
        Rule(r"for \(int x = from; x < to", STRIDE, "LDS", 4),
        # Places of SharedRows, four by four, of which each thread has some.
        Rule(r"void move\(int m.*i < places_; .*> ", quads),
        # pseudo_label: four pixels of a thread at a time; equal neighbours are counted together.
        Rule(r"void write\(\).*for \(int y = threadIdx\.x / quads", rows / 4),
        Rule(r"void write\(\).*} else {|void write\(\).* > else >", 0),
        Rule(r"i < classes\(\) \* kCells / 4; .*\[i\] = \{0", CLASSES / 4, "STS"),
        Rule(r"i < classes\(\) \* kCells / 4; .*> ", CLASSES / 4, "LDS"),
        # region_mix: boxes, labels that are classes, channels first.
        Rule(r"void (take_mask|take_classes|spoil_no_class|store_interleaved)\(", 0),
        Rule(r"else if \(task\.region == Region::mask\)", 0),
    ]


def counts(compiled: Compiled, kernel: Kernel, rows: int) -> tuple[Counter[str], Counter[str]]:
    """Return the instructions that a thread runs for a pixel, by opcode and by place in the source.

    A basic block runs as often as most of its instructions' lines: copies of registers have no line of their own.
    """
    by_op, by_place = Counter[str](), Counter[str]()
    table = [(re.compile(rule.pattern), rule) for rule in rules(rows, kernel)]
    copies = {
        rule: sum(i.op.split(".")[0] == rule.op for i in compiled.instructions if pattern.search(i.where))
        / rule.per
        for pattern, rule in table
        if rule.op
    }
    blocks: dict[int, Counter[float]] = {}
    for instruction in compiled.instructions:
        times = 1.0 / rows
        for pattern, rule in table:
            if pattern.search(instruction.where):
                times *= rule.times / (copies[rule] if rule.op else 1)
        blocks.setdefault(instruction.block, Counter())[times] += "MOV" not in instruction.op
    for instruction in compiled.instructions:
        times = blocks[instruction.block].most_common(1)[0][0]
        by_op[instruction.op] += times
        by_place[instruction.where] += times
    return by_op, by_place


def per_pixel(by_op: Counter[str], card: Card) -> dict[str, float]:
    """Return the cycles that a scheduler's parts need for a warp's pixel: issue, and each pipe."""
    cycles = Counter[str](issue=sum(by_op.values()))
    for op, times in by_op.items():
        if re.match(r"FFMA|FADD|FMUL|IMAD", op):
            cycles["fma"] += card.fma_cycles * times
        elif op.startswith("MUFU"):
            cycles["special"] += 8 * times
        elif re.match(r"LD[GSC]|ST[GS]|ATOM|RED", op):
            cycles["load/store"] += 4 * times
        elif not re.match(r"U|B(RA|SSY|SYNC|AR)|EXIT|CALL|RET|WARPSYNC|D", op):
            cycles["integer"] += 2 * times
    return dict(cycles)


# ---- time ------------------------------------------------------------------------------------------------


def shared_bytes(kernel: Kernel, rows: int) -> int:
    """Return the dynamic shared memory of a block, as the layouts of csrc/cuda have it."""
    source, row = 12, 16  # bytes of a Source and a Row
    shared_rows = 12 * SHARED_PITCH * SHARED_COLUMNS
    if kernel.gradients:
        maps = kernel.gradients + kernel.teachers
        tables = row * maps * 32 + source * maps * COLUMNS + 4 * kernel.gradients * (COLUMNS + 1)
        lines = 4 * CLASSES * kernel.gradients * (COLUMNS + 1)
        return 16 * COLUMNS + tables + shared_rows * kernel.teachers + lines
    if kernel.views:
        mean = kernel.views * ("ELb1E" in kernel.pattern)
        room = max(mean * shared_rows, 4 * CLASSES * 128)  # the histogram takes the place of the views
        return row * kernel.views * rows + mean * source * COLUMNS + 5 * rows * COLUMNS + room
    return row * rows * (not kernel.pixels) + 4 * CLASSES**2 * (kernel.name == "confusion_matrix")


def resident(card: Card, registers: int, shared: int, threads: int) -> int:
    """Return how many blocks of a kernel a multiprocessor holds."""
    warps = threads // 32
    by_registers = 65536 // (-(-registers // 8) * 8 * 32 * warps)
    by_shared = card.shared_kib * 1024 // (shared + 1024)
    return min(card.warps // warps, by_registers, by_shared, 32)


def tile_rows(kernel: Kernel, card: Card, batch: int) -> int:
    """Return the height of tiles that choose_tiles takes."""

    def cost(rows: int) -> int:
        by_shared = card.shared_kib * 1024 // (shared_bytes(kernel, rows) + 1024)
        at_once = card.sms * max(1, min(kernel.blocks, by_shared))
        return -(-tiles(rows, batch) // at_once) * (rows + 4)

    return min((rows for rows in range(32, 7, -1) if shared_bytes(kernel, rows) <= 48 * 1024), key=cost)


def tiles(rows: int, batch: int) -> int:
    """Return the number of tiles of ``rows`` rows."""
    return batch * (WIDTH // COLUMNS) * -(-HEIGHT // rows)


def finish_us(compiled: Compiled, card: Card) -> float:
    """Return the time of finish_kernel: one thread's instructions in series, and two trips to the L2 cache."""
    kernel = FINISH
    by_op, _ = counts(compiled, kernel, 1)
    return (4 * sum(by_op.values()) + 2 * 500) / card.ghz / 1e3


def predict(kernel: Kernel, compiled: Compiled, card: Card, batch: int, finish: float) -> dict[str, Any]:
    """Return a row of the table: registers, shared memory, occupancy, cycles of a pixel, and the time."""
    rows = kernel.pixels or tile_rows(kernel, card, batch)
    threads = 64 if kernel.pixels else COLUMNS
    shared = shared_bytes(kernel, rows)
    blocks = resident(card, compiled.registers, shared, threads)
    by_op, _ = counts(compiled, kernel, rows)
    cycles = per_pixel(by_op, card)
    pixels = batch * HEIGHT * WIDTH
    share = tiles(rows, batch) / card.sms
    rounding = 1.0 if kernel.pixels else math.ceil(share) / share
    busiest = max(cycles, key=lambda part: cycles[part])
    work_us = pixels / 32 * cycles[busiest] / (card.sms * 4 * card.ghz * 1e3) / REACHED * rounding
    memory_us = pixels * kernel.bytes_per_pixel / (card.tb_per_s * 1e6) / REACHED_MEMORY
    return {
        "kernel": kernel.name,
        "batch": batch,
        "registers": compiled.registers,
        "shared_bytes": shared,
        "blocks": blocks,
        "warps": blocks * threads // 32,
        "rows": rows,
        "issue_per_pixel": round(cycles["issue"], 1),
        "bound": "memory" if memory_us > work_us else busiest,
        "us": round(max(work_us, memory_us) + (finish if kernel.gradients else 0.0), 1),
    }


def rows_of(card_name: str, compiled: dict[str, Compiled]) -> list[dict[str, Any]]:
    """Return the rows of one card, at batch 1 and 4."""
    card = CARDS[card_name]
    finish = finish_us(compiled[FINISH.name], card)
    return [
        {"card": card_name, **predict(kernel, compiled[kernel.name], card, batch, finish)}
        for kernel in KERNELS
        for batch in (1, 4)
    ]


def compile_kernels(arch: str, kernels: Sequence[Kernel]) -> dict[str, Compiled]:
    """Return the compiled ``kernels`` by name."""
    files = {source: compile_file(source, arch) for source in dict.fromkeys(k.source for k in kernels)}
    found = {}
    for kernel in kernels:
        matching = [code for name, code in files[kernel.source].items() if re.search(kernel.pattern, name)]
        if len(matching) != 1:
            raise LookupError(f"{kernel.name}: {len(matching)} kernels match {kernel.pattern!r}, expected 1")
        found[kernel.name] = matching[0]
    return found


def table(document: dict[str, Any]) -> str:
    """Return the table of the model: a row a kernel, a column a card."""
    rows = document["rows"]
    times = {(r["card"], r["batch"], r["kernel"]): r for r in rows}
    header = ["kernel", "registers", "shared KiB", "warps", "instructions a pixel", "bound by"]
    header += [f"{card}, batch {batch}" for card in CARDS for batch in (1, 4)]
    lines = []
    for name in dict.fromkeys(r["kernel"] for r in rows):
        first = times[next(iter(CARDS)), 1, name]
        line = [name, first["registers"], first["shared_bytes"] / 1024, first["warps"]]
        line += [f"{first['issue_per_pixel']:.0f}", first["bound"]]
        line += [f"{times[card, batch, name]['us']:.0f} µs" for card in CARDS for batch in (1, 4)]
        lines.append(line)
    return harness.table(header, lines)


def main() -> None:
    """Compile for every card, predict, write the JSON and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source", action="store_true", help="list where each kernel's instructions come from"
    )
    arguments = parser.parse_args()
    rows = []
    for name, card in CARDS.items():
        compiled = compile_kernels(card.arch, [*KERNELS, FINISH])
        rows += rows_of(name, compiled)
        for kernel in KERNELS if arguments.source and name == "H200" else ():
            print(f"\n{kernel.name}: instructions a pixel, and their line")
            places = counts(compiled[kernel.name], kernel, kernel.pixels or tile_rows(kernel, card, 1))[1]
            for place, times in places.most_common(40):
                print(f"{times:7.1f}  {place[-120:]}")
    document = {
        "measured": False,
        "command": "python benchmarks/cuda_model.py",
        "nvcc": nvcc_release(),
        "rows": rows,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(table(document))


if __name__ == "__main__":
    main()
