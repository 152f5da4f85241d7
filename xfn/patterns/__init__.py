"""Patterns: which query may see which key, one coefficient at a time.

Every function is pure and gives booleans ``[M, N]``, True where attention is allowed, or says what else it gives.
They combine with ``|``, ``&`` and ``~``; attention takes one as its mask, and one over blocks is a block layout.

    causal_1d(4)   local_1d(4, 3)   global_token([1, 0, 0, 0])   axial_2d(2, 2)   swin(2, 4, 2)[:4, :4]
    1 0 0 0        1 1 0 0          1 1 1 1                      1 1 1 0          1 1 0 0
    1 1 0 0        1 1 1 0          1 0 0 0                      1 1 0 1          1 1 0 0
    1 1 1 0        0 1 1 1          1 0 0 0                      1 0 1 1          0 0 1 1
    1 1 1 1        0 0 1 1          1 0 0 0                      0 1 1 1          0 0 1 1
"""

from .blocks import bigbird as bigbird
from .blocks import expand as expand
from .blocks import fixed as fixed
from .blocks import gather as gather
from .blocks import longformer as longformer
from .blocks import pool as pool
from .blocks import variable as variable
from .grid import axial_2d as axial_2d
from .grid import axial_nd as axial_nd
from .grid import dilated_2d as dilated_2d
from .grid import horizontal_axial_2d_distance as horizontal_axial_2d_distance
from .grid import local_2d as local_2d
from .grid import local_2d_distance as local_2d_distance
from .grid import local_2d_gaussian as local_2d_gaussian
from .grid import local_nd as local_nd
from .grid import local_nd_distance as local_nd_distance
from .grid import local_nd_gaussian as local_nd_gaussian
from .grid import swin as swin
from .grid import vertical_axial_2d_distance as vertical_axial_2d_distance
from .sequence import alibi as alibi
from .sequence import alibi_slopes as alibi_slopes
from .sequence import causal_1d as causal_1d
from .sequence import global_token as global_token
from .sequence import local_1d as local_1d
from .sequence import random as random
from .sequence import random_from_probability as random_from_probability
