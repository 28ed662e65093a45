"""`ftj plan`: what a job will take, before there is a cluster."""

from finetune_cli.plan.command import PlanOptions, list_gpus, plan
from finetune_cli.plan.compared import prices_of
from finetune_cli.plan.facts import Guesses

__all__ = ["Guesses", "PlanOptions", "list_gpus", "plan", "prices_of"]
