"""What an editor is made of, read from a model directory and written to one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from emu_edit.diffusion.flow import read_schedule
from emu_edit.diffusion.prediction import Prediction, check, check_type, scheduler_config
from emu_edit.diffusion.schedule import Schedule
from emu_edit.editing.find import PREDICTOR, choose_device, find_model
from emu_edit.editing.predictor import TaskPredictor, load_predictor
from emu_edit.editing.settings import EditorSettings, choice
from emu_edit.errors import InputError
from emu_edit.models.networks import EditNetworks
from emu_edit.models.weights import load_networks, save_networks


@dataclass(frozen=True)
class ModelParts:
    """The arguments of `Editor`, by their names."""

    networks: EditNetworks
    schedule: Schedule
    prediction: Prediction
    settings: EditorSettings
    predictor: TaskPredictor | None
    objective: object
    trained_on: object

    @staticmethod
    def read(path: Path | str, device: str | None) -> "ModelParts":
        """Read a directory, a run folder or `released` as `Editor.from_pretrained` does.

        Raises:
            InputError: if there is no such model or device, or a part is missing or foreign.
        """
        path, device = find_model(path), choose_device(device)
        networks, config, values = load_networks(path, device)
        predictor = load_predictor(path / PREDICTOR, networks)
        where = f"{path}/model_index.json"
        prediction = Prediction[choice(values, "prediction", [p.name for p in Prediction], where)]
        settings = EditorSettings.from_dict(values, where=where)
        try:
            check_type(config, prediction)
            schedule = read_schedule(config)
            check(prediction, schedule)
            side = max(1, settings.image_size // networks.codec.factor)
            schedule.times(settings.num_steps, side**2)
        except InputError as error:
            raise InputError(f"{path}/scheduler/scheduler_config.json: {error}") from error
        return ModelParts(
            networks.eval(),
            schedule=schedule,
            prediction=prediction,
            settings=settings,
            predictor=None if predictor is None else predictor.to(device),
            objective=values.get("objective"),
            trained_on=values.get("trained_on"),
        )

    def write(self, path: Path, write_layers: Callable[[Path], None] | None) -> None:
        """Write the directory as `Editor.save_pretrained` does."""
        save_networks(
            self.networks,
            path,
            scheduler_config=scheduler_config(self.prediction, self.schedule),
            settings={
                "prediction": self.prediction.name,
                **self.settings.to_dict(),
                # absent where nothing is known: such a directory keeps its bytes
                **({} if self.objective is None else {"objective": self.objective}),
                **({} if self.trained_on is None else {"trained_on": self.trained_on}),
            },
            also=partial(self._write_more, write_layers),
            writes_layers=write_layers is not None,
        )

    def _write_more(self, write_layers: Callable[[Path], None] | None, folder: Path) -> None:
        if self.predictor is not None:
            (folder / PREDICTOR).mkdir()
            self.predictor.write_parts(folder / PREDICTOR)
        if write_layers is not None:
            write_layers(folder)
