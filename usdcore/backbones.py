"""The models that timm can make: its own, and the backbones of plugins, which it learns of when their modules are
imported. Nothing else asks timm which models there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import timm

from usdcore.errors import UsdcoreError, brief, nearest
from usdcore.hooks import registry

if TYPE_CHECKING:
    from usdcore.plans import Base


def backbones() -> dict[str, str]:
    """Import the module of every registered backbone (once: Python keeps them), so that timm knows them all.

    Returns why those that can't be used can't, by name: one plugin's failure is no other model's.
    """
    failures = {}
    for name in registry().names("backbone"):
        try:
            found = registry().load("backbone", name)
        except UsdcoreError as error:
            failures[name] = str(error)
            continue
        if name not in timm.list_models() or timm.model_entrypoint(name) is not found:
            plugin = registry().plugin("backbone", name)
            failures[name] = (
                f"the function that {plugin.distribution} {plugin.version} registered as the backbone {name!r} is not "
                f"what timm builds under that name; give it timm.models.register_model and a name that timm has not"
            )
    return failures


def require_model(name: str) -> None:
    """Errors: a name that timm can't make, with the nearest ones; a backbone that can't be used, with the reason."""
    failures = backbones()
    if name in failures:
        raise UsdcoreError(failures[name])
    known = timm.list_models()
    if name not in known:
        msg = f"timm has no model named {brief(name)!r}; {nearest(name, known)}{registry().absent()}"
        raise UsdcoreError(msg)


def require_base(base: Base) -> None:
    """The same for a plan's base. Errors also: a backbone that is not installed, with the package that it came from."""
    failures = backbones()
    if base.distribution is not None and base.name not in failures and base.name not in timm.list_models():
        msg = (
            f"the model needs the backbone {base.name!r} of the package {base.distribution} {base.version or ''}, "
            f"which is not installed here. Plugins are code: where you trust it, pip install {base.distribution}"
        )
        raise UsdcoreError(msg)
    require_model(base.name)


def with_origin(base: Base) -> Base:
    """The base, with the package that its name is from where that is a plugin's backbone."""
    if base.name not in registry().names("backbone"):
        return base
    plugin = registry().plugin("backbone", base.name)
    return base.model_copy(update={"distribution": plugin.distribution, "version": plugin.version})
