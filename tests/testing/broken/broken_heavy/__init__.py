"""A plugin whose registration imports torch, which every listing would wait for."""

import torch  # noqa: F401
from broken_plugins.options import Silent

from usdcore.hooks import hookimpl


@hookimpl
def usdcore_register(register):
    register.strategy(
        name="heavy", config=Silent, implementation="broken_plugins.static:Ranked", summary="registration with torch"
    )
