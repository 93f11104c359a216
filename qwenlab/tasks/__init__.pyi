from .arithmetic import arithmetic_text as arithmetic_text
from .encoding import passages as passages, text_task as text_task
from .feeding import feed as feed
from .grading import TaskBatch as TaskBatch, grade as grade, task_batches as task_batches
from .harness import harness_scores as harness_scores
from .held_out import DOMAINS as DOMAINS, texts as texts
from .measuring import losses as losses, measure as measure
from .recall import (
    recall_questions as recall_questions,
    recall_task as recall_task,
    recall_text as recall_text,
    recall_texts as recall_texts,
)
from .synthetic import copying as copying, induction as induction, mqar as mqar, needle as needle
from .task import Task as Task
from .token_classes import CLASSES as CLASSES, FUNCTION_WORDS as FUNCTION_WORDS, token_classes as token_classes
