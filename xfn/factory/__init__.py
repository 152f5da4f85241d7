"""From values to models: configs, what builds them, and what reads and writes them."""

from .build import Model as Model
from .build import build as build
from .config import Decoder as Decoder
from .config import Encoder as Encoder
from .config import Patch as Patch
from .config import Simplicial as Simplicial
from .config import Transformer as Transformer
from .dicts import from_dict as from_dict
from .dicts import to_dict as to_dict
from .hierarchical import Level as Level
from .hierarchical import hierarchical as hierarchical
from .summary import Row as Row
from .summary import Summary as Summary
from .summary import costs as costs
from .summary import summary as summary
