"""Readers of benchmarks: class folders, captions in CSV or Karpathy's JSON, AIR-SLT, clip-benchmark's tars."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import UserError
from trainer.evaluation.files import SUFFIXES, Stored, images_below, tar_samples

SHIPPED = Path(__file__).with_name("benchmarks.yaml")
ENCODINGS = ("utf-8-sig", "gb18030")
"""Of captions' CSV files, tried in order: RSICD's is GB 18030."""


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Images of named classes, and the prompts that each class gets."""

    name: str
    classes: Sequence[str]
    templates: Sequence[str]
    """With `{c}` for the class."""
    images: Sequence[Stored]
    labels: NDArray[np.int64]

    def prompts(self) -> list[list[str]]:
        """For every class its prompts, in the templates' order."""
        return [[template.replace("{c}", name) for template in self.templates] for name in self.classes]


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Images with their captions."""

    name: str
    images: Sequence[Stored]
    texts: Sequence[str]
    text_image: NDArray[np.int64]
    """(texts,): the number of the image that each describes."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A sentence, the large image it is sought in, and the polygons (vertices, 2) where it holds."""

    caption: str
    image: Stored
    regions: Sequence[NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Definition:
    """Class names with their folders' other names, and prompts, of one benchmark."""

    templates: Sequence[str]
    classes: Mapping[str, Sequence[str]]

    def label_of(self, folder: str) -> int | None:
        """The class of a folder's name; None when none fits."""
        wanted = _letters(folder)
        for number, (name, others) in enumerate(self.classes.items()):
            if wanted in {_letters(name), *map(_letters, others)}:
                return number
        return None


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def definitions(extra: Path | None = None) -> dict[str, Definition]:
    """The shipped benchmarks by name, and those of a file of the same form, which go before them.

    Raises:
        UserError: the file cannot be read, or has another form.
    """
    templates: dict[str, list[str]] = {}
    found: dict[str, Definition] = {}
    for path in (SHIPPED, extra):
        if path is None:
            continue
        read = _yaml(path)
        try:
            templates |= {name: list(_multiplied(groups)) for name, groups in read.get("templates", {}).items()}
            for name, one in read["benchmarks"].items():
                classes = one["classes"]
                named: dict[str, Sequence[str]] = classes if isinstance(classes, dict) else dict.fromkeys(classes, ())
                found[name] = Definition(templates=templates[one["templates"]], classes=named)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"--benchmarks {path}: `templates` and `benchmarks` as in the shipped benchmarks.yaml are wanted"
                f" (at {error})"
            ) from error
    return found


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--benchmarks {path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(read, dict):
        raise UserError(f"--benchmarks {path}: a mapping is wanted, found {type(read).__name__}")
    return read


def _multiplied(groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for group in groups:
        slots = {name: values for name, values in group.items() if name != "form"}
        for choice in product(*slots.values()):
            yield group["form"].format(c="{c}", **dict(zip(slots, choice, strict=True)))


def read_classification(name: str, folder: Path, known: Mapping[str, Definition]) -> Classification:
    """A folder of class folders, or clip-benchmark's webdataset folder.

    Benchmarks that nobody defined take the folders' names for classes, "_" and "/" as spaces.

    Raises:
        UserError: the folder is missing, holds no class with an image, or one that the benchmark does not have.
    """
    if not folder.is_dir():
        raise UserError(f"--zero-shot {name}={folder}: the folder was not found")
    if (folder / "classnames.txt").is_file():
        return _classification_tars(name, folder)
    root, names = _class_folders(folder)
    definition = known.get(name.lower()) or Definition(
        templates=known["aid"].templates, classes={_spaced(one): [one] for one in names}
    )
    images: list[Stored] = []
    labels: list[int] = []
    for one in names:
        label = definition.label_of(one)
        if label is None:
            raise UserError(
                f"--zero-shot {name}={folder}: the folder {one!r} is no class of {name};"
                f" accepted: {', '.join(definition.classes)}"
            )
        paths = images_below(root / one)
        images += [Stored(path) for path in paths]
        labels += [label] * len(paths)
    if not images:
        raise UserError(f"--zero-shot {name}={folder}: no image was found in its folders")
    return Classification(
        name=name,
        classes=list(definition.classes),
        templates=definition.templates,
        images=images,
        labels=np.array(labels, dtype=np.int64),
    )


def _class_folders(folder: Path) -> tuple[Path, list[str]]:
    """The folder whose subfolders are the classes, and their names; wrappers of one folder only are passed through."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) == 1 and any(path.is_dir() for path in (folder / names[0]).iterdir()):
        return _class_folders(folder / names[0])
    return folder, names


def _spaced(name: str) -> str:
    return name.lower().replace("_", " ").replace("/", " ")


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _tars(folder: Path) -> list[Path]:
    found = sorted(folder.glob("test/*.tar"), key=lambda path: (len(path.name), path.name))
    if not found:
        raise UserError(f"{folder}: test/*.tar is wanted there, as clip-benchmark lays it out")
    return found


def _image_of(members: Mapping[str, Stored]) -> Stored | None:
    return next((stored for extension, stored in members.items() if f".{extension}" in SUFFIXES), None)


def _classification_tars(name: str, folder: Path) -> Classification:
    classes = _lines(folder / "classnames.txt")
    written = folder / "zeroshot_classification_templates.txt"
    templates = _lines(written) if written.is_file() else definitions()["aid"].templates
    images: list[Stored] = []
    labels: list[int] = []
    for key, members in tar_samples(_tars(folder)):
        image = _image_of(members)
        if image is None or "cls" not in members:
            raise UserError(f"--zero-shot {name}={folder}: sample {key!r} lacks its image or its .cls")
        label = members["cls"].read().decode().strip()
        if not label.isdecimal() or int(label) >= len(classes):
            raise UserError(f"--zero-shot {name}={folder}: sample {key!r} is of class {label!r} of {len(classes)}")
        images.append(image)
        labels.append(int(label))
    return Classification(
        name=name, classes=classes, templates=templates, images=images, labels=np.array(labels, dtype=np.int64)
    )


def read_retrieval(name: str, captions: Path, images: Path | None, split: str = "test") -> Retrieval:
    """Captions of a CSV (`filename,title`), of Karpathy's JSON (one split), or clip-benchmark's folder of tars.

    Raises:
        UserError: a file is missing or has another form, or an image is not there.
    """
    where = f"--retrieval {name}={captions}"
    if captions.is_dir():
        return _grouped(name, where, _tar_captions(where, captions))
    if images is None:
        raise UserError(f"{where}: the images' folder is wanted after a comma")
    if not captions.is_file():
        raise UserError(f"{where}: the file was not found")
    pairs = _json_captions(where, captions, split) if captions.suffix == ".json" else _csv_captions(where, captions)
    return _grouped(name, where, ((Stored(images / file), text) for file, text in pairs))


def _grouped(name: str, where: str, pairs: Iterator[tuple[Stored, str]]) -> Retrieval:
    numbers: dict[Stored, int] = {}
    texts: list[str] = []
    owners: list[int] = []
    for image, text in pairs:
        owners.append(numbers.setdefault(image, len(numbers)))
        texts.append(text)
    if not texts:
        raise UserError(f"{where}: no caption was found")
    missing = [image for image in numbers if not image.path.is_file()]
    if missing:
        raise UserError(f"{where}: {len(missing)} of {len(numbers)} images are missing, the first is {missing[0].name}")
    return Retrieval(name=name, images=list(numbers), texts=texts, text_image=np.array(owners, dtype=np.int64))


def _csv_captions(where: str, path: Path) -> Iterator[tuple[str, str]]:
    reader = csv.DictReader(_decoded(where, path).splitlines())
    if not {"filename", "title"} <= set(reader.fieldnames or ()):
        raise UserError(f"{where}: the columns filename and title are wanted, found {reader.fieldnames}")
    for row in reader:
        if row["filename"] and row["title"]:
            yield row["filename"].strip(), row["title"].strip()


def _decoded(where: str, path: Path) -> str:
    data = path.read_bytes()
    for encoding in ENCODINGS:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise UserError(f"{where}: neither UTF-8 nor GB 18030")


def karpathy(where: str, path: Path, split: str) -> list[tuple[str, list[str]]]:
    """(file name, captions) of the images of a split of Karpathy's JSON.

    Raises:
        UserError: the file has another form, or no image of the split.
    """
    try:
        read = json.loads(path.read_text(encoding="utf-8"))["images"]
        found = [
            (one["filename"], [sentence["raw"].strip() for sentence in one["sentences"]])
            for one in read
            if one["split"] == split
        ]
        splits = sorted({one["split"] for one in read})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{where}: images with filename, split and sentences of raw text are wanted"
            f" ({type(error).__name__}: {error})"
        ) from error
    if not found:
        raise UserError(f"{where}: no image of the split {split!r}; there are {', '.join(splits)}")
    return found


def _json_captions(where: str, path: Path, split: str) -> Iterator[tuple[str, str]]:
    for file, texts in karpathy(where, path, split):
        for text in texts:
            if text:
                yield file, text


def _tar_captions(where: str, folder: Path) -> Iterator[tuple[Stored, str]]:
    for key, members in tar_samples(_tars(folder)):
        image = _image_of(members)
        if image is None or "txt" not in members:
            raise UserError(f"{where}: sample {key!r} lacks its image or its .txt")
        for text in members["txt"].read().decode("utf-8").splitlines():
            if text.strip():
                yield image, text.strip()


def read_scenes(folder: Path) -> list[Scene]:
    """AIR-SLT: `annotations/anno.json` (`caption, jpg_name, points`) over `imgs/`.

    Raises:
        UserError: the file is missing or has another form, or an image is not there.
    """
    path = folder / "annotations" / "anno.json"
    try:
        scenes = [
            Scene(
                caption=one["caption"],
                image=Stored(folder / "imgs" / one["jpg_name"]),
                regions=[np.rint(np.array(points, dtype=np.float64)).astype(np.int64) for points in one["points"]],
            )
            for one in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--selo {folder}: annotations/anno.json with caption, jpg_name and points is wanted ({error})"
        ) from error
    for scene in scenes:
        if not scene.image.path.is_file():
            raise UserError(f"--selo {folder}: the image {scene.image.path} was not found")
        if not scene.regions or any(region.ndim != 2 or region.shape[1] != 2 for region in scene.regions):
            raise UserError(f"--selo {folder}: {scene.caption!r} has no polygons of [x, y] in points")
    return scenes
