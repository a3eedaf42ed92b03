"""``python run.py FOLDER COUNT KIND…``: a line of JSON for each kind, with what became of its mutated inputs.

A process of its own, so that a crash or a hang is seen from outside: the case that is under way is always in
``FOLDER/at``. Cases are numbered, and a number is all that is needed to have one again.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from pathlib import Path

import files
import operators
import settings
import states

from udas_fast.errors import InputError

KINDS = {
    "recipe": settings.recipe_case,
    "run file": settings.run_file_case,
    "setting": settings.setting_case,
    "image": files.image_case,
    "label": files.label_case,
    "classes": files.classes_case,
    "format": files.format_case,
    "folder": files.folder_case,
    "manifest": files.manifest_case,
    "model": states.model_case,
    "weights": states.weights_case,
    "checkpoint": states.checkpoint_case,
    "operator": operators.operator_case,
    "raw operator": operators.raw_operator_case,
}


# Python itself refuses an operator's argument of a wrong kind.
SENTENCES = ((InputError,), (InputError, TypeError))


def main(folder: Path, count: int, kinds: list[str]) -> bool:
    """Run cases 0 to ``count`` - 1 of each kind; errors that are no sentence are listed by case.

    Returns whether there was none.
    """
    right = True
    with (folder / "at").open("w") as at:
        for kind in kinds:
            place = folder / kind.replace(" ", "_")
            place.mkdir()
            run = KINDS[kind](place)
            outcomes = {"accepted": 0, "refused": 0}
            wrong: dict[int, str] = {}
            for case in range(count):
                at.seek(0)
                at.write(f"{kind} {case}    ")
                at.flush()
                try:
                    run(case)
                    outcomes["accepted"] += 1
                except SENTENCES[kind == "operator"] as error:
                    outcomes["refused"] += 1
                    # Lines that convert a file may follow.
                    sentence = str(error).partition("\n    import torch")[0]
                    if "\n" in sentence or len(str(error)) > 1200:
                        wrong[case] = f"not one sentence: {error!r}"
                except Exception:
                    wrong[case] = traceback.format_exc(limit=-4)
            right = right and not wrong
            print(json.dumps({"kind": kind, "outcomes": outcomes, "wrong": wrong}), flush=True)
    return right


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(not main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or list(KINDS)))
