"""What a recipe may call a model, and whether it can be used, found out before anything runs.

An open_clip model is a local folder (`open_clip_config.json` and weights), a hub id (`org/name`), or a name of
the library with a tag of pretrained weights. A timm classifier or a transformers model is a local folder
(`config.json` and weights) or a hub id. Nothing is loaded here, and nothing is downloaded.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stages.errors import UserError

WEIGHTS = ("*.safetensors", "*.bin", "*.pth")
FILES = (".json", ".safetensors", ".bin", ".pth", ".txt", ".model")
CONFIGS = {"open_clip": "open_clip_config.json", "timm": "config.json", "transformers": "config.json"}
WANTED = {"open_clip": "model_cfg", "timm": "architecture", "transformers": "model_type"}
"""What tells a library's config from another's."""
HUB = "hf-hub:"
LICENCES = {
    "openai": "MIT",
    "laion": "MIT",
    "datacomp_": "MIT",
    "commonpool_": "MIT",
    "webli": "Apache-2.0",
    "metaclip": "CC-BY-NC-4.0",
    "dfn": "Apple's, for research",
    "datacompdr": "Apple's, for research",
}
"""How their publishers license open_clip's weights, by how the tag begins."""

Library = Literal["open_clip", "timm", "transformers"]


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """A model as a recipe names it."""

    library: Library
    where: str
    """The recipe's key, for error sentences."""
    model: str
    pretrained: str | None = None

    @property
    def folder(self) -> Path | None:
        """The local folder, absolute; None for a hub id or a name."""
        path = self.model.removeprefix("file://")
        return Path(path).expanduser().absolute() if _is_path(path) else None

    def absolute(self) -> ModelRef:
        """The same model for processes that run in another folder."""
        file = self.pretrained and os.path.isfile(self.pretrained)
        return replace(
            self,
            model=str(self.folder or self.model),
            pretrained=os.path.abspath(str(self.pretrained)) if file else self.pretrained,
        )

    @property
    def identifier(self) -> str:
        """The name under which the library loads it, scheme included."""
        if self.library == "transformers":
            return str(self.folder or self.model.removeprefix(HUB))
        if self.folder:
            return f"local-dir:{self.folder}"
        return self.model if not self.is_hub or self.model.startswith(HUB) else HUB + self.model

    @property
    def is_hub(self) -> bool:
        """Whether it lies on the model hub."""
        return self.model.startswith(HUB) or ("/" in self.model and not self.folder)

    def files(self) -> list[str]:
        """Local files that decide what the model computes: config, weights, tokenizer."""
        if self.folder:
            return [str(path) for path in sorted(self.folder.iterdir()) if path.suffix in FILES]
        if self.pretrained and os.path.isfile(self.pretrained):
            return [os.path.abspath(self.pretrained)]
        return []

    def config(self) -> dict[str, Any]:
        """The folder's config.

        Raises:
            UserError: there is none, or it is no JSON mapping.
        """
        assert self.folder is not None, "only folders have a config here"
        path = self.folder / CONFIGS[self.library]
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.where}: {path} cannot be read as JSON ({error})") from error
        if not isinstance(found, dict):
            raise UserError(f"{self.where}: {path} holds no JSON mapping")
        return found

    def check(self) -> None:
        """Find out whether the model can be used.

        Raises:
            UserError: one sentence that says what is wrong and what would be right.
        """
        if self.folder:
            self._check_folder(self.folder)
        elif self.is_hub:
            self._check_cached(self.model.removeprefix(HUB), CONFIGS[self.library])
        elif self.library == "open_clip":
            self._check_open_clip_name()
        else:
            raise UserError(
                f"{self.where}: {self.model!r} is no model; accepted: a folder with config.json and weights "
                f"as {self.library} saves them, or a hub id org/name"
            )

    def _check_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"{self.where}: there is no folder {self.model!r}")
        if self.pretrained:
            raise UserError(
                f"{self.where}: {self.model!r} is a folder and brings its weights, so pretrained: "
                f"{self.pretrained!r} must be left out"
            )
        if not (folder / CONFIGS[self.library]).is_file():
            raise UserError(
                f"{self.where}: the folder {self.model!r} has no {CONFIGS[self.library]}, "
                f"so it is no {self.library} model"
            )
        if not any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
            raise UserError(f"{self.where}: the folder {self.model!r} has no weights ({', '.join(WEIGHTS)})")
        if WANTED[self.library] not in self.config():
            raise UserError(f"{self.where}: {folder / CONFIGS[self.library]} has no {WANTED[self.library]!r}")

    def _check_open_clip_name(self) -> None:
        names = open_clip_names()
        if self.model not in names:
            raise UserError(
                f"{self.where}: open_clip knows no model {self.model!r}{_near(self.model, names)}; accepted: a name "
                "of open_clip.list_models(), a hub id org/name, or a folder with open_clip_config.json and weights"
            )
        if self.pretrained and os.path.isfile(self.pretrained):
            return
        from open_clip import get_pretrained_cfg, list_pretrained_tags_by_model

        tags = list_pretrained_tags_by_model(self.model)
        if self.pretrained not in tags:
            raise UserError(
                f"{self.where}: {self.model!r} has no weights {self.pretrained!r}"
                f"{_near(str(self.pretrained), tags)}; accepted for pretrained: {', '.join(tags) or 'a file'}"
            )
        tag: Mapping[str, Any] = get_pretrained_cfg(self.model, self.pretrained)
        self._check_activation(bool(tag.get("quick_gelu")))
        repository, _, file = tag.get("hf_hub", "").rpartition("/")
        self._check_cached(repository, file or "open_clip_model.safetensors")

    def _check_activation(self, weights_use_quick_gelu: bool) -> None:
        """OpenAI's weights were trained with QuickGELU; with GELU they load, and score worse."""
        path = _open_clip_configs() / f"{self.model}.json"
        if weights_use_quick_gelu == bool(json.loads(path.read_text()).get("quick_gelu")):
            return
        other = f"{self.model}-quickgelu" if weights_use_quick_gelu else self.model.removesuffix("-quickgelu")
        raise UserError(
            f"{self.where}: the weights {self.pretrained!r} were trained with "
            f"{'QuickGELU' if weights_use_quick_gelu else 'GELU'}, which {self.model!r} does not use: "
            f"name the model {other!r}"
        )

    def _check_cached(self, repository: str, file: str) -> None:
        """Weights not on this machine are fetched by the run, which wants a network."""
        from huggingface_hub import constants, try_to_load_from_cache

        found = try_to_load_from_cache(repository, file, constants.HF_HUB_CACHE) if repository else None
        cached = isinstance(found, str)
        if not cached and not _hub_answers():
            raise UserError(
                f"{self.where}: the weights of {self.model!r} are not on this machine and the model hub cannot be "
                f"reached; fetch them where it can, with: {self.fetch_command()} ({self.licence(repository)})"
            )

    def licence(self, repository: str) -> str:
        """What is known of the weights' licence, and the page of the model hub that states it."""
        tag = self.pretrained or ""
        known = next((name for start, name in LICENCES.items() if tag.startswith(start)), None)
        page = f"the hub's page of {repository}" if repository else "its publisher's page"
        return f"licence: {known}; {page} has the terms" if known else f"for the licence see {page}"

    def fetch_command(self) -> str:
        """A shell command that puts the weights into the library's cache."""
        if self.library == "transformers":
            return f"hf download {self.identifier}"
        if self.library == "timm":
            return f"python -c \"import timm; timm.create_model('{self.identifier}', pretrained=True)\""
        pretrained = f", pretrained='{self.pretrained}'" if self.pretrained else ""
        return f"python -c \"import open_clip; open_clip.create_model('{self.identifier}'{pretrained})\""


def open_clip_names() -> list[str]:
    """The library's own architectures, without importing it."""
    return sorted(path.stem for path in _open_clip_configs().glob("*.json"))


def _open_clip_configs() -> Path:
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        raise UserError("the package open_clip_torch is not installed; install it, or leave out the vlm")
    return Path(found.origin).parent / "model_configs"


def _is_path(model: str) -> bool:
    if model.startswith(HUB):
        return False
    return model.startswith(("/", "./", "../", "~")) or os.path.isdir(model) or model.count("/") > 1


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (near it: {', '.join(near)})" if near else ""


def _hub_answers() -> bool:
    """Whether the hub can be asked at all; any answer will do."""
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or not constants.ENDPOINT.startswith(("http://", "https://")):
        return False
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")  # noqa: S310 (scheme checked above)
    try:
        urllib.request.urlopen(request, timeout=5).close()  # noqa: S310
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
