"""Studies on any task: UDAS 4.3's of its parts (ablation) and of labels (labels), and all methods (methods).

Reads like its folder: a plan of runs (:mod:`plan`), the runs themselves, each an ordinary run folder
(:mod:`runner`), their scores (:mod:`results`), and what is shown of them (:mod:`tables`, :mod:`plots`).
"""

from udas_fast.tools.study.plan import STUDIES, Plan, Run, Task, plan_study
from udas_fast.tools.study.study import run_study

__all__ = ["STUDIES", "Plan", "Run", "Task", "plan_study", "run_study"]
