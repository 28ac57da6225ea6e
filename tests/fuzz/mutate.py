"""Recipes that were good until something happened to them: a case is a function of its seed alone."""

from __future__ import annotations

import copy
import functools
import math
import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz.garbage import FILES, KEYS, LINES, OVERRIDES, SCRAPS, VALUES

from usdcore.recipe.document import parse
from usdcore.recipe.emit import emit
from usdcore.recipe.tree import plain

ROOT = Path(__file__).parents[2]
TO_FOLDER = re.compile(r'\b((?:extends|base): "?)[\w./]*/')
"""What leads from a shipped file to a file elsewhere: in a case all files lie in one folder."""
IS_TABLE = re.compile(r"^rows:", re.MULTILINE)
ALL = [(path.name, TO_FOLDER.sub(r"\1", path.read_text())) for path in sorted(ROOT.glob("recipes/**/*.yaml"))]
TABLES = {name: text for name, text in ALL if IS_TABLE.search(text)}
SHIPPED = {name: text for name, text in ALL if not IS_TABLE.search(text)}
SMALL = (ROOT / "recipes/quickstart.yaml").read_text()
"""The recipe whose model is small enough to be made."""

COMPANIONS = {
    "base.yaml": SMALL.encode(),
    "more.yaml": b"train: {lr: 0.5}\nmodel: {kwargs: {depth: 3}}\n",
    "loop.yaml": b"extends: loop.yaml\n",
    "empty.yaml": b"",
}

MODELS = (
    "test_vit", "test_vit2", "test_vit3", "test_vit4", "test_resnet", "test_convnext", "test_mambaout",
    "vit_tiny_patch16",
    "levit_128s", "test_vit.r160_in1k", "swin_tiny_patch4_window7_224", "", "hf_hub:x/y", "../vit", "mixer_s32_224",
)  # fmt: skip
ARGUMENTS = (
    "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads",
    "mlp_ratio",
    "qkv_bias", "qk_norm", "init_values", "class_token", "pos_embed", "no_embed_class", "reg_tokens", "pre_norm",
    "fc_norm",
    "dynamic_img_size", "dynamic_img_pad", "drop_rate", "drop_path_rate", "weight_init", "embed_layer", "norm_layer",
    "act_layer", "block_fn", "mlp_layer", "attn_layer", "fix_init", "window_size", "depths", "layers", "embed_dims",
    "checkpoint_path", "pretrained", "pretrained_cfg", "features_only", "scriptable", "device", "self", "dept",
)  # fmt: skip
OPTIONS = (
    "heads", "hidden", "branches", "relaxation", "hard", "tau", "noise", "init_keep", "lr", "mix", "target", "ramp",
    "use",
    "resource_weight", "gate_network", "space", "split", "shuffle", "attention", "ffn", "init_logit", "commit_at",
    "keep_ratio", "places", "ratio_weight", "kl_weight", "token_weight", "frozen_epochs", "host_lr", "fixed", "r",
    "inflection", "proportional", "layers", "tokens", "keep_layers", "head_target", "token_target", "threshold",
    "importance", "scope", "width", "seed", "keep_first", "skip", "dims", "kind", "alpha", "teacher",
)  # fmt: skip


@dataclass
class Case:
    """Files by name, which one is the recipe, and overrides."""

    files: dict[str, bytes]
    main: str = "x.yaml"
    overrides: list[str] = field(default_factory=list)


def case(seed: int) -> Case:
    """The case of this seed."""
    rng = random.Random(seed)
    shipped = rng.choice(list(SHIPPED))
    made = Case({**COMPANIONS, **_extended(shipped)})
    kind = rng.choice(("bytes", "lines", "tree", "tree", "tree", "overrides", "files", "all"))
    text = SHIPPED[shipped]
    if kind in ("tree", "all"):
        text = _written(_tree(rng, text), rng)
    if kind in ("lines", "all"):
        text = _lines(rng, text)
    content = text.encode(errors="surrogatepass")
    if kind in ("bytes", "all"):
        content = _bytes(rng, content)
    made.files["x.yaml"] = content
    if kind in ("overrides", "all"):
        made.overrides = _overrides(rng, text)
    if kind == "files":
        _files(rng, made)
    return made


def table_case(seed: int) -> Case:
    """The same of a table of recipes, with the recipes that it changes beside it."""
    rng = random.Random(f"table {seed}")
    text = TABLES[rng.choice(list(TABLES))]
    made = Case(dict(COMPANIONS))
    for name in sorted(set(re.findall(r'base: "?([\w.]+)', text))):
        made.files |= {name: SHIPPED[name].encode(), **_extended(name)}
    kind = rng.choice(("lines", "tree", "tree", "tree", "bytes", "base"))
    if kind == "base":
        name = rng.choice([name for name in made.files if name not in COMPANIONS])
        made.files[name] = _written(_tree(rng, made.files[name].decode()), rng).encode(errors="surrogatepass")
    elif kind == "tree":
        text = _written(_tree(rng, text), rng)
    elif kind == "lines":
        text = _lines(rng, text)
    content = text.encode(errors="surrogatepass")
    made.files["x.yaml"] = _bytes(rng, content) if kind == "bytes" else content
    made.overrides = _overrides(rng, text) if rng.random() < 0.1 else []
    return made


def _extended(name: str) -> dict[str, bytes]:
    """What a shipped recipe extends, and what that does."""
    listed = _parsed(SHIPPED[name]).get("extends", [])
    found: dict[str, bytes] = {}
    for parent in [listed] if isinstance(listed, str) else listed:
        found |= {parent: SHIPPED[parent].encode(), **_extended(parent)}
    return found


def small_tree(rng: random.Random) -> str:
    """The small recipe with a few values changed, so that many a case still makes a model."""
    if rng.random() < 0.3:
        return _written(_tree(rng, SMALL, times=rng.choice((1, 1, 2))), rng)
    tree = _tree(rng, SMALL, times=0)
    model, kind = tree["model"], rng.randrange(4)
    if kind == 0:
        model["name"] = rng.choice(MODELS)
        model["kwargs"] = {}
        tree["data"]["input_size"] = rng.choice((8, 15, 16, 32, 56, 64, 160))
    elif kind == 1:
        phase = rng.choice(tree["phases"][1:])
        options = rng.choice(phase["strategies"])
        options[rng.choice(OPTIONS)] = copy.deepcopy(rng.choice(VALUES))
    if kind > 1 or rng.random() < 0.3:
        for _ in range(rng.choice((1, 1, 2))):
            model["kwargs"][rng.choice(ARGUMENTS)] = copy.deepcopy(rng.choice(VALUES))
    return _written(tree, rng)


def _times(rng: random.Random) -> int:
    return rng.choice((1, 1, 1, 2, 3, 8))


def _bytes(rng: random.Random, content: bytes) -> bytes:
    if rng.random() < 0.05:
        return rng.choice(
            (b"", bytes(rng.randbytes(50)), content.decode().encode("utf-16"), content * 100, b"\x00" * 100)
        )
    if rng.random() < 0.1:
        return content.replace(b"\n", rng.choice((b"\r\n", b"\r", b"", b"\n\n", b" \n", b"\xc2\x85", b"\xe2\x80\xa8")))
    for _ in range(_times(rng)):
        at = rng.randrange(len(content) + 1)
        end = min(len(content), at + rng.choice((0, 0, 1, 2, 10, 100)))
        middle = rng.choice((b"", rng.choice(SCRAPS), rng.choice(SCRAPS), content[at:end] * 2, rng.randbytes(1)))
        content = content[:at] + middle + content[end:]
    return content


def _lines(rng: random.Random, text: str) -> str:
    lines = text.split("\n")
    for _ in range(_times(rng)):
        at = rng.randrange(len(lines)) if lines else 0
        line = lines[at] if lines else ""
        change = rng.randrange(9)
        if change == 0:
            del lines[at : at + 1]
        elif change == 1:
            lines.insert(at, line)
        elif change == 2:
            lines[at : at + 1] = [" " * rng.randrange(1, 6) + line]
        elif change == 3:
            lines[at : at + 1] = [line.lstrip()]
        elif change == 4:
            lines[at : at + 1] = [line.replace("  ", "\t", 1)]
        elif change == 5:
            other = rng.randrange(len(lines) or 1)
            lines[at : at + 1], lines[other : other + 1] = lines[other : other + 1], lines[at : at + 1]
        elif change == 6:
            lines.insert(at, " " * rng.choice((0, 0, 2, 4, 6)) + rng.choice(LINES))
        elif change == 7:
            lines[at : at + 1] = [line.replace(rng.choice(":,-{[]} ."), rng.choice(":,-{[]}\t'\"#&*!|>"), 1)]
        else:
            lines[at : at + 1] = [line + " " + rng.choice(LINES)]
    return "\n".join(lines)


def _tree(rng: random.Random, text: str, times: int | None = None) -> dict[str, Any]:
    tree = copy.deepcopy(_parsed(text))
    for _ in range(_times(rng) if times is None else times):
        _change(rng, tree)
    return tree


@functools.cache
def _parsed(text: str) -> dict[str, Any]:
    parsed: dict[str, Any] = plain(parse(text, "good.yaml", []))
    return parsed


def _change(rng: random.Random, tree: dict[str, Any]) -> None:
    """One change at a random place, in place."""
    places = list(_places(tree))
    if not places:
        return
    holder, key = rng.choice(places)
    value = holder[key]
    kind = rng.randrange(8)
    if kind <= 2:
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 3:
        holder[key] = _other_type(rng, value)
    elif kind == 4:
        del holder[key]
    elif kind == 5 and isinstance(holder, dict):
        name = rng.choice((rng.choice(KEYS), _misspelt(rng, key), _misspelt(rng, key)))
        holder[name] = holder.pop(key)
    elif kind == 6:
        other, at = rng.choice(places)
        if at in other if isinstance(other, dict) else at < len(other):
            holder[key] = copy.deepcopy(other[at])
    elif isinstance(holder, dict):
        holder[rng.choice(KEYS)] = copy.deepcopy(rng.choice((value, rng.choice(VALUES))))
    else:
        holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(value))


def _places(value: Any) -> Any:
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _misspelt(rng: random.Random, word: str) -> str:
    if not word:
        return "x"
    at = rng.randrange(len(word))
    changed = rng.choice((word[at] * 2, "", rng.choice("abcdefghijklmnopqrstuvwxyz_- \u0430"), word[at].upper()))
    return word[:at] + changed + word[at + 1 :]


def _other_type(rng: random.Random, value: Any) -> Any:
    """The same thing as another type, as people do."""
    if isinstance(value, bool):
        return rng.choice((int(value), str(value), "yes" if value else "no", [value]))
    if isinstance(value, int | float):
        near = [
            str(value),
            -value,
            [value],
            value * 100,
            f"{value}%",
            bool(value),
            {"value": value},
            value + 1,
            value / 2,
        ]
        return rng.choice([*near, int(value)] if math.isfinite(value) else near)
    if isinstance(value, str):
        return rng.choice((_misspelt(rng, value), [value], {value: None}, value.upper(), value + " ", {"use": value}))
    if isinstance(value, list):
        return rng.choice((dict.fromkeys(map(str, value)), value * 2, value[:1], value[0] if value else None, [value]))
    if isinstance(value, dict):
        return rng.choice((list(value), list(value.values()), [value], str(value), [{k: v} for k, v in value.items()]))
    return rng.choice(VALUES)


def _written(tree: dict[str, Any], rng: random.Random) -> str:
    """As YAML; a list of whatever the root became is a file as well."""
    text = emit(tree) or "{}\n"
    if rng.random() < 0.03:
        text = "\n".join("- " + line if not line.startswith(" ") else "  " + line for line in text.split("\n"))
    return text


def _overrides(rng: random.Random, text: str) -> list[str]:
    out = []
    for _ in range(_times(rng)):
        if rng.random() < 0.5:
            out.append(rng.choice(OVERRIDES))
            continue
        parts = [
            rng.choice((*KEYS, "0", "1", "3", "train", "phases", "model", "kwargs", "data"))
            for _ in range(rng.randrange(1, 5))
        ]
        value = rng.choice((str(rng.choice(VALUES)), rng.choice(LINES), text[: rng.randrange(100)]))
        out.append(f"{'.'.join(parts)}={value}")
    return out


def _files(rng: random.Random, made: Case) -> None:
    """The recipe is somewhere else, or extends what it should not."""
    if rng.random() < 0.3:
        made.main = rng.choice(FILES)
        return
    names = [rng.choice(FILES) for _ in range(rng.randrange(1, 4))]
    line = emit({"extends": names[0] if len(names) == 1 else names})
    made.files["x.yaml"] = (line + rng.choice(("", "seed: 3\n", "train: {lr: 3}\n", "name: null\n"))).encode()
    if rng.random() < 0.3:
        made.files["base.yaml"] = emit({"extends": rng.choice(FILES)}).encode()
    if rng.random() < 0.1:
        made.files |= {
            f"{i}.yaml": f"extends: [{i + 1}.yaml, {i + 1}.yaml]\n".encode() for i in range(rng.randrange(100))
        }
        made.main = "0.yaml"
