from .arithmetic import arithmetic_text as arithmetic_text
from .batching import Batch as Batch, batches as batches
from .cutting import passages as passages
from .encoding import text_task as text_task
from .grading import TaskBatch as TaskBatch, grade as grade, task_batches as task_batches
from .harness import harness_scores as harness_scores
from .held_out import DOMAINS as DOMAINS, texts as texts
from .measuring import measure as measure
from .mqar import mqar as mqar
from .needle import needle as needle
from .questions import recall_questions as recall_questions
from .reading import read as read
from .recall import CHANCE as CHANCE, recall_text as recall_text, recall_texts as recall_texts
from .repeating import copying as copying, induction as induction
from .scoring import recall_accuracy as recall_accuracy, score as score, teacher_forced as teacher_forced
from .task import Task as Task
from .token_classes import CLASSES as CLASSES, FUNCTION_WORDS as FUNCTION_WORDS, token_classes as token_classes
from .token_losses import losses as losses
