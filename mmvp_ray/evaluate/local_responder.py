"""LocalResponder: a local model that is loaded where and when there is something to answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mmvp_ray.encoders.weights import one_line
from mmvp_ray.errors import DataError, ResourceError
from mmvp_ray.evaluate.local_models import LocalModel
from mmvp_ray.evaluate.local_spec import LocalModelSpec, same_files
from mmvp_ray.evaluate.responder import Ask, Reply


class LocalResponder:
    """A local model that is loaded when there is something to answer; light and picklable until then.

    Args:
        spec: From `resolve_local_model`.
        load: Makes the model, a function that any process can import; `load_local_model` unless given.
    """

    def __init__(self, spec: LocalModelSpec, load: Callable[[LocalModelSpec], LocalModel] | None = None) -> None:
        self.spec = spec
        self.load = load or load_local_model
        self._loaded: LocalModel | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"spec": self.spec, "load": self.load, "_loaded": None}

    @property
    def name(self) -> str:
        """The model's name."""
        return self.spec.name

    def identity(self) -> dict[str, str]:
        """See `LocalModelSpec.identity`."""
        return self.spec.identity()

    def answer(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """See `Responder.answer` and `load_local_model`."""
        if self._loaded is None:
            self._loaded = self.load(self.spec)
        yield from self._loaded.answer(asks)


def load_local_model(spec: LocalModelSpec) -> LocalModel:
    """Load the model that a spec describes, on a worker.

    Raises:
        DataError: the weights on this machine are others, do not load, or lack some of the model's.
        ResourceError: the GPU's memory does not hold the model.
    """
    import pickle

    import torch
    import transformers
    from safetensors import SafetensorError

    directory = same_files(spec)
    library: Any = transformers
    settings: dict[str, Any] = {"local_files_only": True, "trust_remote_code": spec.config.trust_remote_code}
    try:
        with _quiet(library):
            processor = library.AutoProcessor.from_pretrained(str(directory), **settings)
            model, info = library.AutoModelForImageTextToText.from_pretrained(
                str(directory), dtype=getattr(torch, spec.dtype), output_loading_info=True, **settings
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        raise DataError(
            f"expected an image-text-to-text model with its processor in {directory}, found none that loads ({one_line(error)}); give a "
            "directory that save_pretrained wrote"
        ) from error
    # transformers fills missing weights with random numbers and only logs it.
    missing = sorted(info["missing_keys"])
    if missing:
        raise DataError(
            f"expected all weights of a {type(model).__name__} in {directory}, found {len(missing)} missing ({', '.join(missing[:3])}); its "
            "config.json does not belong to its weights"
        )
    return LocalModel(spec, placed(spec, model), processor)


def placed(spec: LocalModelSpec, model: Any) -> Any:
    """A model on the spec's device, ready to answer.

    Raises:
        ResourceError: the GPU's memory does not hold it.
    """
    import torch

    try:
        return model.to(spec.device).eval().requires_grad_(False)
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"expected room for model {spec.name!r} on {spec.device}, found too little; take a smaller model or --dtype"
        ) from error


@contextlib.contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """No progress bars and tables of weights on the screens of workers."""
    logging = library.utils.logging
    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()
