"""README and docs stay true: their commands parse, its operator example runs, its tables are the committed results."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from udas_fast import cli
from udas_fast.recipes import list_recipes

MODULE = "-m udas_fast"  # as torchrun starts it
ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def _commands() -> list[str]:
    pages = [README, *(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))]
    blocks = [block for page in pages for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)]
    lines = [line.split(" #")[0] for block in blocks for line in block.splitlines()]
    lines += [
        line.replace(MODULE, "\nudas-fast").split("\n")[1]
        for line in lines
        if MODULE in line and "$" not in line
    ]
    inline = [command for page in pages for command in re.findall(r"`(udas-fast [^`]+)`", page)]
    return sorted({line.strip() for line in [*lines, *inline] if line.startswith("udas-fast ")})


@pytest.mark.slow
@pytest.mark.parametrize("command", _commands())
def test_commands_parse(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    group = typer.main.get_command(cli.app)
    context = group.commands[name].make_context(name, arguments)
    assert context.command.name == name


def test_readme_is_short() -> None:
    assert len(README.encode()) <= 7000


def test_the_examples_are_short() -> None:
    """Lines of install, commands, Python (which test_docs runs) and operators."""
    blocks = [*_blocks("bash"), *_blocks("python")]
    lines = [len([line for line in block.splitlines() if line]) for block in blocks]
    assert all(found <= most for found, most in zip(lines, (3, 4, 10, 5), strict=True)), lines


def test_the_methods_are_recipes() -> None:
    table = README[README.index("## Which method") : README.index("[Methods]")]
    names = set(re.findall(r"`(\w+)`", table))
    assert names <= set(list_recipes())
    assert len(names) > 20


def test_the_picture_is_small() -> None:
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert (ROOT / picture).stat().st_size < 150_000


def test_the_operator_example_runs() -> None:
    example = next(block for block in _blocks("python") if "ops.pseudo_label" in block)
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randint(0, 256, (2, 1, 3, 48, 64), dtype=torch.uint8, generator=generator)
    names = {
        "logits": torch.randn(1, 19, 6, 8, generator=generator, requires_grad=True),
        "label": torch.randint(0, 19, (1, 48, 64), generator=generator),
        **{f"view_{k}": torch.randn(1, 19, 6, 8, generator=generator) for k in (1, 2, 3)},
        "source": source,
        "target": target,
        "source_label": torch.zeros(1, 48, 64, dtype=torch.uint8),
        "target_label": torch.ones(1, 48, 64, dtype=torch.uint8),
        "boxes": torch.tensor([[0, 0, 32, 48]], dtype=torch.int32),
    }
    exec(example, names)
    assert names["loss"].isfinite()
    assert names["label"].shape == names["confidence"].shape == (1, 720, 1280)
    assert torch.equal(names["image"][..., :32], source[..., :32])
    assert torch.equal(names["mixed"][..., 32:], torch.ones(1, 48, 32, dtype=torch.uint8))


@pytest.mark.slow
def test_tables_are_the_committed_results() -> None:
    command = [sys.executable, "benchmarks/tables.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
