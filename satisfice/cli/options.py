"""The options of all commands, each declared once, in groups.

A group is a dataclass that a command takes as one parameter (see `command.py`); its methods turn what was given into
what the library takes. An option that commands also take without its group has a name of its own, as `Limit`. What only
one command has is declared in that command's file, under one of the headings here or one of its own.

A new option that several commands share is written here: as a field of the group that it belongs to or, where it
belongs to none, as a name. One that loads something before the command runs (a file of methods, say) is a name with a
`callback`, so that everything is there when the command reads its other options.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from satisfice.cli import completion
from satisfice.cli.console import complain, errors
from satisfice.trace import CONVENTIONS

if TYPE_CHECKING:
    from satisfice.engines.base import Engine, Sampling
    from satisfice.intervention import Method
    from satisfice.problems import ProblemSet
    from satisfice.thinking import ThinkingFormat

# Headings of --help.
METHODS = "Methods"
ENGINE = "Model and engine"
REMOTE = "Asking a server (--engine openai)"
WORKERS = "Many workers (--engine ray)"
PROBLEMS = "Problems"
PROMPT = "Prompt"
SAMPLING = "Sampling"
RUN = "Run"
REPORT = "Report"
PROMISE = "Promise"
TRAINING = "Training"
OUTPUT = "Output"

_engine = partial(typer.Option, rich_help_panel=ENGINE)
_remote = partial(typer.Option, rich_help_panel=REMOTE)
_workers = partial(typer.Option, rich_help_panel=WORKERS)
_problems = partial(typer.Option, rich_help_panel=PROBLEMS)
_prompt = partial(typer.Option, rich_help_panel=PROMPT)
_sampling = partial(typer.Option, rich_help_panel=SAMPLING)
_run = partial(typer.Option, rich_help_panel=RUN)
_report = partial(typer.Option, rich_help_panel=REPORT)

# -- arguments and options that commands also take without a group

Model = Annotated[
    str,
    typer.Argument(
        autocompletion=completion.models,
        help="lab, smollm2, smollm2-words, a directory or a Hub id; with --engine openai its name at the server.",
    ),
]
RunFolder = Annotated[Path, typer.Argument(help="Run folder.")]
Recipe = Annotated[Path, typer.Argument(help="YAML; see the folder recipes/.")]
Trained = Annotated[
    Path, typer.Option("--out", rich_help_panel=TRAINING, help="Directory of the model or adapter that is made.")
]
MethodName = Annotated[
    str,
    typer.Option(
        "--method",
        "-m",
        rich_help_panel=METHODS,
        autocompletion=completion.one_method,
        help="As name:parameter=value. See `satisfice methods`.",
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--methods", "-m", rich_help_panel=METHODS, autocompletion=completion.methods,
        help="One or more, as name:parameter=value, or all. See `satisfice methods`.",
    ),
]  # fmt: skip
Calibrated = Annotated[
    Path | None,
    typer.Option(rich_help_panel=METHODS, help="Certificate of `satisfice calibrate`, whose method is taken."),
]
Problems = Annotated[
    str | None,
    _problems(
        "--problems",
        "-p",
        autocompletion=completion.problems,
        help="JSONL file, lab:SPLIT, words:SPLIT, Hub data set or reasoning-gym:NAME; the lab's models have their own.",
    ),
]
Ask = Annotated[
    str | None,
    _engine("--ask", help="Of a run folder: the model that wrote it, to be asked where it could stop."),
]
Grader = Annotated[str | None, _problems(help="math, numeric, exact or choice.")]
Limit = Annotated[int | None, _problems(min=1, help="Problems at most.")]
System = Annotated[str, _prompt(help="System turn.")]
Temperature = Annotated[float | None, _sampling(min=0, help="0 is greedy.")]
MaxTokens = Annotated[int | None, _sampling(min=1, help="Tokens of one response at most.")]
Seed = Annotated[int, _sampling(help="Decides every random number.")]
Concurrency = Annotated[int | None, _run(min=1, help="Problems under way at once; in each worker.")]
Counting = Annotated[
    str | None,
    _report(
        help=f"What counts as cost and saving: {', '.join(CONVENTIONS)}; unless set, total where any method spends "
        "tokens beside its response, else thinking."
    ),
]
_MAX_LOSS = typer.Option(
    rich_help_panel=PROMISE,
    help="Expected loss that is allowed, above 0; 0.01 is one point. Unless set, 0.01 to calibrate, 0.03 to watch.",
)
_CONFIDENCE = typer.Option(
    rich_help_panel=PROMISE, help="That what is promised or alarmed is true; 0.95 is usual, also where it is not set."
)
MaxLoss = Annotated[float, _MAX_LOSS]
Confidence = Annotated[float, _CONFIDENCE]
# Where it has an effect with another option only, None says that it was not given.
MaxLossIfGiven = Annotated[float | None, _MAX_LOSS]
ConfidenceIfGiven = Annotated[float | None, _CONFIDENCE]
Json = Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="For programs.")]


def _load_plugins(paths: list[Path] | None) -> list[Path] | None:
    """Load plugin files before any other option is read, so that those may name what the files hold."""
    if paths:
        from satisfice.plugins import load_plugins

        load_plugins(paths)
    return paths


Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        callback=_load_plugins,
        is_eager=True,
        rich_help_panel=METHODS,
        help="Python file with methods, objectives, graders or problem sources of yours; give it again for more.",
    ),
]


# -- groups


@dataclass(frozen=True)
class EngineOptions:
    """A model and where its tokens come from. The settings are named as the engines' `load` names them."""

    model: Model
    engine_name: Annotated[
        str,
        _engine(
            "--engine",
            help="transformers, vllm or openai (asks a server); to compare also ray (many workers).",
        ),
    ] = "transformers"
    dtype: Annotated[str | None, _engine(help="auto, float32, bfloat16 or float16; auto unless set.")] = None
    device: Annotated[str | None, _engine(help="cpu, cuda, cuda:1, ...; a GPU where there is one.")] = None
    threads: Annotated[int | None, _engine(help="CPU threads of the model; 1 is fastest for tiny ones.")] = None
    max_batch: Annotated[int, _engine(min=1, help="Sequences that run at once at most.")] = 64
    max_batch_tokens: Annotated[int | None, _engine(min=1, help="Bounds the memory of running sequences.")] = None
    attention: Annotated[
        str | None,
        _engine(
            help="What a decoding step reads: dense, or at most a budget of tokens, as block-topk:budget=N,block=N "
            "or local:budget=N; see docs/engine.md."
        ),
    ] = None
    gguf_file: Annotated[str | None, _engine(help="GGUF file inside the model directory.")] = None
    thinking_format: Annotated[str | None, _engine(help="A family name or 'OPEN,CLOSE', where it is not detected.")] = (
        None
    )
    companion: Annotated[
        list[str] | None,
        _engine(help="NAME=MODEL: a second model, for cothink:outliner=NAME; give it again for more."),
    ] = None
    base_url: Annotated[str | None, _remote(help="Of an OpenAI-compatible server: http://HOST:PORT/v1.")] = None
    tokenizer: Annotated[
        str | None, _remote(help="Directory or Hub id of the served model's tokenizer; by default the model's name.")
    ] = None
    api_key_env: Annotated[
        str | None, _remote(help="Environment variable that holds the server's key; by default OPENAI_API_KEY.")
    ] = None
    requests_per_minute: Annotated[float | None, _remote(min=0.1, help="Requests that a server is sent at most.")] = (
        None
    )

    @property
    def settings(self) -> dict[str, Any]:
        """What the engine's `load` takes besides the model; None where nothing was said."""
        others = ("model", "engine_name", "thinking_format", "companion")
        return {name: value for name, value in asdict(self).items() if name not in others}

    @property
    def thinking(self) -> "ThinkingFormat | None":
        """How the model marks thinking, where that was said."""
        from satisfice.thinking import ThinkingFormat

        return ThinkingFormat.parse(self.thinking_format) if self.thinking_format else None

    def companions(self, methods: "Sequence[Method] | None") -> dict[str, str]:
        """Second models by name.

        Args:
            methods: of which one asks for each; None where they are not known yet.

        Raises:
            ValueError: one is not spelled as NAME=MODEL, is given twice, or no method asks for it.
        """
        found: dict[str, str] = {}
        for text in self.companion or []:
            name, model = pair("--companion", text, "instruct=Qwen/Qwen2.5-1.5B-Instruct")
            if name in found:
                raise ValueError(f"--companion {name} is given twice: give the second one another name")
            if methods is not None and not any(
                re.search(rf'="?{re.escape(name)}"?([,+]|$)', str(method)) for method in methods
            ):
                raise ValueError(f"no method asks for the companion {name!r}: use it as in cothink:outliner={name}")
            found[name] = model
        return found

    @contextmanager
    def opened(self, methods: "Sequence[Method] | None" = (), **further: Any) -> "Iterator[Engine]":
        """The engine with its companions attached; all are closed at the end, whatever happens.

        Args:
            methods: see `companions`.
            further: settings that another group brings.
        """
        from satisfice.engines.loading import opened_engine

        companions = self.companions(methods)
        with ExitStack() as opened:
            with errors.status(f"loading {self.model}"):
                engine = opened.enter_context(
                    opened_engine(
                        self.engine_name, self.model, thinking=self.thinking, companions=companions,
                        **self.settings, **further,
                    )
                )  # fmt: skip
            yield engine


@dataclass(frozen=True)
class WorkerOptions:
    """Where many workers run that hold an engine each."""

    workers: Annotated[int | None, _workers(min=1, help="How many; 2 unless set.")] = None
    worker_engine: Annotated[str | None, _workers(help="What each holds: transformers, vllm or openai.")] = None
    gpus_per_worker: Annotated[float | None, _workers(min=0, help="1 where there are any, unless set.")] = None
    ray_address: Annotated[
        str | None, _workers(help="Of a Ray cluster; RAY_ADDRESS unless set, else this machine alone.")
    ] = None

    @contextmanager
    def opened(self, engine: EngineOptions, methods: "Sequence[Method]") -> Iterator[tuple["Engine", Any]]:
        """An engine, and what runs an experiment on it: in this process, or on the workers that hold it."""
        if engine.engine_name != "ray":
            from satisfice.runs.experiment import run

            with engine.opened(methods, **asdict(self)) as here:
                yield here, partial(run, here)
            return
        from satisfice.runs.scale_out import ray_workers

        settings = {name: value for name, value in {**engine.settings, **asdict(self)}.items() if value is not None}
        companions = engine.companions(methods)
        with ExitStack() as opened:
            with errors.status(f"starting Ray; a worker loads {engine.model}"):
                pool = opened.enter_context(
                    ray_workers(engine.model, thinking=engine.thinking, companions=companions, **settings)
                )
            yield pool.engine, pool.run


@dataclass(frozen=True)
class ProblemOptions:
    """A set of problems, and how its lines are read."""

    problems: Problems = None
    limit: Limit = None
    split: Annotated[str | None, _problems(help="Split of a Hub data set.")] = None
    column: Annotated[list[str] | None, _problems(help="Column mapping, as prompt=question.")] = None
    grader: Grader = None
    skip_bad: Annotated[bool, _problems("--skip-bad", help="Leave malformed lines out and count them.")] = False
    any_gold: Annotated[
        bool,
        _problems("--any-gold", help="Keep problems whose gold answer says that there is none, such as 'proof'."),
    ] = False
    data_dir: Annotated[
        Path | None,
        _problems(help="Where math500.jsonl and other suites lie; without it --problems math500 is read from the Hub."),
    ] = None
    answer_is: Annotated[str, _problems(help="Of multiple choice, what the gold answer is: letter, text or index.")] = (
        "auto"
    )

    def loaded(self, model: str, seed: int, own: str = "lab:test", without_gold: bool = False) -> "ProblemSet":
        """The problems; what was left out of them is said.

        Args:
            model: some of those that are shipped have problems of their own, which need not be named.
            seed: of problems that are generated.
            own: their own.
            without_gold: whether problems of a file may lack a gold answer.

        Raises:
            ValueError: no problems are named, and the model has none; or they cannot be read.
        """
        from satisfice.lab import SHIPPED
        from satisfice.problems import load_problems

        if self.problems is None and model not in SHIPPED:
            names = " and ".join(SHIPPED)
            raise ValueError(f"say which problems, for example --problems gsm8k.jsonl; only {names} have their own")
        columns = dict(pair("--column", text, "prompt=question") for text in self.column) if self.column else None
        answer_is: Any = self.answer_is
        found = load_problems(
            self.problems or own, limit=self.limit, split=self.split, columns=columns, grader=self.grader,
            skip_bad=self.skip_bad, any_gold=self.any_gold, answer_is=answer_is, seed=seed, data_dir=self.data_dir,
            without_gold=without_gold,
        )  # fmt: skip
        for note in found.notes:
            complain(note)
        for reason in found.skipped:
            complain(f"skipped {reason}")
        return found


@dataclass(frozen=True)
class PromptOptions:
    """What the model is told besides the question."""

    instruction: Annotated[
        str | None, _prompt(help="Text after each question; by default the usual one for maths, none for lab.")
    ] = None
    system: System = ""

    def instruction_for(self, problems: "ProblemSet") -> str:
        """What was given, else what is usual for these problems."""
        from satisfice.problems.problem import usual_instruction

        return usual_instruction(problems.name) if self.instruction is None else self.instruction


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen; None leaves it to what the model's authors recommend."""

    max_tokens: MaxTokens = None
    temperature: Temperature = None
    top_p: Annotated[float | None, _sampling(help="Nucleus.")] = None
    top_k: Annotated[int | None, _sampling(help="0 keeps all tokens.")] = None
    min_p: Annotated[float | None, _sampling(help="Share of the largest probability.")] = None
    seed: Seed = 0

    def over(self, engine: "Engine") -> "Sampling":
        """What the model's authors recommend, with what was given in its place.

        Raises:
            ValueError: what was given has no effect, because decoding is greedy.
        """
        given = {name: value for name, value in asdict(self).items() if value is not None}
        over = replace(engine.default_sampling, **given)
        if over.temperature == 0 and (idle := [name for name in ("top_p", "top_k", "min_p") if name in given]):
            options = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
            raise ValueError(
                f"{options} has no effect at temperature 0, which is greedy: leave it out, or --temperature 1"
            )
        return over


@dataclass(frozen=True)
class RunOptions:
    """A run and its folder."""

    out: Annotated[Path | None, _run(help="Run folder; by default runs/MODEL-PROBLEMS.")] = None
    samples: Annotated[int, _run(min=1, help="Responses to each problem.")] = 1
    concurrency: Concurrency = None


@dataclass(frozen=True)
class ReportOptions:
    """How a run is summarised."""

    counting: Counting = None
    baseline: Annotated[
        Path | None, _report(help="Another run folder, of another model on the same problems, to compare with.")
    ] = None
    margin: Annotated[
        float, _report(help='Loss of accuracy that "keeps the accuracy" must rule out; 0.01 is one point.')
    ] = 0.01


# -- what is written in an option


def pair(option: str, text: str, example: str) -> tuple[str, str]:
    """The two sides of NAME=VALUE.

    Raises:
        ValueError: it is not written in this way; the sentence shows `example`.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals and value):
        raise ValueError(f"{option} {text!r} must look like {example}")
    return name, value


def slug(text: str) -> str:
    """Text as the name of a file: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.").lower()
