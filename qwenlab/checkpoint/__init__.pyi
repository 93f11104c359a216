# The functions `anatomy` and `open` are `qwenlab.anatomy` and `qwenlab.open`: here those names are their modules.
from .anatomy.anatomy import Anatomy as Anatomy, catalogue as catalogue
from .checkpoint import Checkpoint as Checkpoint, Facts as Facts
from .config import TextConfig as TextConfig, read_config as read_config
from .decoder import Decoder as Decoder, decoder_of as decoder_of
from .families import Family as Family, family_of as family_of
from .mtp_head import MtpHead as MtpHead
from .sites import Site as Site, find_sites as find_sites, sites as sites
from .source import toys as toys
from .streaming.cost import StreamingCost as StreamingCost, streaming_cost as streaming_cost
