"""The event-driven model of 3D AIMC chips: every operation of every token, scheduled on the chips' units.

It holds the cost plan (`walk`, `serving`) against the reference simulator and against contention, and serves no request
itself: `simulate` is its way in. It may import a chip's description, the network and its mapping, never the plan.
"""
