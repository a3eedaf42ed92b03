"""Diagnosis of the installation: versions, hardware, operators, and advice on missing parts."""

from __future__ import annotations

from typing import Any

import udas_fast
from udas_fast.training.environment import environment


def diagnose() -> str:
    """Return the text of ``udas-fast doctor``."""
    env, build = environment(), udas_fast.build_info()
    lines = [
        f"udas_fast    {env['udas_fast']} on Python {env['python']}, {env['os']}",
        f"torch        {env['torch']}, CUDA {env['torch_cuda'] or 'none (CPU-only build)'}",
        f"DALI         {env['dali'] or 'not installed; torch workers read the images'}",
        f"CPU          {env['cpu']}, {env['cpu_count']} cores, {env['threads']} threads, {env['cpu_capability']}",
        f"GPU          {', '.join(env['gpus']) or 'none that torch can use'}",
        f"extension    {_extension(build)}",
        "",
        f"{'operator':<26}{'CPU':<12}CUDA",
        *(f"{name:<26}{where['cpu']:<12}{where['cuda']}" for name, where in build["operators"].items()),
    ]
    advice = _advice(env, build)
    return "\n".join([*lines, "", *(advice or ["Nothing is missing for this machine."])])


def _extension(build: dict[str, Any]) -> str:
    if not build["extension"]:
        return f"missing: {build['reason']}"
    cuda = (
        f"CUDA {build['cuda']} for {', '.join(build['archs'])}"
        if build["cuda"]
        else f"no CUDA: {build['cuda_reason']}"
    )
    return f"{build['simd']} on this CPU; {cuda}"


def _advice(env: dict[str, Any], build: dict[str, Any]) -> list[str]:
    if not build["extension"]:
        return [
            "The compiled extension is missing, so every operator runs its plain PyTorch form: run `pip install .` "
            "(with --no-build-isolation where pip cannot find your torch)."
        ]
    if env["gpus"] and not build["cuda"]:
        return [
            f"There is a GPU but no CUDA operators ({build['cuda_reason']}): install a CUDA toolkit of torch's "
            f"major version {env['torch_cuda']} and run `UDAS_FAST_CUDA=1 pip install --no-build-isolation .`"
        ]
    return []
