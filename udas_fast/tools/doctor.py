"""Diagnosis of the installation: versions, hardware, operators, and advice on missing parts."""

from __future__ import annotations

from typing import Any

import udas_fast
from udas_fast._build import BUILD_HINT
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
    if not build["cuda"]:
        return f"{build['simd']} on this CPU; {build['cuda_reason']}"
    driver = f"driver for CUDA up to {build['driver']}" if build["driver"] else "no NVIDIA driver"
    return f"{build['simd']} on this CPU; CUDA {build['cuda']} for {', '.join(build['archs'])}; {driver}"


def _advice(env: dict[str, Any], build: dict[str, Any]) -> list[str]:
    if not build["extension"]:
        return [f"Every operator runs its plain PyTorch form, slower and with more memory: {BUILD_HINT}."]
    if env["gpus"] and build["cuda_reason"]:
        return [f"Plain PyTorch runs on the GPU: {build['cuda_reason']}."]
    return []
