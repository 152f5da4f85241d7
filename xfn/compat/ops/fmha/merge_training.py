"""Merging under the names of its old module for training."""

from .merge import Partial as Partial
from .merge import memory_efficient_attention_partial_autograd as memory_efficient_attention_partial_autograd
from .merge import merge_attentions_autograd as merge_attentions_autograd
