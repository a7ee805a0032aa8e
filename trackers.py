"""Shows a run in TensorBoard, Weights & Biases, Trackio or MLflow too.

Numbers keep the names of metrics.jsonl. Each class here is a watcher (engine/watchers.py).
"""

from html import escape
from os import environ
from queue import SimpleQueue
from textwrap import indent
from threading import Event, Thread
from typing import Any

from config.errors import UserError
from config.recipe import to_toml
from engine.run import Run
from engine.watchers import describe_failure

PATIENCE = 30.0  # seconds that training waits for a tracker at its start, and at its end


class Tracker:
    """Sends a run's lines to a tracker, from a thread: a slow network holds no training up.

    A tracker says how to begin, how to log numbers and text at a step, and how to end. What fails
    in the thread is raised once, as a UserError, by `update` or `close`.
    """

    name: str
    address = ""  # W&B and Trackio say theirs

    def __init__(self, run: Run, step: int) -> None:
        self.lines: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self.has_begun = Event()
        self.error: BaseException | None = None
        self.thread = Thread(target=self._send_lines, args=(run, step), daemon=True)
        self.thread.start()
        # matplotlib fails beside a thread that imports IPython, as mlflow's does
        self.has_begun.wait(PATIENCE)

    def begin(self, run: Run, step: int) -> None:
        """Continue the tracked run at a step, or make a new one; send its options."""
        raise NotImplementedError

    def log(self, numbers: dict[str, float], step: int) -> None:
        raise NotImplementedError

    def log_text(self, text: str, step: int) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """Wait until all is sent."""

    def update(self, record: dict[str, Any]) -> None:
        self._raise_error()
        if self.thread.is_alive():
            self.lines.put(dict(record))

    def close(self) -> None:
        """Wait until the tracker has all lines, but not for longer than PATIENCE."""
        self.lines.put(None)
        self.thread.join(PATIENCE)
        self._raise_error()
        if self.thread.is_alive():
            raise UserError(
                f"{self.name} is not done after {PATIENCE:.0f} s, and may lack the last lines"
            )

    def _send_lines(self, run: Run, step: int) -> None:
        try:
            self.begin(run, step)
            self.has_begun.set()
            for line in iter(self.lines.get, None):
                at = line.pop("step")
                if "text" in line:
                    self.log_text(line["text"], at)
                else:
                    self.log(line, at)
            self.end()
        except (Exception, SystemExit) as error:  # of packages and networks: many kinds
            self.error = error
            self.has_begun.set()

    def _raise_error(self) -> None:
        error = self.error
        if error is not None:
            self.error = None
            raise UserError(describe_failure(self.name, error))


class TensorBoard(Tracker):
    """Writes event files in the run's directory.

    On resume TensorBoard drops what they have of later steps.
    """

    name = "tensorboard"

    def begin(self, run: Run, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        first_step = step + 1
        if step == 0:
            first_step = 0
        folder = run.path / "tensorboard"
        self.writer = SummaryWriter(folder, purge_step=first_step, flush_secs=10)
        self._add_text("config", to_toml(run.cfg), step)

    def log(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def log_text(self, text: str, step: int) -> None:
        self._add_text("text", text, step)

    def end(self) -> None:
        self.writer.close()

    def _add_text(self, name: str, text: str, step: int) -> None:
        self.writer.add_text(name, keep_lines(text), step)


class WandB(Tracker):
    """Writes where WANDB_... variables say, else in the run's directory.

    W&B refuses earlier steps, so `step` is a metric and the x axis.
    """

    name = "wandb"

    def begin(self, run: Run, step: int) -> None:
        import wandb

        is_online = wandb.setup().settings.mode == "online"
        if is_online and not wandb.login(prompt=False, verify=False):  # else it asks, and waits
            raise RuntimeError("no API key: run `wandb login`, or set WANDB_MODE=offline")
        init_timeout = float(environ.get("WANDB_INIT_TIMEOUT", PATIENCE))
        finish_timeout = float(environ.get("WANDB_FINISH_TIMEOUT", PATIENCE))
        identity = {
            "project": environ.get("WANDB_PROJECT", "surprisal"),
            "name": environ.get("WANDB_NAME", run.name),
            "id": environ.get("WANDB_RUN_ID", run.id),
            "resume": environ.get("WANDB_RESUME", "allow"),
        }
        self.tracked = wandb.init(
            **identity,
            dir=environ.get("WANDB_DIR", run.path),
            config=run.cfg.options(),
            settings=wandb.Settings(init_timeout=init_timeout, finish_timeout=finish_timeout),
        )
        self.tracked.define_metric("*", step_metric="step")
        self.make_html = wandb.Html

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.tracked.log({"step": step, **numbers})

    def log_text(self, text: str, step: int) -> None:
        self.tracked.log({"step": step, "text": self.make_html(f"<pre>{escape(text)}</pre>")})

    def end(self) -> None:
        self.tracked.finish()


class Trackio(Tracker):
    """Writes into Trackio's local store, or where TRACKIO_... variables say.

    Trackio recognises a run by its name.
    """

    name = "trackio"

    def begin(self, run: Run, step: int) -> None:
        import trackio

        name = f"{run.name}-{run.id}"
        options = run.cfg.options()
        self.tracked = trackio.init("surprisal", name, config=options, resume="allow")
        self.make_text = trackio.Markdown

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.tracked.log(numbers, step)

    def log_text(self, text: str, step: int) -> None:
        self.tracked.log({"text": self.make_text(keep_lines(text))}, step)

    def end(self) -> None:
        self.tracked.finish()


class MLflow(Tracker):
    """Writes into the store that MLFLOW_TRACKING_URI names.

    Without that variable the store is mlflow.db and mlruns/ beside the run.
    """

    name = "mlflow"

    def begin(self, run: Run, step: int) -> None:
        import mlflow

        experiment = environ.get("MLFLOW_EXPERIMENT_NAME", "surprisal")
        if "MLFLOW_TRACKING_URI" not in environ:
            folder = run.path.resolve().parent
            mlflow.set_tracking_uri(f"sqlite:///{folder.as_posix()}/mlflow.db")
            if not mlflow.get_experiment_by_name(experiment):
                mlflow.create_experiment(experiment, (folder / "mlruns").as_uri())
        mlflow.set_experiment(experiment)
        found = mlflow.search_runs(filter_string=f"tags.run = '{run.id}'", output_format="list")
        if found:
            mlflow.start_run(found[0].info.run_id)
        else:
            mlflow.start_run(run_name=run.name, tags={"run": run.id})
            mlflow.log_params(run.cfg.options())  # they cannot change later
        mlflow.log_text(to_toml(run.cfg), "config.toml")
        self.mlflow = mlflow

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.mlflow.log_metrics(numbers, step)

    def log_text(self, text: str, step: int) -> None:
        self.mlflow.log_text(text, f"text/{step}.txt")

    def end(self) -> None:
        self.mlflow.end_run()


def keep_lines(text: str) -> str:
    """Indent a text, so that Markdown keeps its lines."""
    return indent(text, "    ")
