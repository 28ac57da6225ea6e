"""Recipes made from the JSON schema: nothing but values that it allows, as strange as it allows them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from usdcore.recipe import recipe_schema

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
LOOSE = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
LARGEST = 1e30


class FromSchema:
    """Strategies for the parts of a JSON schema; a plain one is found without much drawing."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema

    def of(self, part: dict[str, Any]) -> st.SearchStrategy[Any]:
        """Values that this part allows."""
        if "$ref" in part:
            return st.deferred(lambda: self.of(self.schema["$defs"][part["$ref"].rpartition("/")[2]]))
        if "anyOf" in part:
            return st.one_of([self.of(choice) for choice in part["anyOf"]])
        if "const" in part:
            return st.just(part["const"])
        if "enum" in part:
            return st.sampled_from(part["enum"])
        made: st.SearchStrategy[Any] = getattr(self, f"_{part.get('type', 'anything')}")(part)
        return made

    def _object(self, part: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
        if "properties" not in part:
            return st.dictionaries(TEXT, LOOSE, max_size=3)
        fields = {key: self.of(inner) for key, inner in part["properties"].items() if key != "extends"}
        required = {key: fields.pop(key) for key in part.get("required", []) if key in fields}
        return st.fixed_dictionaries(required, optional=fields)

    def _array(self, part: dict[str, Any]) -> st.SearchStrategy[list[Any]]:
        if "prefixItems" in part:
            return st.tuples(*(self.of(item) for item in part["prefixItems"])).map(list)
        return st.lists(self.of(part["items"]), min_size=part.get("minItems", 0), max_size=3)

    def _string(self, part: dict[str, Any]) -> st.SearchStrategy[str]:
        if "pattern" in part:
            return st.from_regex(part["pattern"].replace("*$", "{0,9}$"), fullmatch=True)
        return TEXT.filter(lambda text: len(text) >= part.get("minLength", 0))

    def _number(self, part: dict[str, Any]) -> st.SearchStrategy[float]:
        low = part.get("minimum", part.get("exclusiveMinimum", -LARGEST))
        high = part.get("maximum", part.get("exclusiveMaximum", LARGEST))
        above, below = "exclusiveMinimum" in part, "exclusiveMaximum" in part
        return st.floats(low, high, exclude_min=above, exclude_max=below)

    def _integer(self, part: dict[str, Any]) -> st.SearchStrategy[int]:
        high = part["exclusiveMaximum"] - 1 if "exclusiveMaximum" in part else part.get("maximum", 10**6)
        return st.integers(part.get("minimum", -(10**6)), high)

    def _boolean(self, part: dict[str, Any]) -> st.SearchStrategy[bool]:
        return st.booleans()

    def _null(self, part: dict[str, Any]) -> st.SearchStrategy[None]:
        return st.none()

    def _anything(self, part: dict[str, Any]) -> st.SearchStrategy[Any]:
        return LOOSE


def recipes() -> st.SearchStrategy[dict[str, Any]]:
    """Recipes, with what no schema can say (names are unique, sections fit each other) mostly put right."""
    schema = recipe_schema()
    return FromSchema(schema).of(schema).map(_consistent)


def _consistent(recipe: dict[str, Any]) -> dict[str, Any]:
    budget, data, train = recipe["budget"], recipe["data"], recipe["train"]
    budget.pop("params" if budget.get("macs") else "macs", None)
    budget.setdefault("macs" if not budget.get("params") else "params", 0.5)
    if budget.get("params"):
        recipe.get("evaluate", {}).pop("dial", None)
    if not isinstance(data, dict):
        recipe["data"] = data = {"source": "digits", "batch_size": 8}
    recipe["model"]["num_classes"] = 10
    if "weights" in recipe["model"]:
        recipe["model"]["pretrained"] = False
    data.update(
        batch_size=data["batch_size"] * 2,
        **({"name": "", "root": "x", "cache": False} if data["source"] == "timm" else {}),
    )
    data["batch_size"] = min(data["batch_size"], 2**20)
    _calm(train, train["lr"])
    seen: set[str] = set()
    for number, phase in enumerate(recipe["phases"]):
        phase.update(name=f"{phase['name'][:50]}{number}", epochs=phase["epochs"] + 1000)
        _calm(phase.get("train", {}), train["lr"])
        phase["strategies"] = _named_once(phase.get("strategies", []), seen)
    if not seen:
        recipe["phases"][-1]["strategies"] = ["usdc-static"]
    return recipe


def _calm(train: dict[str, Any], lr: float) -> None:
    """Learning rates that fall, and a warm-up that ends."""
    for key, value in (("min_lr", 0.0), ("warmup_lr", 0.0), ("warmup_epochs", 5)):
        if key in train:
            train[key] = value
    if "lr" in train and train["lr"] is None:
        train["lr"] = lr


def _named_once(strategies: list[Any], seen: set[str]) -> list[Any]:
    """Each strategy once; where it was named before, by its name alone."""
    kept: dict[str, Any] = {}
    for strategy in strategies:
        name = strategy["use"] if isinstance(strategy, dict) else strategy
        kept[name] = name if name in seen else strategy
    seen |= set(kept)
    return list(kept.values())
