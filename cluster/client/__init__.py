"""The Python client of a server, and the answers that it gives. Imports `base`; does not know `service` or `report`."""

from pimserve.cluster.client.client import AsyncClient, Client, ServiceError, TlsFiles

__all__ = ["AsyncClient", "Client", "ServiceError", "TlsFiles"]
