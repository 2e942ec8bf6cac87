"""Plans of the servers that a configuration needs on this machine: GPU memory and command of each."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trim_graph.adapters.model_source import local_file
from trim_graph.adapters.prm.scorer_file import chosen_format
from trim_graph.adapters.prm.scores import plugin_options, serve_options
from trim_graph.adapters.vllm.plugin import GROUP, NAME, PUBLISHED, is_allowed, is_installed, serves
from trim_graph.config import TrimConfig
from trim_graph.config.schema import VLLMPRM, Serve, VLLMGenerativePRM, VLLMModel, asked_by, named_scorers
from trim_graph.errors import SettingsError
from trim_graph.segmentation import Thinking

Entry = VLLMModel | VLLMPRM | VLLMGenerativePRM

_LOOPBACK = {"localhost": "127.0.0.1", "127.0.0.1": "127.0.0.1", "::1": "::1"}
_KEY = "VLLM_API_KEY"
_CPU_CACHE_GB = 4.0
_CPU_BLOCK_TOKENS = 32
# vLLM caches whole blocks of a prefix, on CPUs of 128 tokens: the call of a short step would read up to 127
# again. Its CPU kernels want multiples of 32 (vllm/platforms/cpu.py).
STEP_TOKEN_IDS = dict.fromkeys(PUBLISHED, 151651)
"""Ids of ``<extra_0>``, so that the command is known without the tokenizer at hand (tokenizer.json of
https://huggingface.co/Qwen/Qwen2.5-Math-PRM-7B; vLLM's own default)."""


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """One server.

    Attributes:
        names: The parts that it serves; two that name the same model share one.
        model: Name it serves the model by.
        weights: Folder or hub id.
        host: Address to listen at.
        port: Port to listen at.
        arguments: All arguments after the weights.
        gpus: Names of the GPUs it uses; empty: the CPU.
        environment: What it gets besides the environment of the caller, less the key.
        key_env: Variable that holds the key.
    """

    names: tuple[str, ...]
    model: str
    weights: str
    host: str
    port: int
    arguments: tuple[str, ...]
    gpus: frozenset[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    key_env: str | None = None

    @property
    def name(self) -> str:
        """Name in messages."""
        return " and ".join(self.names)

    @property
    def root(self) -> str:
        """Its address, without ``/v1``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def key(self) -> str:
        """The key, read now; empty where none is set."""
        return os.environ.get(self.key_env, "").strip() if self.key_env else ""

    def command(self, launcher: Launcher) -> list[str]:
        """Returns the command for `subprocess`. It holds no key: vLLM reads that from the environment."""
        return [*launcher(self.weights), *self.arguments]

    def full_environment(self) -> dict[str, str]:
        """Returns the environment of its process."""
        # Safe path: a folder beside the configuration must not shadow a package of vLLM's.
        return {**os.environ, "PYTHONSAFEPATH": "1", **self.environment, _KEY: self.key}

    def shell_line(self, launcher: Launcher) -> str:
        """Returns the command for a shell; the key as the variable that holds it."""
        given = ["PYTHONSAFEPATH=1"] if launcher.module else []
        given += [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        if self.key_env != _KEY:
            given.append(f'{_KEY}="${self.key_env}"' if self.key_env else f"{_KEY}=")
        return " ".join([*given, shlex.join(self.command(launcher))])


@dataclass(frozen=True, slots=True)
class Plan:
    """All servers of a configuration.

    Attributes:
        servers: To be started here.
        elsewhere: What is said of each part that is left alone.
    """

    servers: tuple[ServerPlan, ...]
    elsewhere: tuple[str, ...]


def plan_servers(config: TrimConfig, folder: Path, *, plugin: bool = False) -> Plan:
    """Works out the servers of a configuration.

    Args:
        config: The configuration.
        folder: Where its file is.
        plugin: Whether the vLLM loads this package's plugin; see `Launcher.plugin`.

    Raises:
        SettingsError: Two parts want one port for different models, an address is not one that a server can
            be started at, weights are not named, or shares of memory do not go together.
    """
    here: dict[str, Entry] = {}
    elsewhere = []
    for name, entry in _entries(config):
        if not isinstance(entry, Entry):
            continue
        if not isinstance(entry.base_url, str):
            elsewhere.append(f"{name}: base_url is a list of replicas, which up does not start")
        elif urlsplit(entry.base_url).hostname in _LOOPBACK:
            here[name] = entry
        else:
            elsewhere.append(f"{name}: {entry.base_url} is another machine's: not started here")
    groups = _grouped(here)
    shares = _shares(groups, here, folder)
    servers = []
    for names, leading in groups.items():
        server = _server(names, leading, here[leading], folder, shares.get(leading), plugin)
        reasoning = _reasoning([here[name] for name in names], server, config.settings.thinking)
        servers.append(replace(server, arguments=(*server.arguments, *reasoning)))
    return Plan(tuple(servers), tuple(elsewhere))


def _entries(config: TrimConfig) -> list[tuple[str, Any]]:
    """Returns the parts of a configuration by name: the two models, and what each scorer asks."""
    entries = [(name, getattr(config, name)) for name in TrimConfig.model_fields if name != "scorer"]
    return [*entries, *((name, asked_by(part)) for name, part in named_scorers(config.scorer).items())]


def _grouped(entries: dict[str, Entry]) -> dict[tuple[str, ...], str]:
    """Returns the parts that share a server, in order, and which of them says how it is started."""
    groups: dict[int, dict[str, Entry]] = {}
    for name, entry in entries.items():
        groups.setdefault(_address(name, entry)[1], {})[name] = entry
    return {tuple(parts): _leading(port, parts) for port, parts in groups.items()}


def _leading(port: int, parts: dict[str, Entry]) -> str:
    """Returns the first part of a server with ``serve``; one without it takes the server as it is.

    Raises:
        SettingsError: The parts are not the same model, started in the same way.
    """
    unsaid = Serve()
    leading = next((name for name, entry in parts.items() if entry.serve != unsaid), next(iter(parts)))
    first = parts[leading]
    for name, entry in parts.items():
        if isinstance(entry, VLLMPRM) != isinstance(first, VLLMPRM):
            raise SettingsError(
                f"{leading} and {name} both have port {port} in base_url, but a server of one model either "
                "writes text or pools scores (vllm_prm): give each its own port"
            )
        same = (entry.model, entry.api_key_env) == (first.model, first.api_key_env)
        if not same or entry.serve not in (first.serve, unsaid):
            earlier, later = sorted((leading, name), key=list(parts).index)
            raise SettingsError(
                f"{earlier} and {later} both have port {port} in base_url, but are not the same model with "
                "the same serve and api_key_env: give each its own port"
            )
    return leading


def _address(name: str, entry: Entry) -> tuple[str, int]:
    url = urlsplit(str(entry.base_url))
    if url.scheme != "http":
        raise SettingsError(
            f"{name}: base_url={entry.base_url!r}: up starts plain http servers; write http://, or start "
            "this one yourself"
        )
    if url.path.rstrip("/") not in ("", "/v1"):
        raise SettingsError(
            f"{name}: base_url={entry.base_url!r} has a path, as a gateway does; up starts servers at "
            f"http://{url.netloc}/v1"
        )
    return _LOOPBACK[str(url.hostname)], url.port or 80


def _weights(name: str, entry: Entry, folder: Path) -> str:
    named = entry.serve.weights
    if named is None:
        place = folder / os.path.expanduser(entry.model)
        if place.is_dir():
            return str(place.absolute())
        if "/" in entry.model:
            return entry.model
        raise SettingsError(
            f"{name}: model={entry.model!r} is neither a folder nor a hub id such as "
            "Qwen/Qwen2.5-7B-Instruct; name the weights: serve: {path: FOLDER_OR_HUB_ID}"
        )
    if Path(named).is_absolute() and not Path(named).is_dir():
        raise SettingsError(f"{name}: serve.path={named!r}: no such folder")
    return named


def _gpus(entry: Entry) -> list[str]:
    if entry.serve.cpu:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [str(gpu) for gpu in entry.serve.gpu] or [visible[0].strip() or "0"]


def _shares(
    groups: Mapping[tuple[str, ...], str], entries: dict[str, Entry], folder: Path
) -> dict[str, float]:
    """Returns the memory share of each server by its leading part; the smallest where it has several GPUs."""
    users: dict[str, list[str]] = {}
    for leading in groups.values():
        for gpu in _gpus(entries[leading]):
            users.setdefault(gpu, []).append(leading)
    shares: dict[str, float] = {}
    for gpu, tenants in users.items():
        given = {name: entries[name].serve.memory_share for name in tenants}
        sizes: dict[str, int | None] = {}
        for name in tenants:
            size = weights_bytes(_weights(name, entries[name], folder))
            sizes[name] = size and size // max(1, len(entries[name].serve.gpu))
        for name, share in divide_memory(given, sizes, gpu).items():
            shares[name] = min(share, shares.get(name, 1.0))
    return shares


def _server(
    names: tuple[str, ...], name: str, entry: Entry, folder: Path, share: float | None, plugin: bool
) -> ServerPlan:
    serve = entry.serve
    host, port = _address(name, entry)
    weights = _weights(name, entry, folder)
    arguments = [
        "--served-model-name",
        entry.model,
        "--host",
        host,
        "--port",
        str(port),
        "--dtype",
        serve.dtype,
    ]
    if serve.max_model_len is not None:
        arguments += ["--max-model-len", str(serve.max_model_len)]
    if isinstance(entry, VLLMPRM):
        arguments += _pooling(name, entry, weights, plugin and serves(weights))
    else:
        arguments += ["--enable-prefix-caching", "--enable-prompt-tokens-details"]
    if serve.cpu and not _given("--block-size", serve.args):
        arguments += ["--block-size", str(_CPU_BLOCK_TOKENS)]
    share = serve.memory_share if serve.cpu else share
    if share is not None:
        arguments += ["--gpu-memory-utilization", f"{share:g}"]
    cache = serve.kv_cache_gb or (_CPU_CACHE_GB if serve.cpu and share is None else None)
    if cache is not None:
        arguments += ["--kv-cache-memory-bytes", str(int(cache * 2**30))]
    if len(serve.gpu) > 1 and not _given("--tensor-parallel-size", serve.args):
        arguments += ["--tensor-parallel-size", str(len(serve.gpu))]
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, serve.gpu))} if serve.gpu else {}
    return ServerPlan(
        names,
        entry.model,
        weights,
        host,
        port,
        (*arguments, *serve.args),
        frozenset(_gpus(entry)),
        environment,
        entry.api_key_env,
    )


def _reasoning(entries: Sequence[Entry], server: ServerPlan, marks: Thinking | None) -> tuple[str, ...]:
    """Returns the arguments that let a server end reasoning, where a model keeps tokens for its answer."""
    if marks is None or all(getattr(entry, "min_answer_tokens", None) is None for entry in entries):
        return ()
    if any(_given(flag, server.arguments) for flag in ("--reasoning-parser", "--reasoning-config")):
        return ()
    strings = {"reasoning_start_str": marks.open, "reasoning_end_str": marks.close}
    return "--reasoning-config", json.dumps(strings)


def _given(flag: str, args: Sequence[str]) -> bool:
    return any(arg.partition("=")[0].replace("_", "-") == flag for arg in args)


def _pooling(name: str, entry: VLLMPRM, weights: str, plugin: bool) -> list[str]:
    """Returns runner and pooler of a process reward model; ``plugin``: vLLM's plugin serves its layout."""
    if _given("--pooler-config", entry.serve.args):
        return ["--runner", "pooling"]
    place = entry.tokenizer or weights
    published = place in STEP_TOKEN_IDS and entry.format in ("auto", "qwen")
    if published and entry.step_token in (None, "<extra_0>"):
        if plugin:
            return plugin_options()
        pooler = {"pooling_type": "STEP", "step_tag_id": STEP_TOKEN_IDS[place]}
        return ["--runner", "pooling", "--pooler-config", json.dumps(pooler)]
    from trim_graph.adapters.model_source import load_tokenizer

    form: str = entry.format
    try:
        choice = chosen_format(entry, place)
        form = choice.name
        tokenizer = load_tokenizer(place, chat=choice.needs_chat_template)
        return serve_options(form, tokenizer=tokenizer, step_token=choice.step_token, plugin=plugin)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{name}: the arguments for format {form} cannot be determined: {error}. Name the PRM's "
            "tokenizer in the setting tokenizer, or give --pooler-config in serve.args"
        ) from error


WHOLE = 0.9
"""Most that is given away of one GPU; vLLM gives itself 0.92."""
LEAST = 0.1
"""Least for one server, where that goes: besides its weights it needs room to work in."""

_SIZE = re.compile(r"(?<![\d.])(?:(\d+)x)?(\d+(?:\.\d+)?)b(?![a-z0-9])", re.IGNORECASE)
_BYTES_PER_WEIGHT = 2


def weights_bytes(weights: str) -> int | None:
    """Returns the size of a model's weights: of its files where they are here, else what its name says.

    Args:
        weights: Folder or hub id; ``Qwen2.5-7B`` says 7 billion, ``8x7B`` 56.

    Returns:
        Bytes, at two a weight where only the name shows them; None where nothing does.
    """
    config = Path(weights) / "config.json" if Path(weights).is_dir() else local_file(weights, "config.json")
    files = [file.stat().st_size for file in config.parent.glob("*.safetensors")] if config else []
    if files:
        return sum(files)
    found = _SIZE.findall(weights.rpartition("/")[2])
    sizes = [int(times or 1) * float(billions) for times, billions in found]
    return int(max(sizes) * 1e9 * _BYTES_PER_WEIGHT) if sizes else None


def divide_memory(
    given: Mapping[str, float | None], sizes: Mapping[str, int | None], gpu: Hashable
) -> dict[str, float]:
    """Divides one GPU's memory among its servers.

    A share that is given stays. The others divide what is left of `WHOLE` in proportion to their weights,
    so that all fit if any division does, but none gets less than `LEAST`; equally where a size is
    not known.

    Args:
        given: The share of each server, or None.
        sizes: Bytes of each server's weights, or None.
        gpu: What errors call it.

    Returns:
        A share for each server, cut to hundredths; together at most `WHOLE`, unless more was given.

    Raises:
        SettingsError: The given shares leave nothing for the others, or exceed the GPU.
    """
    fixed = {name: share for name, share in given.items() if share is not None}
    open_ = [name for name in given if name not in fixed]
    left = WHOLE - math.fsum(fixed.values())
    if math.fsum(fixed.values()) > 0.95 + 1e-9:
        raise SettingsError(
            f"memory_share: {_listed(fixed)} make {math.fsum(fixed.values()):.2f} of GPU {gpu}; "
            f"together at most {WHOLE} is sensible"
        )
    if open_ and left < 0.01 * len(open_):
        raise SettingsError(
            f"memory_share: {_listed(fixed)} leave nothing of GPU {gpu} for {', '.join(open_)}; "
            f"all together get {WHOLE} at most"
        )
    known = [size for name in open_ if (size := sizes.get(name)) is not None]
    weights = {name: float(sizes.get(name) or 1) if len(known) == len(open_) else 1.0 for name in open_}
    return fixed | _divided(left, weights)


def _divided(left: float, weights: dict[str, float]) -> dict[str, float]:
    if not weights:
        return {}
    least = min(LEAST, left / len(weights))
    shares: dict[str, float] = {}
    rest = dict(weights)
    # Whoever would get too little gets the least; the others divide the rest again.
    while rest:
        free, whole = left - math.fsum(shares.values()), math.fsum(rest.values())
        poor = [name for name, weight in rest.items() if free * weight / whole < least - 1e-9]
        if not poor:
            shares |= {name: free * weight / whole for name, weight in rest.items()}
            break
        for name in poor:
            shares[name] = least
            del rest[name]
    return {name: math.floor(shares[name] * 100 + 1e-6) / 100 for name in weights}


def _listed(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:g}" for name, share in shares.items())


@dataclass(frozen=True, slots=True)
class Launcher:
    """Command that starts vLLM.

    Attributes:
        command: Everything before the weights.
        module: Whether it is the server's module, which wants ``--model``.
        plugin: Whether this package is installed beside that vLLM, which then loads its plugin
            (`trim_graph.adapters.vllm.plugin`).
    """

    command: tuple[str, ...]
    module: bool
    plugin: bool = False

    def __call__(self, weights: str) -> list[str]:
        """Returns the command up to and with the weights."""
        return [*self.command, *(["--model"] if self.module else []), weights]


PROGRAM = Launcher(("vllm", "serve"), False)
"""The program that an installed vLLM brings."""
_MODULE = ("-m", "vllm.entrypoints.openai.api_server")
_FIND = f"""
import importlib.metadata, importlib.util, sys
if importlib.util.find_spec("vllm") is None:
    sys.exit(1)
points = importlib.metadata.entry_points(group={GROUP!r})
sys.stdout.write("plugin" if any(point.name == {NAME!r} for point in points) else "")
"""


def find_launcher(python: str | None) -> Launcher:
    """Finds vLLM, and whether this package's plugin is installed beside it.

    Args:
        python: A Python that has it; None: this one if it does, else the program ``vllm``.

    Raises:
        SettingsError: There is none.
    """
    if python is None:
        # A folder of that name on the path has a spec, but no origin.
        if (spec := importlib.util.find_spec("vllm")) is not None and spec.origin:
            return Launcher((sys.executable, *_MODULE), True, is_installed() and is_allowed())
        if (program := shutil.which("vllm")) is None:
            raise SettingsError(
                "vLLM is not installed here: pip install vllm, or name the Python of an environment that has "
                "it, with --python or in TRIM_VLLM_PYTHON"
            )
        return replace(PROGRAM, plugin=_has_plugin(program))
    place = shutil.which(os.path.expanduser(python))
    if place is None:
        raise SettingsError(f"--python {python}: there is no such program")
    try:
        found = _look_for_vllm(place)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SettingsError(f"--python {python} does not run: {error}") from error
    if found.returncode:
        raise SettingsError(f"--python {python} has no vLLM: name the Python of an environment that has it")
    return Launcher((os.path.abspath(place), *_MODULE), True, found.stdout == "plugin" and is_allowed())


def _look_for_vllm(python: str) -> subprocess.CompletedProcess[str]:
    # Isolated: a folder of that name in the working directory is not vLLM.
    return subprocess.run(
        [python, "-I", "-c", _FIND], capture_output=True, text=True, timeout=60, check=False
    )


def _has_plugin(program: str) -> bool:
    """Asks the Python of a console script, which its first line names."""
    try:
        with open(program, "rb") as file:
            line = file.readline(4096)
        if not line.startswith(b"#!/"):
            return False
        found = _look_for_vllm(os.fsdecode(line[2:].strip()))
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.returncode == 0 and found.stdout == "plugin" and is_allowed()
