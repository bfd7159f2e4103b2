"""A digest of a growing stream of bytes that does not depend on how it was cut, and whose state is plain data."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

_BLOCK = 2**13


class ChainDigest:
    """sha256 over blocks of 8,192 bytes, each together with the digest of all before it.

    (The state of one long sha256 cannot be written down, which a checkpoint has to.)
    """

    def __init__(self) -> None:
        self._chain = bytes(32)
        self._rest = b""

    def update(self, data: memoryview) -> None:
        """Take more bytes."""
        data = data.cast("B")
        if self._rest:
            missing = _BLOCK - len(self._rest)
            self._rest += data[:missing]
            data = data[missing:]
            if len(self._rest) < _BLOCK:
                return
            self._chain = hashlib.sha256(self._chain + self._rest).digest()
            self._rest = b""
        whole = len(data) - len(data) % _BLOCK
        for at in range(0, whole, _BLOCK):
            block = hashlib.sha256(self._chain)
            block.update(data[at : at + _BLOCK])
            self._chain = block.digest()
        self._rest = bytes(data[whole:])

    def hexdigest(self) -> str:
        """Digest of all bytes so far."""
        return hashlib.sha256(self._chain + self._rest).hexdigest()

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        return {"chain": self._chain.hex(), "rest": base64.b64encode(self._rest).decode()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._chain = bytes.fromhex(state["chain"])
        self._rest = base64.b64decode(state["rest"])
