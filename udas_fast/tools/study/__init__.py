"""Studies on any task: the parts of UDAS (ablation), its need for labels (labels), and all methods (methods).

A study is a plan of runs (:mod:`plan`, :mod:`settings`), the runs themselves, each an ordinary run folder
(:mod:`runner`), their scores (:mod:`collect`), and tables and figures of them (:mod:`tables`, :mod:`figures`).
"""

from udas_fast.tools.study.plan import STUDIES, StudyPlan, StudyRow, StudyRun, Task, plan_study
from udas_fast.tools.study.runner import run_study

__all__ = ["STUDIES", "StudyPlan", "StudyRow", "StudyRun", "Task", "plan_study", "run_study"]
