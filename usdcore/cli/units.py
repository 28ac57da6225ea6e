"""`usdcore units`: what is found in a timm model, what each part costs, and why one can't be pruned or skipped."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import click

from usdcore.cli.output import print_json, print_table
from usdcore.errors import UsdcoreError

if TYPE_CHECKING:
    from usdcore.plans import Base
    from usdcore.units.types import Units


@click.command("units")
@click.argument("model")
@click.option("--input-size", type=click.IntRange(1, 65536), metavar="N", help="Pixels; default: the model's own.")
@click.option("--kwargs", "pairs", multiple=True, metavar="KEY=VALUE", help="An argument of timm's; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str, input_size: int | None, pairs: tuple[str, ...], as_json: bool) -> None:
    """The units found in timm's MODEL, with their MACs and parameters. No weights are made or fetched."""
    from usdcore.construct import units_of
    from usdcore.units.show import units_json

    base = _base(model, input_size, dict(_parsed(pair) for pair in pairs))
    units = units_of(base)
    if as_json:
        print_json(units_json(units, base.name, base.input_shape[-1]))
    else:
        _print(units, base)


def _base(name: str, input_size: int | None, kwargs: dict[str, Any]) -> Base:
    """The model's description, with the input size that it has by default unless another one is wanted."""
    import timm

    from usdcore.backbones import require_model
    from usdcore.plans import Base

    require_model(name)
    config = timm.models.get_pretrained_cfg(name)
    channels, _, default = config.input_size if config is not None else (3, 224, 224)
    size = input_size or int(kwargs.get("img_size", default))
    classes = int(kwargs.pop("num_classes", config.num_classes if config is not None else 1000))
    shape = (int(kwargs.get("in_chans", channels)), size, size)
    if size != default:
        kwargs.setdefault("img_size", size)
    return Base(name=name, kwargs=kwargs, num_classes=classes, input_shape=shape)


def _parsed(pair: str) -> tuple[str, Any]:
    key, equals, text = pair.partition("=")
    if not equals or not key:
        msg = f"--kwargs {pair}: give KEY=VALUE"
        raise UsdcoreError(msg)
    try:
        return key, ast.literal_eval(text)
    except (ValueError, SyntaxError):  # a bare word is a string
        return key, {"true": True, "false": False, "null": None}.get(text, text)


def _print(units: Units, base: Base) -> None:
    from usdcore.units.show import COLUMNS, reasons, table_rows

    click.echo(f"{base.name} at {base.input_shape[-1]} px: {units.macs:,} MACs, {units.params:,} parameters")
    click.echo(
        f"{len(units.attention)} attention and {len(units.ffn)} feed-forward units, {len(units.blocks)} blocks\n"
    )
    print_table(COLUMNS, table_rows(units))
    for reason, names in reasons(units):
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        click.echo(f"\n{', '.join(names[:2])}{more}\n  {reason}")
