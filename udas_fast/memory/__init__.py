"""Memory requirements of a recipe and how to reduce them: `udas-fast plan` and ``memory.budget``."""

from udas_fast.memory.choose import POLICIES, advice, choose_memory
from udas_fast.memory.prediction import Peak, predict
from udas_fast.memory.table import CARDS, Row, plan, plan_table

__all__ = [
    "CARDS",
    "POLICIES",
    "Peak",
    "Row",
    "advice",
    "choose_memory",
    "plan",
    "plan_table",
    "predict",
]
