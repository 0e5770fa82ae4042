"""Curves of a run in trackio: on this machine, without an account, and never in the run's way."""

import atexit
import contextlib
import copy
import io

from groundup.running import Run
from transformers import Trainer
from transformers.integrations import TrackioCallback
from transformers.integrations.integration_utils import rewrite_logs

NO_CURVES = (
    "total_flos",
    "train_loss",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
)  # said once, at the end


class Tracking(TrackioCallback):
    """transformers' own callback, of which nothing ends the run, and one line is said.

    trackio writes from a thread of its own to a database in `TRACKIO_DIR` (~/.cache/huggingface/trackio), so that a step waits
    for no disk. A project is a ladder and a run of it a stage directory, by its name and when it began: what resumes goes on in the
    same run, each value at its step. `project` and `run_name` are used where they are given, as is a Space of `trackio_space_id`.
    """

    def __init__(self, run: Run):
        super().__init__()
        self.run, self.works = run, True

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        with self.out_of_the_way("begin"):
            named = copy.copy(args)  # not in the run's own settings: a checkpoint holds those
            if args.project == type(args).project:
                named.project = self.run.directory.absolute().parent.name or "groundup"
            began = "".join(sign for sign in self.run.record["started"][:19] if sign.isdigit())
            named.run_name = args.run_name or f"{self.run.directory.name}-{began}"
            super().on_train_begin(named, state, control, model=model, **kwargs)
        if self.works and state.is_world_process_zero:
            atexit.register(self.close)  # before trackio's own, which would say that the run has finished
            self.run.say(f"curves: trackio show --project {named.project}   (run {named.run_name})")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.works and state.is_world_process_zero:
            with self.out_of_the_way("log"):
                values = rewrite_logs({name: value for name, value in logs.items() if name not in NO_CURVES})
                self._trackio.log(values, step=state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        if self.works:
            with self.out_of_the_way("end"):
                super().on_train_end(args, state, control, **kwargs)
        self.works = False

    def close(self) -> None:
        """Write what is still to be written, of a run that ends before its end."""
        if self.works:
            with self.out_of_the_way("end"):
                self._trackio.finish()
        self.works = False

    def on_push_begin(self, *args, **kwargs):
        """Curves are not pushed: upstream makes a Space of them, and nobody asked for one."""

    @contextlib.contextmanager
    def out_of_the_way(self, what: str):
        """Whatever goes wrong in a tracker (a database that is locked, a full disk, a network) is said once, and is no end."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        except Exception as error:
            self.works = False
            self.run.say(f"no more curves: trackio could not {what}: {type(error).__name__}: {error}")


def track(trainer: Trainer, run: Run) -> None:
    """Put `Tracking` in the place of transformers' callback, where `report_to` names trackio."""
    if any(type(callback) is TrackioCallback for callback in trainer.callback_handler.callbacks):
        trainer.remove_callback(TrackioCallback)
        trainer.add_callback(Tracking(run))
