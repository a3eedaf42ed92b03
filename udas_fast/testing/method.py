"""All checks of a method in one call."""

from __future__ import annotations

from udas_fast.recipes import Recipe, get_recipe
from udas_fast.testing.checks import assert_reads_its_yaml, assert_replays, assert_resumes, assert_rolls_back
from udas_fast.testing.phases import SIZE, STEPS, random_phase, tiny
from udas_fast.testing.processes import assert_processes_agree
from udas_fast.testing.watch import assert_no_host_sync, assert_seeded

CHECKS = (
    assert_reads_its_yaml,
    assert_seeded,
    assert_no_host_sync,
    assert_replays,
    assert_resumes,
    assert_rolls_back,
    assert_processes_agree,
)


def check_method(recipe: Recipe | str, *, size: tuple[int, int] = SIZE) -> None:
    """Assert that the methods of ``recipe`` keep the rules for training steps.

    Every stage runs with a narrow network on random images, on the CPU, some seconds for each of these checks:

    - the configuration is the same after it was written as YAML and read (:func:`assert_reads_its_yaml`);
    - random numbers come from ``ctx.generator`` in ``prepare_batch`` (:func:`assert_seeded`);
    - no step waits for the device (:func:`assert_no_host_sync`);
    - a CUDA graph can stand for the steps (:func:`assert_replays`);
    - a stopped stage goes on to the same bits (:func:`assert_resumes`);
    - a skipped step leaves no trace (:func:`assert_rolls_back`);
    - two processes train as one does (:func:`assert_processes_agree`).

    Whether the numbers are right is for a test of the method's own, with :func:`backward_passes`.

    Args:
        recipe: the recipe as users run it, or its name.
        size: (H, W) of the images.

    Raises:
        AssertionError: names every check that failed, and why.
        InputError: a step that cannot run.
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    recipe = tiny(recipe, STEPS, size)
    for index in range(len(recipe.stages)):
        random_phase(recipe, index).take_step()  # what fails here is no matter of the checks
    failures = []
    for check in CHECKS:
        try:
            check(recipe)
        except AssertionError as error:
            failures.append(f"- {check.__name__}: {error}")
    if failures:
        raise AssertionError(
            "\n".join([f"{recipe.name}: {len(failures)} of {len(CHECKS)} checks failed", *failures])
        )
