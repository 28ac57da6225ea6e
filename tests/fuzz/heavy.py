"""Files as large and as strange as a recipe may be: each must be read, or refused, in a moment."""

from __future__ import annotations

from fuzz.mutate import SMALL

from usdcore.recipe.document import MAX_BYTES, MAX_VALUES

SIZE = MAX_BYTES - 8
COUNT = MAX_VALUES - 300
PAIRS = COUNT // 2
ROOM = SIZE - len(SMALL)
TOP = SMALL[: SMALL.index("phases:")]


def _phases(phase: str, count: int = 1) -> str:
    return f"{TOP}phases: [{','.join(phase.replace('#', str(i)) for i in range(count))}]"


def _strategies(item: str) -> str:
    return _phases("{name: a, epochs: 1, strategies: [" + f"{item}," * COUNT + "]}")


def _space(name: str) -> str:
    return _phases("{name: a, epochs: 1, strategies: [{use: usdc-dynamic, space: [" + f"{name}," * COUNT + "]}]}")


HEAVY = {
    "a long quoted text": f'a: "{"x" * SIZE}"',
    "a long plain text": "a: " + "x y " * (SIZE // 4),
    "a text of many lines": "a:\n" + " x\n" * (SIZE // 3),
    "a block of many lines": "a: |\n" + " x\n" * (SIZE // 3),
    "a quoted text of line breaks": f'a: "{chr(10) * SIZE}"',
    "a text of escapes": 'a: "' + "\\x01" * (SIZE // 4) + '"',
    "a note of escapes": SMALL.replace("note: a", 'note: "' + "\\x01" * (ROOM // 4) + '" #'),
    "a note": SMALL.replace("note: a", "note: " + "a" * (ROOM - 10)),
    "a comment": SMALL + "#" * ROOM,
    "comments": SMALL + "#\n" * (ROOM // 2),
    "spaces": SMALL + " " * ROOM,
    "line breaks": "\n" * ROOM + SMALL,
    "keys": "".join(f"k{i}: 1\n" for i in range(PAIRS)),
    "one key, often": "a: 1\n" * PAIRS,
    "keys without values": f"{{{','.join(f'a{i}' for i in range(PAIRS))}}}",
    "a list of numbers": f"a: [{'1,' * COUNT}]",
    "batch sizes": SMALL.replace("[1, 8, 32, 256]", f"[{'1,' * (COUNT - 500)}]"),
    "wrong batch sizes": SMALL.replace("[1, 8, 32, 256]", f"[{'a,' * COUNT}]"),
    "arguments": SMALL.replace("depth: 4", f"depth: 4, x: [{'1,' * (COUNT - 500)}]"),
    "a long argument": SMALL.replace("depth: 4", f'depth: 4, x: "{"y" * (ROOM - 20)}"'),
    "wrong phases": _phases("a", COUNT),
    "phases of one strategy": _phases("{name: p#, epochs: 1, strategies: [usdc-dynamic]}", COUNT // 8),
    "a few phases of one strategy": _phases("{name: p#, epochs: 2, strategies: [usdc-dynamic]}", 30),
    "unknown strategies": _strategies("x"),
    "one strategy, often": _strategies("usdc-static"),
    "gate networks": _space("G1"),
    "unknown gate networks": _space("Gx"),
    "a long name of a strategy": SMALL.replace("use: usdc-static", f'use: "{"x" * (ROOM - 20)}"'),
    "a long key": f"{'x' * SIZE}: 1",
    "a long name of an anchor": f"a: &{'x' * (SIZE - 10)} 1",
    "anchors": "".join(f"k{i}: &a{i} 1\n" for i in range(PAIRS)),
    "a long name of a tag": f"a: !{'x' * (SIZE - 10)} 1",
    "a tag of escapes": "a: !" + "%41" * (SIZE // 3 - 10) + " 1",
    "tags": "".join(f"k{i}: !x 1\n" for i in range(PAIRS)),
    "tags declared": "".join(f"%TAG !x{i}! a\n" for i in range(SIZE // 24)) + "---\n" + SMALL,
    "directives": "%FOO bar\n" * (ROOM // 9) + "---\n" + SMALL,
    "documents": "---\n" * (SIZE // 4),
    "colons": ":" * SIZE,
    "dashes": "-" * SIZE,
    "stars": "*" * SIZE,
    "digits": "a: " + "9" * (SIZE - 10),
    "decimals": "a: 1." + "9" * (SIZE - 10),
    "an exponent": "a: 1e" + "9" * (SIZE - 10),
    "wide letters": "a: " + "\u00e9" * (SIZE // 2 - 10),
    "pictures": "a: " + "\U0001f600" * (SIZE // 4 - 10),
    "nested lists": "a: " + "[" * 30 + "1," * COUNT + "]" * 30,
    "ever deeper brackets": "[" * SIZE,
    "ever deeper braces": "{a: " * (SIZE // 4),
    "ever deeper dashes": "- " * (SIZE // 2),
    "ever deeper lines": "".join(" " * i + "a:\n" for i in range(400)),
    "a bomb": "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)),
    "a bomb of mappings": "a0: &a0 {x: 1, y: 2}\n"
    + "".join(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}\n" for i in range(1, 30)),
    "more than a file may hold": "#" * (800 * SIZE),
}
