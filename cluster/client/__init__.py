"""The Python client of a server, and the answers that it gives. Imports `base` and the summary of `run`; does not know
`service` or `report`."""

from pimserve.cluster.base.rpc.security import TlsFiles
from pimserve.cluster.client.calls import RunFilter, ServiceError
from pimserve.cluster.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "RunFilter", "ServiceError", "TlsFiles"]
