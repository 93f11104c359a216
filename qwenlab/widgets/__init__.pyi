from .explorer import Explorer as Explorer
from .layers import explore_layers as explore_layers
from .maps import explore_maps as explore_maps
from .routing import explore_routing as explore_routing
from .strip import strip as strip
