"""The recipe: a typed, frozen description of a run, read from YAML with exact positions for every mistake."""

from __future__ import annotations

from usdcore.hooks.config import DataConfig, PluginConfig
from usdcore.hooks.reference import Use
from usdcore.recipe.dumping import dump_recipe, recipe_sha256
from usdcore.recipe.jsonschema import recipe_schema
from usdcore.recipe.loading import LoadedRecipe, load_recipe, read_recipe
from usdcore.recipe.phases import PhaseConfig
from usdcore.recipe.problems import Problem, RecipeError
from usdcore.recipe.schema import BudgetConfig, EvaluateConfig, LatencyConfig, ModelConfig, Recipe
from usdcore.recipe.training import TrainConfig

__all__ = [
    "BudgetConfig",
    "DataConfig",
    "EvaluateConfig",
    "LatencyConfig",
    "LoadedRecipe",
    "ModelConfig",
    "PhaseConfig",
    "PluginConfig",
    "Problem",
    "Recipe",
    "RecipeError",
    "TrainConfig",
    "Use",
    "dump_recipe",
    "load_recipe",
    "read_recipe",
    "recipe_schema",
    "recipe_sha256",
]
