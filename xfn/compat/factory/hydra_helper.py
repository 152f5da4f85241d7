"""Schemas of components for Hydra (``pip install xfn[hydra]``)."""

from importlib import import_module
from typing import Any

from ..components.attention import ATTENTION_REGISTRY
from ..components.feedforward import FEEDFORWARD_REGISTRY
from ..components.positional_embedding import POSITION_EMBEDDING_REGISTRY

GROUPS = {"ff": FEEDFORWARD_REGISTRY, "pe": POSITION_EMBEDDING_REGISTRY, "attention": ATTENTION_REGISTRY}


def import_xformer_config_schema() -> None:
    """Store the configs of all that is registered: ``xformers/attention``, ``ff`` and ``pe``, as ``<name>_schema``.

    Raises:
        ModuleNotFoundError: Hydra is not installed.
    """
    store: Any = import_module("hydra.core.config_store").ConfigStore.instance()
    for group, registry in GROUPS.items():
        for name, item in registry.items():
            store.store(name=f"{name}_schema", node=item.config, group=f"xformers/{group}")
