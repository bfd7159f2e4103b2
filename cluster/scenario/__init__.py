"""The scenario document, and what becomes of it: models placed on devices, pools, links. Imports `base`."""
