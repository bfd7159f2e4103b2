"""The routers with parameters, a file for each, found by being here: its `SPEC` is as `router_spec.py` describes."""
