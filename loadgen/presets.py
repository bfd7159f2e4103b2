"""The embedded workload: statistics of the Azure LLM inference trace 2023, conversation (no trace rows).

Source: Patel et al., "Splitwise", ISCA 2024; data Azure/AzurePublicDataset (CC-BY-4.0, Microsoft), changed: only
derived statistics are kept. The whole trace holds 19,366 requests in 3,501.7 s; input p50/p90/p99/max/mean
1020/2735/4142/14050/1155 tokens, output 129/424/601/1000/211, rank correlation of the two 0.07 (drawn independently
here). Locally it is Poisson with a moving rate, hence the non-homogeneous Poisson process.

Rate: counts per two minutes over the first 30 minutes, put at the bin centres; after that the straight line to
the published count of the last, partial five-minute bin (768 in 201.7 s). The line gives the published total within
0.3 % (a test holds it). It lacks the bumps of the real second half: its index of dispersion is 14.5 in 60 s bins, the
trace's is 16.1.
Lengths: published p50, p90, p99 and max are knots; the other knots follow the shape of the first 30 minutes (modes
near 400, 1,050 and 4,080 input tokens, 100 and 400 output tokens), shifted until the mean is the published one.
"""

from pimserve.loadgen.arrivals import ArrivalSpec
from pimserve.loadgen.length_pairs import LengthsSpec
from pimserve.loadgen.lengths import QuantilesLength

# fmt: off
_RATE = (
    (0.0, 3.2), (60.0, 3.8), (180.0, 5.68), (300.0, 4.83), (420.0, 4.41), (540.0, 5.17), (660.0, 5.03), (780.0, 5.59),
    (900.0, 4.68), (1020.0, 4.9), (1140.0, 5.78), (1260.0, 5.78), (1380.0, 6.7), (1500.0, 6.53), (1620.0, 7.6),
    (1740.0, 7.74), (3300.0, 3.81), (3501.7, 3.81),
)
_INPUT = (
    (0.0, 2), (0.01, 40), (0.02, 120), (0.05, 180), (0.1, 300), (0.15, 375), (0.35, 422), (0.4, 720), (0.45, 960),
    (0.5, 1020), (0.6, 1068), (0.7, 1128), (0.75, 1185), (0.8, 1280), (0.85, 1690), (0.88, 2600), (0.9, 2735),
    (0.91, 2790), (0.925, 4070), (0.99, 4142), (0.995, 4165), (0.999, 4900), (1.0, 14050),
)
_OUTPUT = (
    (0.0, 7), (0.01, 16), (0.05, 36), (0.1, 46), (0.25, 75), (0.4, 95), (0.45, 108), (0.5, 129), (0.55, 150),
    (0.6, 178), (0.63, 215), (0.66, 360), (0.75, 392), (0.9, 424), (0.95, 455), (0.98, 555), (0.99, 601),
    (0.995, 650), (0.999, 930), (1.0, 1000),
)
# fmt: on

AZURE_CONV_2023_ARRIVAL = ArrivalSpec(process="nhpp", rate_series=_RATE)
AZURE_CONV_2023_LENGTHS = LengthsSpec(
    input=QuantilesLength(kind="quantiles", knots=_INPUT), output=QuantilesLength(kind="quantiles", knots=_OUTPUT)
)
