"""What is public, what an import costs, and what the wheel holds."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import trim_graph
import trim_graph.adapters
import trim_graph.agents
import trim_graph.config
import trim_graph.evaluation
import trim_graph.examples.arithmetic
import trim_graph.policies
import trim_graph.server
import trim_graph.shadow
import trim_graph.testing
from trim_graph.examples.arithmetic.shipped import load_chosen

ROOT = Path(__file__).parent.parent
ENDS = (".json", ".safetensors")
"""Of the two files of a policy."""
LINKED = ("nodes", "adapters", "examples")
"""Folders that links in `trim_graph` lead to."""
PUBLIC = {
    trim_graph: {
        "DEFAULT_INSTRUCTION",
        "Quota",
        "Quotas",
        "Budget",
        "ChatModelContractError",
        "InputError",
        "ModelPrice",
        "Prices",
        "ScorableStep",
        "Scorer",
        "ScorerError",
        "ScorerFunction",
        "ScorerReply",
        "Settings",
        "SettingsError",
        "Shadow",
        "Step",
        "Summary",
        "TrimChatModel",
        "TrimContext",
        "TrimError",
        "TrimInput",
        "TrimOutput",
        "TrimState",
        "__version__",
        "create_trim_chat_model",
        "create_trim_graph",
        "open_checkpointer",
        "open_ledger",
        "trim_node",
    },
    trim_graph.shadow: {
        "Counts",
        "Shadow",
        "ShadowMiddleware",
        "ShadowProcess",
        "ShadowRecord",
        "read_shadow",
    },
    trim_graph.policies: {
        "AllOf",
        "AnyOf",
        "Choice",
        "Decision",
        "FunctionPolicy",
        "NextWriter",
        "Observation",
        "Policy",
        "advantage",
        "as_policy",
        "by_pattern",
        "entropy_probe",
        "large_only",
        "load_policy",
        "query_router",
        "random_rate",
        "save_policy",
        "small_only",
        "stay_on_large",
        "threshold",
    },
    trim_graph.adapters: {
        "CascadeScorer",
        "ChatModelContractError",
        "ChatTransformers",
        "ChatVLLM",
        "ChatVLLMEngine",
        "ContextLengthError",
        "ContinueByPrompt",
        "LLMJudge",
        "MinimumScorer",
        "ModelServerError",
        "ScorableStep",
        "Scorer",
        "ScorerError",
        "ScorerFunction",
        "ScorerReply",
        "StepEnd",
        "TokenProbability",
        "TransformersProcessReward",
        "TrimError",
        "TurnSignals",
        "VLLMEngineProcessReward",
        "VLLMGenerativeProcessReward",
        "VLLMProcessReward",
        "serve_options",
    },
    trim_graph.config: {
        "EXAMPLE",
        "Parts",
        "TrimConfig",
        "build_graph",
        "build_parts",
        "example_config",
        "for_measuring",
        "load_config",
        "make_config",
        "quality_policy",
    },
    trim_graph.server: {"ApiKeys", "check_servable", "create_app", "read_keys"},
    trim_graph.evaluation: {
        "ArmMetrics",
        "Difference",
        "Interval",
        "Question",
        "Record",
        "Run",
        "accuracy",
        "accuracy_difference",
        "compare",
        "cpt",
        "ibc",
        "interval",
        "mean_delta_ibc",
        "mean_ibc",
        "performance_gap_recovered",
        "read_run",
        "resampled_means",
        "run_arm",
        "share_of_large_tokens",
    },
    trim_graph.agents: {"TrimAgentState", "TrimMiddleware", "render_turn"},
    trim_graph.testing: {"ScriptedChatModel", "ScriptedScorer", "ScriptedToolModel"},
    trim_graph.examples.arithmetic: {
        "LARGE",
        "PRM",
        "SMALL",
        "Part",
        "Problem",
        "Split",
        "draw_problem",
        "is_right",
        "label_steps",
        "part_of",
        "problems",
        "stream_problems",
    },
}


def run(code, **options):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True, **options
    ).stdout.strip()


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_the_public_names_are_these_and_all_of_them_exist(module):
    assert set(module.__all__) == PUBLIC[module]
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'create_graph'"):
        trim_graph.create_graph  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    [
        "import trim_graph",
        "from trim_graph import *",
        "import trim_graph.adapters",
        "import trim_graph.policies",
        "import trim_graph.examples.arithmetic",
        "import trim_graph.cli",
    ],
)
def test_an_import_loads_no_heavy_package(statement):
    heavy = (
        "torch",
        "vllm",
        "transformers",
        "numpy",
        "langchain",
        "trim_graph.adapters.vllm.chat",
        "trim_graph.agents",
    )
    assert run(f"{statement}\nimport sys\nprint([m for m in {heavy} if m in sys.modules])") == "[]"


def test_the_graph_loads_little_beside_langgraph_and_the_interface_of_models():
    code = """
import sys
import langgraph.graph
before = set(sys.modules)
from trim_graph import create_trim_graph
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
    assert set(run(code).split()) <= {"trim_graph", "langchain_core", "langgraph", "sqlite3", "_sqlite3"}


def test_the_middleware_says_what_it_needs():
    code = """
import sys
sys.modules["langchain"] = None
try:
    import trim_graph.agents
except ImportError as error:
    print(error)
"""
    assert run(code) == 'TrimMiddleware needs pip install "trim-graph[agents]"'


def required(extras):
    """Names of all that pip installs for some of our extras, by the metadata of what is installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    ours = {"": project["dependencies"], **project["optional-dependencies"]}
    seen, wanted = set(), [("trim-graph", extra) for extra in ("", *extras)]
    while wanted:
        name, extra = one = wanted.pop()
        if one in seen:
            continue
        seen.add(one)
        lines = ours[extra] if name == "trim-graph" else metadata.requires(name) or ()
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                wanted += [(requirement.name, asked) for asked in ("", *requirement.extras)]
    return {name for name, _ in seen} - {"trim-graph"}


def link_installed(names, folder):
    """Fills a folder with links to these distributions: the site-packages of a fresh environment."""
    owners = metadata.packages_distributions()
    for distribution in map(metadata.distribution, names):
        for file in distribution.files or ():
            shared = len(set(owners.get(file.parts[0], ()))) > 1  # a namespace: its folder is not one's own
            part = file if shared else Path(file.parts[0])
            link = folder / part
            if file.parts[0] != ".." and not os.path.lexists(link):
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(distribution.locate_file(part))


@pytest.mark.parametrize(
    ("extras", "arguments", "printed"),
    [
        ("serve,vllm", "cli up --config examples/vllm/arithmetic_cpu.yaml --print", "vllm serve"),
        ("serve", "cli schema", "large_tokens"),
        ("agents", "examples.agent", "large"),
    ],
)
def test_an_extra_requires_all_that_its_parts_import(extras, arguments, printed, tmp_path):
    link_installed(required(extras.split(",")), tmp_path)
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    env.pop("TRIM_VLLM_PYTHON", None)
    command = [sys.executable, "-S", "-m", *f"trim_graph.{arguments}".split()]
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert printed in ran.stdout
    assert not ran.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what is in the repository, links as links."""
    source = tmp_path_factory.mktemp("source")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, files):
        if os.path.lexists(ROOT / name):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    return source


def build_wheel(source, folder):
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(source)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def build(kind, source, folder):
    """Builds what pip itself gives no command for: an sdist, or the wheel of an editable install."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    return folder


def test_the_wheel_holds_code_types_and_weights_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "trim_graph/py.typed" in names
    for folder in ("small", "large", "prm"):
        assert f"trim_graph/examples/arithmetic/weights/{folder}/model.safetensors" in names
        assert f"trim_graph/examples/arithmetic/weights/{folder}/tokenizer.json" in names
    page = [p.name for p in (ROOT / "trim_graph/report").iterdir() if p.suffix in (".html", ".css", ".js")]
    assert "page.html" in page
    assert {f"trim_graph/report/{name}" for name in page} <= set(names)
    assert {name.split("/")[0] for name in names} == {
        "trim_graph",
        f"trim_graph-{trim_graph.__version__}.dist-info",
    }
    assert "trim_graph/examples/arithmetic/policies/aggregate-0.02.safetensors" in names
    # Commands of the examples read their own configuration.
    for package in (p.parent for p in (ROOT / "examples").glob("*/__init__.py")):
        configurations = {f"trim_graph/{p.relative_to(ROOT)}" for p in package.glob("*.yaml")}
        assert configurations <= set(names)
    for file in load_chosen().values():
        assert {f"trim_graph/examples/arithmetic/policies/{file.stem}{end}" for end in ENDS} <= set(names)
    # Of the study: the early state of the scorer, and policies at prices that were not chosen.
    assert not [name for name in names if "prm_early" in name or "sequence-0.05" in name]
    assert wheel.stat().st_size < 6e6
    python = {str(p.relative_to(ROOT)) for p in (ROOT / "trim_graph").rglob("*.py")}
    for name in LINKED:
        python |= {f"trim_graph/{p.relative_to(ROOT)}" for p in (ROOT / name).rglob("*.py")}
    # Of the repository only: how the weights were made, the study of their world, the documentation site.
    left_out = tuple(
        f"trim_graph/examples/{name}/" for name in ("arithmetic/training", "arithmetic/study", "site")
    )
    assert not [name for name in names if name.startswith(left_out)]
    python = {name for name in python if not name.startswith(left_out)}
    assert {name for name in names if name.endswith(".py")} == python
    assert len(names) == len(set(names))


def test_an_sdist_holds_files_for_links_and_the_same_wheel_comes_of_it(source, wheel, tmp_path):
    sdist = build("sdist", source, tmp_path)
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if not (member.isfile() or member.isdir())]
    (tmp_path / "wheel").mkdir()
    again = build_wheel(sdist, tmp_path / "wheel")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_an_editable_install_is_a_plain_path_which_type_checkers_read(source, tmp_path):
    with zipfile.ZipFile(build("editable", source, tmp_path)) as editable:
        added = [name for name in editable.namelist() if ".dist-info/" not in name]
        assert [Path(name).suffix for name in added] == [".pth"]
        assert editable.read(added[0]).decode().strip() == str(source)


PLACES = (
    "import trim_graph, trim_graph.nodes as n, trim_graph.adapters as a, trim_graph.examples as e;"
    "from trim_graph.evaluation.arms import code_identity;"
    "print(*(m.__file__ for m in (trim_graph, n, a, e)), code_identity()['sha256'])"
)


def test_the_wheel_and_the_repository_are_each_whole_and_never_mixed(installed, tmp_path):
    ways = {
        # Elsewhere, and in the repository's folder where that is not on the path.
        installed: [{"cwd": tmp_path}, {"cwd": ROOT, "env": {"PYTHONSAFEPATH": "1"}}],
        # `python -c` puts the folder it runs in first.
        ROOT: [{"cwd": ROOT}],
    }
    digests = set()
    for root, runs in ways.items():
        for options in runs:
            env = {**os.environ, "PYTHONPATH": str(installed), **options.get("env", {})}
            *places, digest = run(PLACES, cwd=options["cwd"], env=env).split()
            folders = [root / "trim_graph", *(root / "trim_graph" / name for name in LINKED)]
            assert places == [str(folder / "__init__.py") for folder in folders]
            digests.add(digest)
    assert len(digests) == 1


def test_type_checkers_see_all_of_the_package_in_the_repository(tmp_path):
    (tmp_path / "user.py").write_text(
        "from trim_graph.adapters import ScorableStep\n"
        "from trim_graph.examples.math import missing\n"
        "from trim_graph.nodes.finalize import absent\n"
        "step: ScorableStep = 1\n"
    )
    # Only what lies behind the links is read, or mypy would read LangChain too.
    linked = "".join(f"[mypy-trim_graph.{name}.*]\nfollow_imports = silent\n" for name in LINKED)
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nfollow_imports = skip\n{linked}")
    mypy = [sys.executable, "-m", "mypy", "--config-file", str(tmp_path / "mypy.ini")]
    mypy += ["--cache-dir", str(tmp_path / "cache"), "--no-site-packages", str(tmp_path / "user.py")]
    said = subprocess.run(mypy, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    errors = re.findall(r"user.py:(\d): error: .*\[([\w-]+)\]", said)
    assert errors == [("2", "attr-defined"), ("3", "attr-defined"), ("4", "assignment")], said


USER = """
from collections.abc import Sequence
from trim_graph import Budget, ScorableStep, ScorerReply, TrimContext
from trim_graph import create_trim_chat_model, create_trim_graph
from trim_graph.agents import TrimMiddleware
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel

small, large = ScriptedChatModel(script=["a"]), ScriptedChatModel(script=["b"])


def rate(question: str, steps: list[ScorableStep]) -> list[float]:
    return [step.mean_token_probability or 0.0 for step in steps]


async def arate(question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
    return ScorerReply([len(step) for step in steps])


def unlike(question: str, steps: list[int]) -> list[float]:
    return [0.5 for _ in steps]


def ends(text: str) -> int | None:
    return None


create_trim_graph(small, large, rate, policy=threshold(0.5), max_steps=8, on_large_error="accept")
create_trim_graph(small, large, arate, policy=threshold(0.5), segmentation=ends, thinking=None, name="mine")
create_trim_graph(small, large, policy=threshold(0.5), max_step=8)  # unknown
create_trim_graph(small, large, policy=threshold(0.5), max_steps="8")  # mistyped
create_trim_graph(small, large, policy=threshold(0.5), max_steps=None)  # mistyped
create_trim_graph(small, large, policy=threshold(0.5), on_large_error="large")  # mistyped
create_trim_graph(small, large, unlike, policy=threshold(0.5))  # another step
create_trim_chat_model(small, large, rate, policy=threshold(0.5), budget=Budget(large_calls=1), stop=["x"])
create_trim_chat_model(small, large, rate, policy=threshold(0.5), checkpointer=None)  # unknown
create_trim_chat_model(small, large, rate, policy=threshold(0.5), ask_below="0.5")  # mistyped
TrimMiddleware(large, rate, policy=threshold(0.5), max_steps=3, seed=None)
TrimMiddleware(large, rate, policy=threshold(0.5), lookahead=True)  # none of an agent
TrimMiddleware(large, rate, policy=threshold(0.5), max_step_tokens="many")  # mistyped
context = TrimContext(max_steps=None, threshold=0.5, budget=Budget())
context.max_steps
TrimContext(delimiter="x")  # none of a call
TrimContext(max_steps="2")  # mistyped
"""


def test_a_type_checker_knows_every_keyword(installed, tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary"]
    found = subprocess.run(
        [*mypy, "--hide-error-context", "--cache-dir", str(tmp_path / "cache"), "user.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert not found.stderr
    errors = {int(line.split(":")[1]) for line in found.stdout.splitlines() if ": error: " in line}
    wrong = {number for number, line in enumerate(USER.splitlines(), start=1) if "  # " in line}
    assert errors == wrong, found.stdout
