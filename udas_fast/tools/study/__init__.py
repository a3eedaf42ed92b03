"""Studies on any task: every table of the UDAS paper, DDM's, all methods, and UDAS without one of its parts.

A study is a plan of runs (:mod:`rows`, :mod:`plan`, :mod:`settings`), the runs themselves, each an ordinary run folder
(:mod:`runner`, :mod:`dry_run`), their scores (:mod:`collect`), and tables and figures of them (:mod:`tables`,
:mod:`figures`), with published lines beside ours (:mod:`paper`).
"""

from udas_fast.tools.study.dry_run import dry_run
from udas_fast.tools.study.plan import StudyPlan, StudyRun, plan_paper, plan_study
from udas_fast.tools.study.rows import STUDIES, StudyRow, Task
from udas_fast.tools.study.runner import run_studies

__all__ = [
    "STUDIES",
    "StudyPlan",
    "StudyRow",
    "StudyRun",
    "Task",
    "dry_run",
    "plan_paper",
    "plan_study",
    "run_studies",
]
