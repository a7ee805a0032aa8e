"""Shows a run in TensorBoard, Weights & Biases, Trackio or MLflow too, under the names of
metrics.jsonl.

A thread of its own talks to the tracker, so neither a failure there nor a slow network stops
training.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from os import environ
from queue import SimpleQueue
from textwrap import indent
from threading import Event, Thread
from typing import Any

from config.recipe import to_toml
from engine.run import Run

PATIENCE = 30.0  # seconds that training waits for the tracker at its start, and at its end
# numbers at a step, text at a step
Write = tuple[Callable[[dict[str, float], int], Any], Callable[[str, int], Any]]


class Tracker:
    """Sends lines of metrics.jsonl and samples.jsonl to the tracker of a run that starts or resumes
    at `step`.
    """

    def __init__(self, run: Run, step: int, say: Callable[[str], object], rank: int) -> None:
        self.name, self.say, self.is_open = run.cfg.run.tracker, say, Event()
        self.lines: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self.thread = Thread(target=self._follow, args=(run, step), daemon=True)
        if self.name != "none" and rank == 0:
            self.thread.start()
            # matplotlib fails beside a thread that imports IPython, as mlflow's does
            self.is_open.wait(PATIENCE)

    def _follow(self, run: Run, step: int) -> None:
        try:
            with contextmanager(OPEN[self.name])(run, step) as (write, write_text):
                self.is_open.set()
                for line in iter(self.lines.get, None):
                    step = line.pop("step")
                    write_text(line["text"], step) if "text" in line else write(line, step)
        except (Exception, SystemExit) as error:
            # of any kind: these packages, and what they connect to, are not ours
            self.say(
                f"warning: {self.name} failed, and training continues without it: {error!r:.200}"
            )
        self.is_open.set()

    def log(self, line: dict[str, Any]) -> None:
        if self.thread.is_alive():
            self.lines.put({**line})

    def close(self) -> None:
        """Wait until the tracker has all lines, but not for longer than PATIENCE."""
        if self.thread.is_alive():
            self.lines.put(None)
            self.thread.join(PATIENCE)
            if self.thread.is_alive():
                self.say(
                    f"warning: {self.name} is not done after {PATIENCE:.0f} s, and may lack the last lines"
                )
                self.say = str  # one warning is enough


def open_tensorboard(run: Run, step: int) -> Iterator[Write]:
    """Event files in the run's directory. On resume, TensorBoard drops what they have of later
    steps.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(
        run.path / "tensorboard", purge_step=step and step + 1, flush_secs=10
    ) as writer:
        # indented: Markdown keeps its lines
        writer.add_text("config", indent(to_toml(run.cfg), "    "), step)
        yield (
            lambda numbers, at: [
                writer.add_scalar(name, value, at) for name, value in numbers.items()
            ],
            lambda text, at: writer.add_text("text", indent(text, "    "), at),
        )


def open_wandb(run: Run, step: int) -> Iterator[Write]:
    """As WANDB_... variables say, else in the run's directory. Earlier steps are refused, so `step`
    is a metric.
    """
    import wandb

    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
        # else it asks, and waits
        raise RuntimeError("no API key: run `wandb login`, or set WANDB_MODE=offline")
    limits = {
        key: float(environ.get(f"WANDB_{key.upper()}", PATIENCE))
        for key in ("init_timeout", "finish_timeout")
    }
    with wandb.init(
        project=environ.get("WANDB_PROJECT", "surprisal"),
        name=environ.get("WANDB_NAME", run.name),
        id=environ.get("WANDB_RUN_ID", run.id),
        resume=environ.get("WANDB_RESUME", "allow"),
        dir=environ.get("WANDB_DIR", run.path),
        config=run.cfg.options(),
        settings=wandb.Settings(**limits),
    ) as tracked:
        tracked.define_metric("*", step_metric="step")  # the x axis
        yield (
            lambda numbers, at: tracked.log({"step": at} | numbers),
            lambda text, at: tracked.log(
                {"step": at, "text": wandb.Html(f"<pre>{escape(text)}</pre>")}
            ),
        )


def open_trackio(run: Run, step: int) -> Iterator[Write]:
    """Trackio's local store, or what TRACKIO_... variables name. It recognises a run by its name."""
    import trackio

    tracked = trackio.init(
        "surprisal", f"{run.name}-{run.id}", config=run.cfg.options(), resume="allow"
    )
    yield (
        tracked.log,
        lambda text, at: tracked.log({"text": trackio.Markdown(indent(text, "    "))}, at),
    )
    tracked.finish()


def open_mlflow(run: Run, step: int) -> Iterator[Write]:
    """The store that MLFLOW_TRACKING_URI names, else mlflow.db and mlruns/ beside the run."""
    import mlflow

    name, folder = environ.get("MLFLOW_EXPERIMENT_NAME", "surprisal"), run.path.resolve().parent
    if "MLFLOW_TRACKING_URI" not in environ:
        mlflow.set_tracking_uri(f"sqlite:///{folder.as_posix()}/mlflow.db")
        if not mlflow.get_experiment_by_name(name):
            mlflow.create_experiment(name, (folder / "mlruns").as_uri())
    mlflow.set_experiment(name)
    found = mlflow.search_runs(filter_string=f"tags.run = '{run.id}'", output_format="list")
    with mlflow.start_run(
        found[0].info.run_id if found else None, run_name=run.name, tags={"run": run.id}
    ):
        mlflow.log_params({} if found else run.cfg.options())  # they cannot change
        mlflow.log_text(to_toml(run.cfg), "config.toml")
        yield mlflow.log_metrics, lambda text, at: mlflow.log_text(text, f"text/{at}.txt")


OPEN = {
    "tensorboard": open_tensorboard,
    "wandb": open_wandb,
    "trackio": open_trackio,
    "mlflow": open_mlflow,
}
