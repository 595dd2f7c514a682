"""Carry out a recipe of supervised training: `satisfice train` with `data` or `supervision`.

A recipe with `supervision` is a chain: samples (a run folder in OUT/samples), data (OUT/data), training (OUT). Each
stage is kept, and the same command goes on with the first that is not finished.
"""

import asyncio
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, set_seed
from trl import DPOConfig, SFTConfig

from satisfice.engines.base import Engine, Sampling
from satisfice.engines.checkpoint import digest_of
from satisfice.engines.loading import opened_engine
from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention import parse_method
from satisfice.lab import SHIPPED
from satisfice.levels import write_levels
from satisfice.measurement.diagnosis import Diagnosis, Measured
from satisfice.problems import GraderPool, ProblemSet, load_problems
from satisfice.problems.problem import usual_instruction
from satisfice.runs.curation import CARD, Pool, check_curation, curate
from satisfice.runs.diagnosis import MOST_ASKED, follow, of_run, spread, told
from satisfice.runs.experiment import Experiment, RunStopped, check, run, try_to_solve
from satisfice.runs.run_folder import RunFolder, read_run, write_atomically
from satisfice.supervision.methods.reweighting import POOLS, MixRatio, PoolReader, Reference
from satisfice.supervision.rows import digest_of_ids
from satisfice.thinking import ThinkingFormat
from satisfice.training.arguments import check_processes, lora, usual_settings, world_size
from satisfice.training.checkpoints import (
    STATE_FILE,
    SaveState,
    check_decided_by,
    checkpoints,
    newest_checkpoint,
    read_state,
)
from satisfice.training.loading import check_model, load_model, on_hub, thinking_of
from satisfice.training.preference import LengthDPOTrainer, OfflineClipTrainer, reference_logps
from satisfice.training.recipe import RecipeError
from satisfice.training.rehearsal import tiny_model
from satisfice.training.rows import Encoder, Rows, encode_rows, read_rows
from satisfice.training.run import CHECKPOINTS, HARMLESS, HARMLESS_SETTINGS, LOG, Show, ShowLogs, refuse_finished
from satisfice.training.sft import MixtureSampler, ResponseSFTTrainer, Validation
from satisfice.training.supervised_recipe import (
    LengthDPO,
    Loss,
    Mixture,
    OfflineClip,
    SupervisedRecipe,
    accumulation,
    data_file,
)

SAMPLES, DATA = "samples", "data"
"""Stages of a chain, inside the directory of the trained model."""
DIAGNOSIS = "diagnosis"
"""Run folder of what the trained model is asked in the end, in the same place."""
REHEARSED = 64
"""Tokens of a response in a dry run."""

Say = Callable[[str], None]


def train_supervised(recipe: SupervisedRecipe, out: Path, *, show: Show | None = None, say: Say = print) -> Path:
    """Train as `recipe` says, into `out`; see `run.train`.

    Raises:
        RecipeError, ObjectiveError, CurationError: the recipe cannot be carried out here, or `out` holds another
            training.
    """
    refuse_finished(out)
    accumulation(recipe, world_size())
    rows = read_rows(_data(recipe, out, say))
    model, tokenizer = load_model(recipe)
    _carry_out(recipe, rows, out, model, tokenizer, thinking_of(recipe, tokenizer), show, say)
    return out


def rehearse_supervised(recipe: SupervisedRecipe, out: Path, *, show: Show | None = None) -> list[str]:
    """Check what can be checked here, and take two steps with a random tiny model on rows of the lab.

    Returns:
        what was not checked, each in half a sentence.

    Raises:
        RecipeError, ProblemsError, RunFolderError: the training would fail.
    """
    refuse_finished(out)
    unchecked: list[str] = []
    curation = recipe.curation()
    usual: str = curation.loss if curation else "sft"
    if recipe.data is not None:
        usual = read_rows(data_file(recipe.data)).usual_loss
    elif recipe.supervision is not None and recipe.supervision.traces:
        assert curation is not None
        pool = Pool([Path(folder) for folder in recipe.supervision.traces])
        if pool.samples < curation.samples:
            check_curation(curation, pool, None)
    elif recipe.problems is not None:
        if on_hub(recipe.problems):
            unchecked.append(f"the data set {recipe.problems} and its split (on the Hub)")
        else:
            _problems(recipe)
    unchecked += check_model(recipe)
    accumulation(recipe, recipe.processes or world_size())
    loss = recipe.build_loss(usual)
    scratch = out.parent / f".{out.name}.dry-run"
    small = recipe.model_copy(
        update={
            "steps": 2,
            "rows_per_step": 2 * world_size(),
            "micro_batch": 1,
            "max_tokens": REHEARSED,
            "validation": recipe.validation and "lab:calibration",
            **dict.fromkeys(("validation_split", "processes", "thinking_format", "problems", "instruction")),
            "validation_limit": 2,
            "validate_every": recipe.validate_every and 1,
            "diagnose": min(recipe.diagnose, 2),
            "loss": {"name": loss.name, **vars(loss)},
            "trl": {key: value for key, value in recipe.trl.items() if not key.startswith(("deepspeed", "fsdp"))},
        }
    )
    try:
        model, tokenizer = tiny_model(recipe, scratch / "tiny", room=REHEARSED)
        rows = Rows(Path("rehearsal"), _rehearsed_rows(loss), "", loss.name, {})
        thinking = ThinkingFormat.detect(tokenizer, "lab")
        _carry_out(small, rows, scratch / "out", model, tokenizer, thinking, show, lambda sentence: None)
    finally:
        if _main():
            shutil.rmtree(scratch, ignore_errors=True)
    return unchecked


def _rehearsed_rows(loss: Loss) -> list[dict[str, Any]]:
    def chat(steps: int) -> list[dict[str, str]]:
        content = "<think>\n" + "a) 1+1=2\n" * steps + "</think>\n\nThe answer is \\boxed{2}."
        return [{"role": "assistant", "content": content}]

    asked = [{"role": "user", "content": "Start with 1. What is the result?"}]
    if isinstance(loss, LengthDPO):
        return [{"prompt": asked, "chosen": chat(1), "rejected": chat(2)}] * 4
    extra = [{"weight": 1.0, "pool": POOLS[0]}, {"weight": -1.0, "pool": POOLS[1]}]
    return [{"messages": [*asked, *chat(1 + number % 2)], **extra[number % 2]} for number in range(4)]


# -- the stages before the training


def _data(recipe: SupervisedRecipe, out: Path, say: Say) -> Path:
    """The file of rows, made first where the recipe says how. Only the main process makes it."""
    if recipe.data is not None:
        return data_file(recipe.data)
    folder = out / DATA
    if not (folder / CARD).exists():
        if _main():
            _make_data(recipe, out, folder, say)
        else:
            while not (folder / CARD).exists():  # where the main process fails, the launcher ends this one
                time.sleep(1)
    return data_file(str(folder))


def _make_data(recipe: SupervisedRecipe, out: Path, folder: Path, say: Say) -> None:
    supervision, curation = recipe.supervision, recipe.curation()
    assert supervision is not None
    assert curation is not None
    # Of a process that was killed before it wrote the card.
    data_file(str(folder)).unlink(missing_ok=True)
    with ExitStack() as stack:
        engine = None
        if curation.needs_engine or not supervision.traces:
            engine = stack.enter_context(
                opened_engine(
                    "transformers",
                    recipe.model,
                    thinking=recipe.thinking(),
                    companions=supervision.companions,
                    threads=recipe.threads,
                )
            )
        graders = stack.enter_context(GraderPool())
        traces = [Path(name) for name in supervision.traces]
        if not traces:
            assert engine is not None
            problems = _problems(recipe)
            experiment = _plainly(
                recipe, engine, problems, samples=supervision.samples, logprobs=curation.reads_logprobs
            )
            check(engine, experiment)
            say(f"sampling {supervision.samples} responses to each of {len(problems.problems)} problems")
            with RunFolder.create_or_open(out / SAMPLES, experiment.configuration(engine)) as run_folder:
                try:
                    asyncio.run(run(engine, experiment, run_folder, graders))
                except RunStopped as stopped:
                    raise RecipeError(f"{stopped}; the same command goes on from there") from None
            traces = [out / SAMPLES]
        pool = Pool(traces, logprobs=curation.reads_logprobs)
        say(f"curating {pool.traces} traces with {curation}")
        done = asyncio.run(curate(curation, pool, folder, engine=engine, graders=graders, seed=recipe.seed))
        say(f"{done.card['rows']} rows of {done.card['traces']['kept']} traces; see {folder / 'README.md'}")


def _problems(recipe: SupervisedRecipe) -> ProblemSet:
    assert recipe.problems is not None
    return load_problems(
        recipe.problems, limit=recipe.limit, split=recipe.split, columns=recipe.columns, grader=recipe.grader,
        seed=recipe.seed, purpose="train",
    )  # fmt: skip


def _held_out(recipe: SupervisedRecipe, rows: Rows) -> ProblemSet | None:
    """What to validate on.

    Raises:
        RecipeError: some of it is trained on.
    """
    if not recipe.validation:
        return None
    found = load_problems(
        recipe.validation, limit=recipe.validation_limit, split=recipe.validation_split, seed=recipe.seed,
        purpose="validate",
    )  # fmt: skip
    asked = {row.get("prompt", row.get("messages", [{}])[:-1])[-1]["content"] for row in rows.rows}
    instruction = _instruction(recipe, found.name)
    both = sum(
        text in asked for problem in found.problems for text in {problem.prompt, f"{problem.prompt}\n\n{instruction}"}
    )
    if both:
        raise RecipeError(
            f"{both} of the {len(found.problems)} problems of {recipe.validation} that validation would ask are "
            "trained on as well: give validation problems that the data do not hold"
        )
    return found


def _instruction(recipe: SupervisedRecipe, problems: str) -> str:
    return usual_instruction(problems) if recipe.instruction is None else recipe.instruction


def _sampling(recipe: SupervisedRecipe, recommended: Sampling) -> Sampling:
    given: dict[str, Any] = {"temperature": recipe.temperature, "top_p": recipe.top_p}
    kept = {key: value for key, value in given.items() if value is not None}
    return replace(recommended, max_tokens=recipe.max_tokens, seed=recipe.seed, **kept)


def _plainly(
    recipe: SupervisedRecipe, engine: Engine, problems: ProblemSet, samples: int = 1, *, logprobs: bool = False
) -> Experiment:
    """Problems as the recipe has them asked, without any method."""
    return Experiment(
        problems, [parse_method("plain")], _sampling(recipe, engine.default_sampling), samples, recipe.seed,
        _instruction(recipe, problems.name), logprobs=logprobs,
    )  # fmt: skip


def _main() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


# -- the training


@dataclass
class _Mixed:
    """A mixture with what decides it."""

    sampler: MixtureSampler
    loss: Mixture
    short_tokens: float
    problems: int
    long: Reference | None = None

    def hear(self, step: int, tokens: float, accuracy: float) -> dict[str, float]:
        """Move the shares."""
        weights = self.sampler.hear(step, tokens, accuracy)
        return dict(zip((f"share/{name}" for name in POOLS), weights, strict=True))


def _carry_out(
    recipe: SupervisedRecipe,
    rows: Rows,
    out: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    thinking: ThinkingFormat,
    show: Show | None,
    say: Say,
) -> None:
    set_seed(recipe.seed)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    loss = recipe.build_loss(rows.usual_loss)
    _check_fit(loss, rows)
    held_out = _held_out(recipe, rows)
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    encoded = encode_rows(rows.rows, Encoder(tokenizer, thinking), recipe.max_tokens, room)
    if not encoded.examples:
        raise RecipeError(
            f"all {len(rows.rows)} rows have responses of more than {recipe.max_tokens} tokens, or no room in the "
            "model: raise max_tokens"
        )
    if encoded.left_out:
        say(f"{encoded.left_out} of {len(rows.rows)} rows are too long (max_tokens {recipe.max_tokens}) and left out")
    decided_by = {
        "recipe": _deciding(recipe),
        "loss": {"name": loss.name, **vars(loss)},
        "data": rows.digest[:16],
        "validation": held_out.digest[:16] if held_out else None,
        "model": digest_of(model),
        "thinking": asdict(thinking),
    }
    last = newest_checkpoint(out / CHECKPOINTS)
    state: dict[str, Any] = {}
    if last:
        check_decided_by(last, decided_by)
        state = read_state(last)
    options: dict[str, Any] = {
        "model": model,
        "args": _arguments(recipe, loss, out / CHECKPOINTS),
        "processing_class": tokenizer,
        "peft_config": lora(recipe),
    }
    examples, mixed = encoded.examples, None
    if isinstance(loss, OfflineClip):
        references = references_of(model, examples, encoded.kept)
        examples = [
            {**example, "weight": float(row["weight"]), "reference": reference}
            for example, row, reference in zip(examples, encoded.kept, references, strict=True)
        ]
    if isinstance(loss, Mixture):
        assert held_out is not None
        mixed = _mixed(recipe, loss, encoded.kept, len(held_out.problems))
    options["train_dataset"] = Dataset.from_list(examples)
    trainer: Any
    if isinstance(loss, LengthDPO):
        trainer = LengthDPOTrainer(loss=loss, **options)
    elif isinstance(loss, OfflineClip):
        trainer = OfflineClipTrainer(loss=loss, **options)
    else:
        trainer = ResponseSFTTrainer(sampler=mixed.sampler if mixed else None, **options)
    check_processes(recipe, trainer.accelerator.num_processes)
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    if mixed and state:
        mixed.long = Reference(**state["long"])
        mixed.sampler.mix = _ratio(mixed, mixed.long)
        mixed.sampler.load_state_dict(state["mixture"])
    with ExitStack() as stack:
        if held_out:
            graders = stack.enter_context(GraderPool())
            _validate(trainer, recipe, held_out, tokenizer, thinking, graders, mixed)

        def kept() -> dict[str, Any]:
            more: dict[str, Any] = {}
            if mixed:
                assert mixed.long is not None
                more = {"long": asdict(mixed.long), "mixture": mixed.sampler.state_dict(trainer.state.global_step)}
            return {"decided_by": decided_by, **more}

        trainer.add_callback(SaveState(kept, trainer.accelerator.wait_for_everyone))
        trainer.add_callback(ShowLogs(show))
        if trainer.accelerator.is_main_process:
            for checkpoint in checkpoints(out / CHECKPOINTS):
                if not (checkpoint / STATE_FILE).is_file():
                    shutil.rmtree(checkpoint)
        trainer.accelerator.wait_for_everyone()
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        diagnosis = None
        if held_out and recipe.diagnose and trainer.accelerator.is_main_process:
            diagnosis = _diagnosed(trainer, recipe, held_out, tokenizer, thinking, graders, out / DIAGNOSIS)
        trainer.accelerator.wait_for_everyone()
    _save(trainer, recipe, loss, rows, encoded.left_out, tokenizer, thinking, out, diagnosis)


def references_of(model: Any, examples: Sequence[dict[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Log-likelihood of each response under the untrained model: as its trace has it, where that is of this model and
    of the very tokens that are trained on, else computed."""
    digest = digest_of(model)
    references: list[float | None] = []
    for example, row in zip(examples, rows, strict=True):
        known = row.get("likelihood") or {}
        response = [label for label in example["labels"] if label != -100]
        same_model = (row.get("provenance") or {}).get("model_digest") == digest
        same = same_model and known.get("ids") == digest_of_ids(response)
        references.append(float(known["logprob"]) if same else None)
    computed = iter(
        reference_logps(model, [each for each, known in zip(examples, references, strict=True) if known is None])
    )
    return [next(computed) if known is None else known for known in references]


def _check_fit(loss: Loss, rows: Rows) -> None:
    """Refuse rows that a loss cannot be computed from.

    Raises:
        RecipeError: it cannot.
    """
    pairs = "chosen" in rows.rows[0]
    if pairs != isinstance(loss, LengthDPO):
        kind = "pairs of a chosen and a rejected response" if pairs else "single responses"
        raise RecipeError(f"{rows.path} holds {kind}, which the loss {loss.name} cannot learn from: leave loss out")
    if isinstance(loss, OfflineClip) and not all("weight" in row for row in rows.rows):
        raise RecipeError(f"the loss {loss.name} needs a weight in every row of {rows.path}")
    if isinstance(loss, Mixture) and not all(row.get("pool") in POOLS for row in rows.rows):
        raise RecipeError(f"the loss {loss.name} needs a pool, {' or '.join(POOLS)}, in every row of {rows.path}")


def _arguments(recipe: SupervisedRecipe, loss: Loss, folder: Path) -> SFTConfig | DPOConfig:
    """TRL's configuration for a recipe.

    Raises:
        RecipeError: the batch does not divide, or TRL refuses a setting.
    """
    settings: dict[str, Any] = {
        **usual_settings(recipe, folder, accumulation(recipe, world_size())),
        "disable_tqdm": True,
        # Rows that are too long have been left out; cut ones would teach to stop in the middle.
        "max_length": None,
    }
    config: Any = SFTConfig
    if isinstance(loss, LengthDPO):
        config = DPOConfig
        settings["beta"] = loss.beta
    else:
        # A mixture knows by itself where it was.
        settings["ignore_data_skip"] = isinstance(loss, Mixture)
    try:
        made: SFTConfig | DPOConfig = config(**{**settings, **recipe.trl})
    except (ValueError, TypeError) as error:
        raise RecipeError(f"TRL refuses the recipe: {' '.join(str(error).split())}") from error
    return made


def _deciding(recipe: SupervisedRecipe) -> dict[str, Any]:
    """What of a recipe decides the weights besides its data, as plain data."""
    data = recipe.model_dump(mode="json")
    left_out = (*HARMLESS, "thinking_format", "data", "supervision", "loss", "problems", "limit", "split", "columns")
    kept = {key: value for key, value in data.items() if key not in left_out}
    kept["trl"] = {key: value for key, value in recipe.trl.items() if not key.startswith(HARMLESS_SETTINGS)}
    return kept


def _mixed(recipe: SupervisedRecipe, loss: Mixture, rows: Sequence[Mapping[str, Any]], problems: int) -> _Mixed:
    pools = tuple([number for number, row in enumerate(rows) if row["pool"] == name] for name in POOLS)
    assert len(pools) == 2
    reader = PoolReader((pools[0], pools[1]))
    short = loss.short_tokens or mean(float(rows[number].get("tokens", 1)) for number in pools[0])
    # Of length there is a scale only once the untrained model has been measured.
    unmeasured = MixRatio(Reference(short, loss.short_accuracy), Reference(short + 1, 1.0), problems)
    total = recipe.steps * recipe.rows_per_step
    sampler = MixtureSampler(unmeasured, reader, total, recipe.seed, recipe.rows_per_step)
    return _Mixed(sampler, loss, short, problems)


def _ratio(mixed: _Mixed, long: Reference) -> MixRatio:
    short = Reference(mixed.short_tokens, mixed.loss.short_accuracy)
    return MixRatio(short, long, mixed.problems, eta=mixed.loss.eta, smoothing=mixed.loss.smoothing)


@contextmanager
def _engine_of(
    trainer: Any,
    recipe: SupervisedRecipe,
    tokenizer: PreTrainedTokenizerBase,
    thinking: ThinkingFormat,
    name: str = "",
) -> Iterator[TransformersEngine]:
    """The model as it stands, as an engine."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.eval()
    engine = TransformersEngine(model, tokenizer, thinking=thinking, name=name, threads=recipe.threads)
    try:
        yield engine
    finally:
        engine.close()


def _validate(
    trainer: Any,
    recipe: SupervisedRecipe,
    held_out: ProblemSet,
    tokenizer: PreTrainedTokenizerBase,
    thinking: ThinkingFormat,
    graders: GraderPool,
    mixed: _Mixed | None,
) -> None:
    """Have held-out problems answered as the training goes on, the same ones each time."""

    def measure() -> tuple[float, float]:
        with _engine_of(trainer, recipe, tokenizer, thinking) as engine:
            tokens, accuracy = asyncio.run(_measured(engine, recipe, held_out, graders))
        if mixed and mixed.long is None:
            mixed.long = Reference(tokens, accuracy)
            mixed.sampler.mix = _ratio(mixed, mixed.long)
        return tokens, accuracy

    if mixed:
        validation = Validation(measure, recipe.validate_every, mixed.hear)
    else:
        validation = Validation(measure, recipe.validate_every)
    validation.trainer = trainer
    trainer.add_callback(validation)


async def _measured(
    engine: TransformersEngine, recipe: SupervisedRecipe, held_out: ProblemSet, graders: GraderPool
) -> tuple[float, float]:
    """Mean tokens and accuracy; what is cut off counts whole, and as wrong."""
    experiment = _plainly(recipe, engine, held_out)
    gate = asyncio.Semaphore(4 * engine.max_batch)

    async def one(task: Any) -> tuple[int, bool]:
        async with gate:
            outcome = await try_to_solve(engine, *experiment.asks(task))
        trace, problem = outcome.trace, task.problem
        if trace is None:
            raise RecipeError(f"validation failed: {outcome.attempts[-1].error.splitlines()[0]}")
        grade = await graders.grade(
            grader=problem.grader, answer=trace.answer, gold=problem.answer, finished=trace.finished,
            problem_id=problem.id,
        )  # fmt: skip
        return trace.cost.retained_tokens, grade.correct

    found = await asyncio.gather(*(one(task) for task in experiment.tasks(experiment.methods[0], set())))
    return mean(tokens for tokens, _ in found), mean(right for _, right in found)


def _diagnosed(
    trainer: Any,
    recipe: SupervisedRecipe,
    held_out: ProblemSet,
    tokenizer: PreTrainedTokenizerBase,
    thinking: ThinkingFormat,
    graders: GraderPool,
    folder: Path,
) -> Diagnosis:
    """What the trained model does on held-out problems, and where it could have stopped; the run stays in `folder`."""
    some = replace(held_out, problems=held_out.problems[: recipe.diagnose])
    try:
        with _engine_of(trainer, recipe, tokenizer, thinking, name=recipe.model) as engine:
            experiment = _plainly(recipe, engine, some)
            with RunFolder.create_or_open(folder, experiment.configuration(engine)) as run_folder:
                asyncio.run(run(engine, experiment, run_folder, graders))
            done = read_run(folder)
            courses = asyncio.run(follow(engine, spread(done.traces["plain"], MOST_ASKED), graders))
    except RunStopped as stopped:
        raise RecipeError(f"the trained model cannot be asked: {stopped}") from None
    found = of_run(done, "plain", courses)
    write_atomically(folder / "diagnosis.json", json.dumps(told(found), indent=2) + "\n")
    return found


# -- what is saved


def _save(
    trainer: Any,
    recipe: SupervisedRecipe,
    loss: Loss,
    rows: Rows,
    left_out: int,
    tokenizer: PreTrainedTokenizerBase,
    thinking: ThinkingFormat,
    out: Path,
    diagnosis: Diagnosis | None,
) -> None:
    trainer.save_model(str(out))  # every process takes part where the weights are sharded
    if not trainer.accelerator.is_main_process:
        return
    tokenizer.save_pretrained(out)
    unwrapped = trainer.accelerator.unwrap_model(trainer.model)
    settings = unwrapped.generation_config.to_dict()
    for key, value in (("temperature", recipe.temperature), ("top_p", recipe.top_p)):
        if value is not None:
            settings |= {key: value, "do_sample": recipe.temperature != 0}
    GenerationConfig.from_dict(settings).save_pretrained(out)
    write_levels(out, rows.instructions, thinking=asdict(thinking), loss=loss.name)
    plain = recipe.model_dump(mode="json", exclude_defaults=True)
    (out / "recipe.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    history = trainer.state.log_history
    (out / "README.md").write_text(_card(recipe, loss, rows, left_out, history, diagnosis))
    unfinished = out / f"{LOG}.unfinished"
    unfinished.write_text("".join(json.dumps(entry) + "\n" for entry in history))
    os.replace(unfinished, out / LOG)
    # Only now, because until then a kill would leave nothing to go on from.
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)


def _card(
    recipe: SupervisedRecipe,
    loss: Loss,
    rows: Rows,
    left_out: int,
    history: Sequence[Mapping[str, Any]],
    diagnosis: Diagnosis | None,
) -> str:
    made = f"made with `{recipe.supervision.method}`" if recipe.supervision else f"from `{recipe.data}`"
    base = [] if recipe.model in SHIPPED else [f"base_model: {recipe.model}"]
    tags = "[satisfice, reasoning, supervised" + (", lora]" if recipe.adapter else "]")
    parameters = ", ".join(f"{key} {value}" for key, value in vars(loss).items())
    steps = [entry["loss"] for entry in history if "loss" in entry]
    lines = [
        "---",
        "library_name: transformers",
        *base,
        f"tags: {tags}",
        "---",
        f"# {recipe.model} with {recipe.supervision.method if recipe.supervision else loss.name}",
        "",
        f"Trained by satisfice from `{recipe.model}` on {len(rows.rows) - left_out} rows {made} (SHA-256 "
        f"`{rows.digest[:16]}`), loss `{loss.name}`{f' ({parameters})' if parameters else ''}: {recipe.steps} steps of "
        f"{recipe.rows_per_step} rows, learning rate {recipe.learning_rate:g}, seed {recipe.seed}. "
        f"{left_out} rows were too long and left out. `recipe.yaml` has every setting, `log.jsonl` every number.",
    ]
    if rows.instructions:
        lines += ["", "## Levels", ""]
        lines += [f"* {level}: `{instruction}`" for level, instruction in rows.instructions.items()]
    if steps:
        lines += ["", f"Loss of the first step {steps[0]:.3g}, of the last {steps[-1]:.3g}."]
    validated = [entry for entry in history if "validation_accuracy" in entry]
    if validated:
        lines += [
            "",
            f"Held-out problems (`{recipe.validation}`, {recipe.validation_limit} at most; what was cut off counts "
            "whole and as wrong):",
            "",
            "| step | accuracy | tokens |",
            "|---|---|---|",
        ]
        lines += [
            f"| {entry['step']} | {entry['validation_accuracy']:.3f} | {entry['validation_tokens']:.1f} |"
            for entry in validated
        ]
    if diagnosis is not None:
        lines += [
            "",
            f"The trained model on {diagnosis.traces} of them: thinking tokens of right and of wrong responses "
            f"{_number(diagnosis.length_right)} and {_number(diagnosis.length_wrong)}, {diagnosis.cut.value:.1%} cut "
            f"off, {_share(diagnosis.repetition)} of the 8-grams of a thinking stood there before, the end marker "
            f"among the 5 likeliest tokens at {_share(diagnosis.at_hand)} of the boundaries that were not taken, the "
            f"likeliest at {_share(diagnosis.likeliest)}.",
        ]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _share(number: Measured | float | None) -> str:
    value = number.value if isinstance(number, Measured) else number
    return "–" if value is None else f"{value:.1%}"
