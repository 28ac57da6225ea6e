# ruff: noqa: RUF001 - letters that look like others are the point
"""What is put where it does not belong: values, scraps of YAML, bytes, file names, overrides."""

from __future__ import annotations

import math
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 0.5, -0.5, 1.0, 3.0, 1e-4, 1e300, -1e300, 50, 100, 10**9, 10**18, 10**39,
    2**32,
    -(10**18), 5e-324, math.nan, math.inf, -math.inf, -0.0,
    "", " ", "no", "yes", "on", "off", "true", "null", "~", "1", "1e-4", "0.5", "50%", "1,5", "1_000", "0x10", ".nan",
    "none", "auto", "dense", "search", "recursive", "G1", "usdc-static", "usdc-dynamic", "average", "digits", "timm",
    "adamw", "cosine", "cuda", "batch", "sample", "narrow", "timm.layers:SwiGLUPacked", "timm.layers:nothing",
    "../../etc/passwd", "/", ".", "..", "a\nb", "a\tb", "\x00", "\x1b[31mred", "\u202eright", "ünïcode", "ｓｅｅｄ",
    "\u0455eed", "😀", "a" * 300, "{{x}}", "${HOME}", "%s", "{}", "{0}", "[1, 2]", "#", "a: b", "- a", "!x", "&a",
    "*a",
    [], {}, [None], [[]], [{}], [1, 2], [0.5, 0.5], ["G1"], ["G1", 1], [True], {"use": "usdc-static"}, {"use": None},
    {"use": ["a"]}, {"use": {"use": "a"}}, {"source": "digits"}, {"a": {"b": {"c": [1, {"d": None}]}}}, {"": 1},
    {"use": "average", "size": 4}, {"use": "average"}, {"use": "random", "low": 9, "high": 2}, {"extends": "x.yaml"},
    {"name": "x", "epochs": 1}, [{"name": "x", "epochs": 1}],
    [{"name": "x", "epochs": 1, "strategies": ["usdc-static"]}],
)  # fmt: skip
"""JSON-like values and non-finite floats."""

KEYS = (
    "", " ", "name", "use", "source", "extends", "lr", "epochs", "train", "phases", "strategies", "macs", "params",
    "seed",
    "batch_size", "heads", "split", "space", "size", "a.b", "0", "-1", "<<", "true", "null", "a\nb", "\x00",
    "\x1b[0m",
    "ｎａｍｅ", "s\u0435ed", "k" * 500, "{text}", "__class__", "model_config", "model_fields", "self", "...", "#", "&a",
)  # fmt: skip

LINES = (
    "<<: *a", "<<: {seed: 1}", "---", "...", "--- !x", "%YAML 1.1", "%YAML 1.2", "%YAML 9.9", "%TAG ! tag:x,2000:",
    "? [a, b]", ": 3", "- a", "a: &a [*a]", "b: &b {c: *b}", "d: *nowhere", "e: !!python/object/apply:os.system [ls]",
    "f: !!python/name:os.system", "g: !include x.yaml", "h: !!binary aGk=", "i: !!set {a, b}", "j: !!float 1",
    "k: !!timestamp 2020-01-01", "l: |", "m: >+", "n: |9", "o: 'unclosed", 'p: "unclosed', "q: [unclosed",
    "r: {unclosed",
    "s: ]", "t: }", "u: @at", "v: `tick", "w: %percent", "x: a: b", "y:", ":", "::", "-", "- - - -", "? ? ?", "!",
    "&", "*",
    "\tz: 1", "z:\t1", "  \t", "# comment", "#", "=: 1", "a: =", '"\\ud800": 1', '"\\x00": 1', 'a: "\\q"',
    "extends: x.yaml",
    "extends: [x.yaml, x.yaml]", "extends: {a: b}", "extends:", "extends: 3", "extends: nowhere.yaml", "extends: .",
    "extends: /dev/null", "extends: base.yaml", "extends: [base.yaml, more.yaml]", "extends: loop.yaml", "name: x",
    "seed: 1", "model: {name: x}", "budget: {macs: 1}", "train: {lr: 1e-3}", "phases: [{name: a, epochs: 1}]",
)  # fmt: skip

SCRAPS = (
    b"\t", b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\r\n",
    b"\r",
    b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xa9", b"\xc2\xa0", b"\xe3\x80\x80", b"\xef\xbc\x9a", b"\x7f", b"\x1b",
    b"\x0c",
    b" ", b"  ", b"\n", b"\n\n", b":", b": ", b"-", b"- ", b",", b"[", b"]", b"{", b"}", b"#", b" #", b"&a ", b"*a",
    b"!", b"!!",
    b"|", b">", b"'", b'"', b"%", b"@", b"`", b"?", b"? ", b"<<: ", b"---\n", b"...\n", b"\\", b"=", b"~", b".",
    b".inf", b"1",
    b"-1", b"e5", b"%YAML 1.1\n---\n", b"9" * 400, b"A" * 5000, b"[" * 60, b"{a: " * 60, b"- " * 60, b" " * 3000,
)  # fmt: skip

OVERRIDES = (
    "", "=", "a", "seed", "=1", "seed=", ".=1", "..=1", "a..b=1", "seed=\x00", "seed=\udcff", "\udcff=1",
    "model.kwargs.\udcff=1",
    "seed=[", "seed={", "seed=*a", "seed=&a [*a]", "seed=!!int 3", "seed=--- 1", "seed=a: b: c", "phases=1",
    "phases.0=1",
    "phases.99999999999999999999=1", "phases." + "9" * 5000 + "=1", "phases.-1=1", "phases.0.epochs=1e400",
    "phases.0.strategies.0.use=x", "phases.²=1",
    "phases.0.strategies=[usdc-static]", "extends=x.yaml", "model=deit_tiny_patch16_224", "model.kwargs.a.b.c.d=1",
    "train.lr=1e-4", "train.lr='1e-4'", "train.lr=.nan", "budget.macs=50", "budget.macs=50%", "name=../x", "name=\n",
    "data.root=\x00", "data.source=timm", "data.root=.", "a\nb=1", "\x1b[31m=1", "seed=\n1", "seed =1", "seed= 1 ",
    "sed=1",
    "model.kwargs.x=" + "[" * 50, "model.kwargs." + "a." * 30 + "b=1", "model.kwargs.x=" + "9" * 5000,
    "x" * 5000 + "=1",
    "seed=" + "x" * 5000, "model.kwargs={a: &a [1, 2], b: [*a, *a]}", "٣=1", "phases.٣.epochs=1", "phases.0.epochs=٣",
)  # fmt: skip

FILES = (
    "x.yaml", "./x.yaml", "base.yaml", "more.yaml", "loop.yaml", "nowhere.yaml", "bas.yaml", "folder", ".", "..", "/",
    "", " ",
    "\x00", "a\x00b.yaml", "\n", "/dev/null", "a" * 300, "a/" * 3000, "link.yaml", "~", "http://x/y.yaml", "\x1b[31m",
    "empty.yaml",
)  # fmt: skip
