"""AskingConfig: how any model is asked, an endpoint's or one of this machine, as flags of one job."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mmvp_ray.config import fingerprint
from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.asking import MAX_FAILED_SHARE
from mmvp_ray.evaluate.endpoint_config import EndpointConfig
from mmvp_ray.evaluate.endpoint_presets import PRESETS
from mmvp_ray.evaluate.local_pool import PoolConfig
from mmvp_ray.evaluate.local_spec import LocalModelConfig
from mmvp_ray.evaluate.named_responders import open_responder, preset_of
from mmvp_ray.evaluate.responder import Responder


@dataclass(frozen=True, kw_only=True, slots=True)
class AskingConfig:
    """How models are asked; docs/responders.md explains every field."""

    base_url: str | None = None
    """Base of the endpoint's API, such as http://host:8000/v1; that of the preset in --model unless given."""
    api_key_env: str | None = None
    """Environment variable that holds the API key; that of the preset unless given, the empty text sends none."""
    served_as: str | None = None
    """Stands for the address in what kept answers are compared by, for a server of yours whose address changes between runs."""
    temperature: float = 0.0
    """Sampling temperature."""
    sampling_seed: int | None = None
    """Seed of sampling; not sent unless given."""
    extra_body: tuple[str, ...] = ()
    """NAME=VALUE of further fields of a request, such as reasoning_effort=low. Repeat it."""
    concurrency: int = 32
    """Most requests at one time."""
    requests_per_minute: float | None = None
    """Most requests in a minute; no limit unless given."""
    tokens_per_minute: float | None = None
    """Most tokens in a minute; no limit unless given."""
    num_retries: int = 6
    """Further attempts after a passing failure."""
    timeout_seconds: float = 120.0
    """Longest attempt."""
    max_image_side_px: int | None = None
    """Shrink images to this longer side before they are sent; not unless given."""
    allow_plain_http: bool = False
    """Send the API key over http:// to a host that is neither this machine nor in a private network."""
    device: str = "auto"
    """Where a model on this machine runs: cpu, cuda, cuda:N or auto."""
    dtype: str | None = None
    """float16, bfloat16 or float32; float16 on a GPU and float32 on the CPU unless given."""
    batch_size: int = 8
    """Prompts at a time of a model on this machine."""
    template: str | None = None
    """Prompt template of a model on this machine: chat, vicuna_v1, llava_v1, llava_v0 or plain; what fits the model unless given."""
    pad_to_square: bool = False
    """Put images on a square first, as LLaVA-1.5's own code does."""
    trust_remote_code: bool = False
    """Let code that comes with the weights run."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """Copies of a model on Ray."""
    max_failed_share: float = MAX_FAILED_SHARE
    """Fail when a larger share of the requests has no answer."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range."""
        self.pool.check()
        if not 0.0 <= self.max_failed_share <= 1.0:
            raise ConfigError(f"expected a share from 0 to 1, found {self.max_failed_share} in --max-failed-share")

    def open(self, model: str, *, base_url: str | None = None, api_key_env: str | None = None) -> Responder:
        """The responder that a name means, asked as this config says.

        Args:
            model: As `named_responders.open_responder` takes it.
            base_url: Instead of the config's: another model may be elsewhere. The config's key, `served_as` and further fields are then left
                out, for they are of its own address.
            api_key_env: Instead of the config's.

        Raises:
            ConfigError: the name means nothing, or a setting cannot be used.
        """
        self.check()
        own = _elsewhere(self, base_url) if base_url and base_url.rstrip("/") != self._url_of(model) else self
        endpoint = EndpointConfig(
            base_url=own.base_url,
            api_key_env=own.api_key_env if api_key_env is None else api_key_env,
            served_as=own.served_as,
            temperature=self.temperature,
            seed=self.sampling_seed,
            extra_body=own.extra_body,
            concurrency=self.concurrency,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            num_retries=self.num_retries,
            timeout_seconds=self.timeout_seconds,
            max_image_side_px=self.max_image_side_px,
            allow_plain_http=self.allow_plain_http,
        )
        local = LocalModelConfig(
            device=self.device,
            dtype=self.dtype,
            batch_size=self.batch_size,
            template=self.template,
            temperature=self.temperature,
            seed=self.sampling_seed or 0,
            pad_to_square=self.pad_to_square,
            trust_remote_code=self.trust_remote_code,
        )
        return open_responder(model, endpoint=endpoint, local=local)

    def _url_of(self, model: str) -> str:
        preset = PRESETS.get(preset_of(model))
        return (self.base_url or (preset.base_url if preset else "")).rstrip("/")


def asking_of_judge(asking: AskingConfig, model: str, judge: str) -> AskingConfig:
    """How a judge is asked: as the model, but what only the model's service is to be told is left out where the judge has another one.

    Address, key and further fields go to another model of the same preset alone: the key to OpenAI must not reach a server of yours. Where
    such a judge has an address of its own, `AskingConfig.open` leaves them out.
    """
    if preset_of(model) == preset_of(judge):
        return asking
    return _elsewhere(asking, None)


def _elsewhere(asking: AskingConfig, base_url: str | None) -> AskingConfig:
    return replace(asking, base_url=base_url, api_key_env=None, served_as=None, extra_body=())


def folder_name(model: str) -> str:
    """A model's name as the name of a folder."""
    return "".join(sign if sign.isalnum() or sign in "-._" else "-" for sign in model).strip("-.") or "model"


def judge_folder(prefix: str, judge: Responder) -> str:
    """Where the verdicts of one judge are kept, so that another one may follow in the same run's folder."""
    return f"{prefix}-{folder_name(judge.name)}-{fingerprint(judge.identity())}"
