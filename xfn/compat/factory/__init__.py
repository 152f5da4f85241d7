"""``xformers.factory`` and ``xformers.helpers.hierarchical_configs`` under their own names."""

from .block_factory import xFormerDecoderBlock as xFormerDecoderBlock
from .block_factory import xFormerEncoderBlock as xFormerEncoderBlock
from .build import build as build
from .build import params_from_state_dict as params_from_state_dict
from .config import ResidualNormStyle as ResidualNormStyle
from .config import xFormerConfig as xFormerConfig
from .config import xFormerDecoderConfig as xFormerDecoderConfig
from .config import xFormerEncoderConfig as xFormerEncoderConfig
from .config import xFormerStackConfig as xFormerStackConfig
from .hierarchical_configs import BasicLayerConfig as BasicLayerConfig
from .hierarchical_configs import get_hierarchical_configuration as get_hierarchical_configuration
from .model_factory import xFormer as xFormer
from .weight_init import xFormerWeightInit as xFormerWeightInit
