"""The dashboards."""

from boards.comparison import COMPARISON
from boards.devices import DEVICES
from boards.overview import OVERVIEW
from boards.replicas import REPLICAS
from boards.simulator import SIMULATOR

BOARDS = (OVERVIEW, REPLICAS, DEVICES, COMPARISON, SIMULATOR)
