from .arithmetic import arithmetic_text as arithmetic_text
from .batching import Batch as Batch, batches as batches
from .cutting import passages as passages
from .held_out import DOMAINS as DOMAINS, texts as texts
from .reading import read as read
from .recall import CHANCE as CHANCE, recall_text as recall_text, recall_texts as recall_texts
from .scoring import recall_accuracy as recall_accuracy, score as score, teacher_forced as teacher_forced
