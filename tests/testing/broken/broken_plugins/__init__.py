"""Plugins of which each breaks one law, and three that break none: they prove that the kit can fail."""

from broken_plugins.options import Loose, Mute, Silent, Source
from usdcore.hooks import hookimpl

STRATEGIES = {
    "ranked": "static:Ranked",
    "gated": "static:Gated",
    "skipping": "dynamic:Skipping",
    "not-neutral": "static:NotNeutral",
    "meddling": "static:Meddling",
    "unread": "static:Unread",
    "forgetful": "static:Forgetful",
    "own-eyes": "static:OwnEyes",
    "missing": "static:Missing",
    "idle": "static:Idle",
    "shouting": "static:Shouting",
    "lossy": "dynamic:Lossy",
    "miscounting": "dynamic:Miscounting",
    "itemised": "dynamic:Itemised",
}


@hookimpl
def usdcore_register(register):
    for name, implementation in STRATEGIES.items():
        register.strategy(
            name=name, config=Silent, implementation=f"broken_plugins.{implementation}", summary="for tests"
        )
    for name, config in (("mute", Mute), ("loose", Loose)):
        register.strategy(name=name, config=config, implementation="broken_plugins.static:Ranked", summary="for tests")
    register.gate_network(
        name="cheap", config=Silent, implementation="broken_plugins.others:Cheap", summary="states no MACs"
    )
    register.gate_network(
        name="mingling", config=Silent, implementation="broken_plugins.others:Mingling", summary="mixes images"
    )
    register.split(name="rash", config=Silent, implementation="broken_plugins.others:Rash", summary="draws anywhere")
    register.data_source(
        name="fickle", config=Source, implementation="broken_plugins.others:Fickle", summary="never the same"
    )
