"""How hypothesis searches, in every test."""

import os

import hypothesis

# Examples share the cores with the rest of the suite, so hypothesis's deadline per example would only flake.
hypothesis.settings.register_profile("default", deadline=None)
# In CI the same examples every time: a red build is about the change, and can be repeated.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")
