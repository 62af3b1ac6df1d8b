"""What a gateway needs before it can start: the base model and the sentence embedder, built or found."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from routers.embedders.base import Encoder
from routers.embedders.factory import make_encoder
from server.engine.base_model import Progress, default_cache_dir, ensure_base_model
from server.settings import Settings


def prepare_assets(settings: Settings, progress: Progress) -> tuple[Encoder, str]:
    """Build or find the embedder and, beside it, the base model; blocks, and reports progress by phase.

    Returns:
        The loaded encoder, and the base as the engine gets it.

    Raises:
        BaseModelError, EmbedderError: With what to do.
    """
    cache_dir = settings.cache_dir or default_cache_dir()
    with ThreadPoolExecutor(1) as worker:
        encoder = worker.submit(
            make_encoder, settings.embedder, cache_dir, lambda done, total: progress("embedder", done, total)
        )
        model = _base_model(settings, cache_dir, progress)
        return encoder.result(), model


def _base_model(settings: Settings, cache_dir: Path, progress: Progress) -> str:
    """The base as the engine gets it; of a remote engine only what is here already."""
    if settings.engine_url and not Path(settings.base_model).is_dir():
        built = cache_dir / "models" / settings.base_model
        return str(built) if (built / "config.json").is_file() else settings.base_model
    return ensure_base_model(settings.base_model, cache_dir, progress)
