"""The routers by name: those without parameters, those of `routers/`, which have some, and those of other packages.

Packages add routers through the entry point group `pimserve.routers`; each names a class, or a function without
arguments that returns a router (`router_protocol.py`).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag

from pimserve.errors import InputError
from pimserve.scheduler import routers
from pimserve.scheduler.blind_routers import Random, RoundRobin
from pimserve.scheduler.count_routers import LeastOutstanding, PowerOfTwo
from pimserve.scheduler.plugin_router import plugin_router
from pimserve.scheduler.router_protocol import Router
from pimserve.scheduler.router_spec import RouterSpec
from pimserve.scheduler.view_routers import LeastKv, LeastTokens, SessionAffinity


def _specs() -> dict[str, type[RouterSpec]]:
    """Routers with parameters by name."""
    names = (module.name for module in pkgutil.iter_modules(routers.__path__))
    found: list[type[RouterSpec]] = [import_module(f"{routers.__name__}.{name}").SPEC for name in names]
    return {get_args(spec.model_fields["name"].annotation)[0]: spec for spec in found}


def _without_parameters(setting: object) -> object:
    """The name alone of a router that has no parameters, where it is given as a mapping."""
    if not isinstance(setting, str | Mapping | RouterSpec):
        raise ValueError("must be a router's name, or a mapping of its name and parameters")  # noqa: TRY004 pydantic wants ValueError
    name = setting.get("name") if isinstance(setting, Mapping) else None
    if not isinstance(setting, Mapping) or not isinstance(name, str) or name in _SPECS:
        return setting
    if len(setting) == 1:
        return name
    if name in _ROUTERS:
        raise ValueError(f"{name} has no parameters: give its name alone")
    return setting


ROUND_ROBIN = "round_robin"
_SPECS = _specs()
_ROUTERS: Mapping[str, Callable[[int], Router]] = {  # given a seed
    ROUND_ROBIN: lambda _: RoundRobin(),
    "random": Random,
    "least_outstanding": lambda _: LeastOutstanding(),
    "least_tokens": lambda _: LeastTokens(),
    "least_kv": lambda _: LeastKv(),
    "power_of_two": PowerOfTwo,
    "session_affinity": lambda _: SessionAffinity(),
    **{name: spec(name=name).make for name, spec in _SPECS.items()},
}
BUILT_IN_ROUTERS = frozenset(_ROUTERS)
if TYPE_CHECKING:
    RouterSetting = str | RouterSpec
else:
    RouterSetting = Annotated[
        Annotated[str, Tag("<name>")]
        | Annotated[Union[tuple(_SPECS.values())], Field(discriminator="name"), Tag("<settings>")],  # noqa: UP007
        Discriminator(lambda setting: "<name>" if isinstance(setting, str) else "<settings>"),
        BeforeValidator(_without_parameters),
    ]
"""A router's name, or a mapping of its name and parameters."""


def router_setting(document: str | Mapping[str, Any]) -> RouterSetting:
    """What was written down as such a document."""
    return document if isinstance(document, str) else _SPECS[document["name"]].model_validate(document)


def router_name(setting: RouterSetting) -> str:
    """What such a router is called."""
    return setting if isinstance(setting, str) else setting.name


def make_router(setting: RouterSetting, seed: int = 0) -> Router:
    """The router of that name, or with those parameters; of those that draw at random, the one that does so by `seed`.

    Raises:
        InputError: there is no such router, or it does not load.
    """
    if not isinstance(setting, str):
        return setting.make(seed)
    if setting in _ROUTERS:
        return _ROUTERS[setting](seed)
    registered = entry_points(group="pimserve.routers")
    if setting in registered.names:
        return plugin_router(setting, registered[setting])
    known = ", ".join([*_ROUTERS, *sorted(registered.names)])
    raise InputError("scheduler.router", f"unknown router {setting!r} (known: {known})")


def goes_by_prefixes(setting: RouterSetting) -> bool:
    """Whether it is one of those here that go by what replicas have in their prefix caches."""
    known = not isinstance(setting, str) or setting in _ROUTERS
    return known and bool(getattr(make_router(setting), "prefixes", ""))
