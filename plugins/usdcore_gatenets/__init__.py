"""The gate networks G1 to G9: small maps from a layer's pooled features to its gate logits.

USDC names four kinds of network (Figure 5: FC, Conv1d, FC+LN+ReLU+FC, FC+BN+ReLU+FC) and prints counts for whole
models; its table of G1 to G9 is not public. The kinds here are the paper's. The hidden widths, the kernel of 3 and the
order of the names are reconstructed: the simplest choice that meets all printed counts (12 layers of DeiT-S, two
outputs each: all G2 0.02M, all G9 0.89M, the model of Figure 5 0.45M, the searched one 0.75M).
"""

from __future__ import annotations

from usdcore.hooks import Register, hookimpl

from .config import EighthGate, LinearGate, PointwiseGate, QuarterGate, SixteenthGate, TripleGate


@hookimpl
def usdcore_register(register: Register) -> None:
    """Register G1 to G9, in order of rising cost."""
    networks = "usdcore_gatenets.networks:"
    table = (
        ("G1", LinearGate, "LinearGateNet", "FC"),
        ("G2", PointwiseGate, "ConvGateNet", "Conv1d, kernel 1"),
        ("G3", TripleGate, "ConvGateNet", "Conv1d, kernel 3"),
        ("G4", SixteenthGate, "LayerNormGateNet", "FC+LN+ReLU+FC, hidden C/16"),
        ("G5", SixteenthGate, "BatchNormGateNet", "FC+BN+ReLU+FC, hidden C/16"),
        ("G6", EighthGate, "LayerNormGateNet", "FC+LN+ReLU+FC, hidden C/8"),
        ("G7", EighthGate, "BatchNormGateNet", "FC+BN+ReLU+FC, hidden C/8"),
        ("G8", QuarterGate, "LayerNormGateNet", "FC+LN+ReLU+FC, hidden C/4"),
        ("G9", QuarterGate, "BatchNormGateNet", "FC+BN+ReLU+FC, hidden C/4"),
    )
    for name, config, implementation, summary in table:
        register.gate_network(name=name, config=config, implementation=networks + implementation, summary=summary)
